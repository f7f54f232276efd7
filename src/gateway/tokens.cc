#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/endpoints.h"
#include "gateway/errors.h"
#include "gateway/json_text.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;
using scoring::Tokens;

// An answer that is known without a forward pass.
Prepared Ready(json::object answer) {
  Prepared prepared;
  prepared.read =
      [answer = std::move(answer)](const protocol::WorkResult&) -> absl::StatusOr<json::object> {
    return answer;
  };
  return prepared;
}

json::array TokensJson(const Tokens& tokens) { return json::array(tokens.begin(), tokens.end()); }

}  // namespace

absl::StatusOr<Prepared> PrepareTokenize(const json::object& body, const RequestContext& context) {
  const ServedModel& model = context.model;
  Fields fields(body);
  ZP_RETURN_IF_ERROR(model.CheckName(fields.String("model", "")));
  fields.Unsupported("messages", "give prompt");
  if (!fields.Has("prompt")) {
    fields.Fail("prompt", "is required");
  }
  const std::string_view prompt = fields.String("prompt", "");
  const bool add_special_tokens = fields.Bool("add_special_tokens", true);
  const bool return_token_texts = fields.Bool("return_token_strs", false);
  ZP_RETURN_IF_ERROR(fields.status());

  const Tokens tokens = model.tokenizer().Encode(prompt, add_special_tokens);
  if (const auto limit = static_cast<size_t>(model.limits().max_request_tokens);
      tokens.size() > limit) {
    return FieldError("prompt",
                      fmt::format("has {} tokens, the limit is {}", tokens.size(), limit));
  }
  json::value token_texts = nullptr;
  if (return_token_texts) {
    json::array& texts = token_texts.emplace_array();
    for (const scoring::TokenId token : tokens) {
      texts.emplace_back(model.TokenText(token));
    }
  }
  return Ready({{"count", tokens.size()},
                {"max_model_len", model.spec().max_position_count},
                {"tokens", TokensJson(tokens)},
                {"token_strs", std::move(token_texts)}});
}

absl::StatusOr<Prepared> PrepareDetokenize(const json::object& body,
                                           const RequestContext& context) {
  const ServedModel& model = context.model;
  Fields fields(body);
  ZP_RETURN_IF_ERROR(model.CheckName(fields.String("model", "")));
  const bool skip_special_tokens = fields.Bool("skip_special_tokens", false);
  const auto max_count = static_cast<size_t>(model.limits().max_request_tokens);
  const Tokens tokens = fields.TokenIds("tokens", max_count, model.spec().vocab_count);
  ZP_RETURN_IF_ERROR(fields.status());
  return Ready({{"prompt", ToValidUtf8(model.tokenizer().Decode(tokens, skip_special_tokens))}});
}

}  // namespace zp::gateway
