#include "apps/score_line.h"

#include "boost/json.hpp"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

constexpr int kMaxDepth = 32;

struct PathOfKey {
  std::string_view key;
  std::string_view path;
};

// The first that is there decides.
constexpr PathOfKey kPaths[] = {{"query", "/v1/score"},
                                {"context", "/v1/loglikelihood"},
                                {"labels", "/v1/classify"},
                                {"task", "/v1/classify"},
                                {"prompt", "/v1/completions"},
                                {"input", "/v1/embeddings"}};

absl::StatusOr<json::object> ParseObject(std::string_view text) {
  json::parse_options options;
  options.max_depth = kMaxDepth;
  boost::system::error_code error;
  json::value value = json::parse({text.data(), text.size()}, error, {}, options);
  if (error) {
    return absl::InvalidArgumentError(fmt::format("the line is not JSON: {}", error.message()));
  }
  if (!value.is_object()) {
    return absl::InvalidArgumentError("the line is not a JSON object");
  }
  return std::move(value.get_object());
}

std::string_view PathOf(const json::object& question) {
  for (const auto& [key, path] : kPaths) {
    if (question.contains({key.data(), key.size()})) {
      return path;
    }
  }
  return "";
}

std::string StringOf(const json::object& object, const char* key, std::string_view fallback) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string())
                                                : std::string(fallback);
}

// Where the question stands in the line.
const json::object& QuestionOf(const json::object& line) {
  for (const char* key : {"body", "request"}) {
    if (const json::value* inner = line.if_contains(key); inner != nullptr && inner->is_object()) {
      return inner->get_object();
    }
  }
  return line;
}

std::string OutputLine(std::string_view id,
                       int64_t line_number,
                       std::string_view response,
                       std::string_view error) {
  const std::string quoted_id = json::serialize(json::value(json::string(id)));
  return fmt::format(R"({{"id":"{}","custom_id":{},"response":{},"error":{}}})"
                     "\n",
                     DefaultLineId(line_number),
                     quoted_id,
                     response,
                     error);
}

}  // namespace

std::string DefaultLineId(int64_t line_number) { return fmt::format("line-{}", line_number); }

absl::StatusOr<ScoreLine> ReadScoreLine(std::string_view text, int64_t line_number) {
  ZP_ASSIGN_OR_RETURN(const json::object line, ParseObject(text));
  const json::object& question = QuestionOf(line);
  ScoreLine result;
  result.id = StringOf(line, "custom_id", DefaultLineId(line_number));
  result.request.request_id = DefaultLineId(line_number);
  result.request.method = StringOf(line, "method", "POST");
  result.request.path = StringOf(line, "url", PathOf(question));
  if (result.request.path.empty()) {
    return absl::InvalidArgumentError(
        "the line has no url and none of query, context, labels, task, prompt, input");
  }
  result.request.body = json::serialize(question);
  return result;
}

std::string WriteAnswerLine(std::string_view id,
                            int64_t line_number,
                            const gateway::Response& response) {
  const std::string body = response.content_type == "application/json" ? response.body : "null";
  return OutputLine(id,
                    line_number,
                    fmt::format(R"({{"status_code":{},"request_id":"{}","body":{}}})",
                                response.status,
                                DefaultLineId(line_number),
                                body),
                    "null");
}

std::string WriteProblemLine(std::string_view id,
                             int64_t line_number,
                             const absl::Status& problem) {
  const json::object error = {{"code", "invalid_line"}, {"message", base::MessageOf(problem)}};
  return OutputLine(id, line_number, "null", json::serialize(error));
}

std::string ReadAnswerId(std::string_view line) {
  const absl::StatusOr<json::object> object = ParseObject(line);
  return object.ok() ? StringOf(*object, "custom_id", "") : "";
}

}  // namespace zp::apps
