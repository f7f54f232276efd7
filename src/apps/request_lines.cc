#include "apps/request_lines.h"

#include <utility>

#include "apps/file_lines.h"
#include "boost/json.hpp"

namespace zp::apps {
namespace {

namespace json = boost::json;

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
  return ForEachLine(path, [&](const std::string& line) -> absl::Status {
    ZP_ASSIGN_OR_RETURN(RequestLine request, ParseRequestLine(line));
    return take(std::move(request));
  });
}

}  // namespace zp::apps
