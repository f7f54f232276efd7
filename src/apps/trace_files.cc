#include "apps/trace_files.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "apps/file_lines.h"
#include "apps/request_lines.h"
#include "boost/json.hpp"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

using planner::Trace;
using planner::TraceRequest;

constexpr int64_t kMaxPromptTokens = int64_t{1} << 24;
constexpr int32_t kMooncakeBlockTokens = 512;
constexpr char kAzureHeader[] = "TIMESTAMP,ContextTokens,GeneratedTokens";

// Reads the lines of one form; what is not a request (a header) yields none.
using ReadLine = std::function<absl::Status(const std::string& line, Trace& trace)>;

absl::Status CheckLength(int64_t tokens) {
  return tokens > 0 && tokens <= kMaxPromptTokens
             ? absl::OkStatus()
             : absl::InvalidArgumentError(fmt::format(
                   "a prompt of {} tokens; expected 1 to {}", tokens, kMaxPromptTokens));
}

absl::Status ReadAzureLine(const std::string& line, Trace& trace) {
  if (line.starts_with(kAzureHeader)) {
    return absl::OkStatus();
  }
  const std::vector<std::string> fields = absl::StrSplit(line, ',');
  absl::Time arrival;
  int64_t tokens = 0;
  std::string error;
  if (fields.size() != 3 || !absl::ParseTime("%Y-%m-%d %H:%M:%E*S", fields[0], &arrival, &error) ||
      !absl::SimpleAtoi(fields[1], &tokens)) {
    return absl::InvalidArgumentError(fmt::format("expected {}", kAzureHeader));
  }
  ZP_RETURN_IF_ERROR(CheckLength(tokens));
  const auto content = static_cast<uint64_t>(trace.requests.size());
  trace.requests.push_back({.arrival_s = absl::ToDoubleSeconds(arrival - absl::UnixEpoch()),
                            .prompts = {{.runs = {{content, static_cast<int32_t>(tokens)}}}}});
  return absl::OkStatus();
}

absl::Status ReadMooncakeLine(const std::string& line, Trace& trace) {
  boost::system::error_code error;
  const json::value value = json::parse(line, error);
  const auto member = [&](const char* key) -> const json::value* {
    return error || !value.is_object() ? nullptr : value.get_object().if_contains(key);
  };
  const auto number = [&](const char* key) -> int64_t {
    const json::value* found = member(key);
    return found != nullptr && found->is_int64() ? found->get_int64() : -1;
  };
  const int64_t tokens = number("input_length");
  const int64_t timestamp_ms = number("timestamp");
  const json::value* blocks = member("hash_ids");
  if (tokens < 0 || timestamp_ms < 0 || blocks == nullptr || !blocks->is_array()) {
    return absl::InvalidArgumentError(
        "expected a JSON object with timestamp, input_length and hash_ids");
  }
  ZP_RETURN_IF_ERROR(CheckLength(tokens));
  planner::TracePrompt prompt;
  int64_t left = tokens;
  for (const json::value& block : blocks->as_array()) {
    if (!block.is_int64() || left <= 0) {
      return absl::InvalidArgumentError("hash_ids does not fit input_length");
    }
    const auto count = static_cast<int32_t>(std::min<int64_t>(left, kMooncakeBlockTokens));
    prompt.runs.push_back({static_cast<uint64_t>(block.as_int64()), count});
    left -= count;
  }
  if (left > 0) {
    return absl::InvalidArgumentError("hash_ids does not fit input_length");
  }
  trace.requests.push_back(
      {.arrival_s = 1e-3 * static_cast<double>(timestamp_ms), .prompts = {std::move(prompt)}});
  return absl::OkStatus();
}

ReadLine EvaluationReader(const text::Tokenizer& tokenizer) {
  return [&tokenizer](const std::string& line, Trace& trace) -> absl::Status {
    ZP_ASSIGN_OR_RETURN(const RequestLine request, ParseRequestLine(line));
    planner::TracePrompt prompt{.tokens = request.Tokens(tokenizer)};
    ZP_RETURN_IF_ERROR(CheckLength(static_cast<int64_t>(prompt.tokens.size())));
    trace.requests.push_back(
        {.arrival_s = static_cast<double>(trace.requests.size()), .prompts = {std::move(prompt)}});
    return absl::OkStatus();
  };
}

absl::StatusOr<ReadLine> ReaderFor(const std::string& line, const text::Tokenizer* tokenizer) {
  if (line.starts_with(kAzureHeader)) {
    return ReadLine(ReadAzureLine);
  }
  if (line.find("\"hash_ids\"") != std::string::npos) {
    return ReadLine(ReadMooncakeLine);
  }
  if (tokenizer == nullptr) {
    return absl::InvalidArgumentError(
        "neither an Azure nor a Mooncake trace; evaluation requests need --tokenizer");
  }
  return EvaluationReader(*tokenizer);
}

}  // namespace

absl::StatusOr<Trace> ReadTrace(const std::string& name,
                                const std::string& path,
                                const text::Tokenizer* tokenizer) {
  Trace trace{.name = name};
  ReadLine read;
  ZP_RETURN_IF_ERROR(ForEachLine(path, [&](const std::string& line) -> absl::Status {
    if (read == nullptr) {
      ZP_ASSIGN_OR_RETURN(read, ReaderFor(line, tokenizer));
    }
    return read(line, trace);
  }));
  if (trace.requests.empty()) {
    return absl::InvalidArgumentError(fmt::format("{}: no request in it", path));
  }
  std::ranges::stable_sort(trace.requests, {}, &TraceRequest::arrival_s);
  const double begin_s = trace.requests.front().arrival_s;
  for (TraceRequest& request : trace.requests) {
    request.arrival_s -= begin_s;
  }
  return trace;
}

}  // namespace zp::apps
