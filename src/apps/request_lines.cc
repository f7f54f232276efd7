#include "apps/request_lines.h"

#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <utility>

#include "apps/child_process.h"
#include "boost/json.hpp"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

using TakeLine = std::function<absl::Status(const std::string& line)>;

absl::Status ForEachLine(std::istream& lines, const TakeLine& take) {
  for (std::string line; std::getline(lines, line);) {
    ZP_RETURN_IF_ERROR(take(line));
  }
  return absl::OkStatus();
}

// A stream of what a program prints: the file is never whole in memory.
absl::Status ForEachUnpackedLine(const std::string& path, const TakeLine& take) {
  constexpr std::chrono::seconds kPatience(60);
  if (!std::ifstream(path)) {
    return absl::NotFoundError("cannot be read");
  }
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<ChildProcess> unpacker,
                      ChildProcess::Start({"xz", "-dc", "--", path}));
  while (true) {
    const absl::StatusOr<std::string> line = unpacker->ReadLine(kPatience);
    if (absl::IsUnavailable(line.status())) {  // the end
      return unpacker->AwaitEnd() == 0
                 ? absl::OkStatus()
                 : absl::DataLossError("xz cannot unpack it (see standard error)");
    }
    ZP_RETURN_IF_ERROR(line.status());
    ZP_RETURN_IF_ERROR(take(*line));
  }
}

}  // namespace

std::vector<spec::TokenId> RequestLine::Tokens(const text::Tokenizer& tokenizer) const {
  std::vector<spec::TokenId> tokens = tokenizer.Encode(context, false);
  for (const spec::TokenId token : tokenizer.Encode(continuation, false)) {
    tokens.push_back(token);
  }
  return tokens;
}

absl::StatusOr<RequestLine> ParseRequestLine(const std::string& line) {
  boost::system::error_code error;
  const json::value value = json::parse(line, error);
  const json::object* object = error ? nullptr : value.if_object();
  if (object != nullptr && object->if_contains("request") != nullptr) {
    object = object->at("request").if_object();
  }
  const auto text_of = [&](const char* key) -> const json::string* {
    const json::value* member = object == nullptr ? nullptr : object->if_contains(key);
    return member == nullptr ? nullptr : member->if_string();
  };
  const json::string* context = text_of("context");
  const json::string* continuation = text_of("continuation");
  if (context == nullptr || continuation == nullptr) {
    return absl::InvalidArgumentError(
        "expected a JSON object with the strings \"context\" and \"continuation\"");
  }
  return RequestLine{.context = std::string(*context), .continuation = std::string(*continuation)};
}

absl::Status ForEachRequestLine(const std::string& path,
                                const std::function<absl::Status(RequestLine)>& take) {
  int64_t line_number = 0;
  const TakeLine take_line = [&](const std::string& line) -> absl::Status {
    ++line_number;
    ZP_ASSIGN_OR_RETURN(RequestLine request, ParseRequestLine(line));
    return take(std::move(request));
  };
  absl::Status status;
  if (path == "-") {
    status = ForEachLine(std::cin, take_line);
  } else if (path.ends_with(".xz")) {
    status = ForEachUnpackedLine(path, take_line);
  } else if (std::ifstream file(path); file) {
    status = ForEachLine(file, take_line);
  } else {
    status = absl::NotFoundError("cannot be read");
  }
  if (status.ok()) {
    return status;
  }
  const std::string place = line_number > 0 ? fmt::format("{}, line {}", path, line_number) : path;
  return absl::Status(status.code(), fmt::format("{}: {}", place, std::string(status.message())));
}

}  // namespace zp::apps
