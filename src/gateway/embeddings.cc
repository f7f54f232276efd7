#include <bit>
#include <memory>

#include "absl/strings/escaping.h"
#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/endpoints.h"
#include "gateway/errors.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;
using scoring::EmbeddingQuestion;
using scoring::Tokens;

static_assert(std::endian::native == std::endian::little,
              "base64 answers are little-endian floats");

struct Embeddings {
  std::vector<EmbeddingQuestion> questions;
  bool base64 = false;
  int64_t prompt_tokens = 0;
};

// What each question of the request starts from.
struct Options {
  bool base64 = false;
  EmbeddingQuestion question;
};

Options ReadOptions(Fields& fields, const ServedModel& model) {
  Options options;
  const std::string_view format = fields.String("encoding_format", "float");
  if (format != "float" && format != "base64") {
    fields.Fail("encoding_format", "must be \"float\" or \"base64\"");
  }
  options.base64 = format == "base64";
  const std::string_view pooling = fields.String("pooling", "last");
  if (pooling != "last" && pooling != "mean") {
    fields.Fail("pooling", "must be \"last\" or \"mean\"");
  }
  options.question.pooling =
      pooling == "mean" ? protocol::Pooling::kMean : protocol::Pooling::kLastToken;
  options.question.normalize = fields.Bool("normalize", true);
  const int64_t model_dim = model.spec().model_dim;
  if (fields.Integer("dimensions", {1, INT32_MAX}, model_dim) != model_dim) {
    fields.Fail("dimensions", fmt::format("must be {}, the model's", model_dim));
  }
  return options;
}

json::value EmbeddingJson(const std::vector<float>& embedding, bool base64) {
  if (base64) {
    const std::string bytes(reinterpret_cast<const char*>(embedding.data()),
                            embedding.size() * sizeof(float));
    return json::value(absl::Base64Escape(bytes));
  }
  return json::array(embedding.begin(), embedding.end());
}

absl::StatusOr<json::array> ReadAnswers(const Embeddings& embeddings,
                                        const protocol::WorkResult& result) {
  if (result.sequences.size() != embeddings.questions.size()) {
    return absl::InternalError(fmt::format("the worker answered {} sequences where {} were asked",
                                           result.sequences.size(),
                                           embeddings.questions.size()));
  }
  json::array data;
  for (size_t i = 0; i < embeddings.questions.size(); ++i) {
    ZP_ASSIGN_OR_RETURN(const std::vector<float> embedding,
                        scoring::ReadEmbedding(embeddings.questions[i], result.sequences[i]));
    data.push_back(json::object{{"object", "embedding"},
                                {"index", i},
                                {"embedding", EmbeddingJson(embedding, embeddings.base64)}});
  }
  return data;
}

}  // namespace

absl::StatusOr<Prepared> PrepareEmbeddings(const json::object& body,
                                           const RequestContext& context) {
  const ServedModel& model = context.model;
  Fields fields(body);
  ZP_RETURN_IF_ERROR(model.CheckName(fields.String("model", "")));
  const Options options = ReadOptions(fields, model);
  const std::vector<Prompt> inputs =
      fields.Prompts("input", model.limits().max_prompts, model.spec().vocab_count);
  ZP_RETURN_IF_ERROR(fields.status());

  Prepared prepared;
  prepared.work.request_id = context.request_id;
  auto embeddings = std::make_shared<Embeddings>();
  embeddings->base64 = options.base64;
  RequestBudget budget(model.limits());
  for (const Prompt& input : inputs) {
    EmbeddingQuestion question = options.question;
    ZP_ASSIGN_OR_RETURN(question.tokens, model.EncodePrompt(input));
    ZP_RETURN_IF_ERROR(budget.Spend({.sequences = 1,
                                     .tokens = static_cast<int64_t>(question.tokens.size()),
                                     .answer_numbers = model.spec().model_dim}));
    ZP_RETURN_IF_ERROR(scoring::PlanEmbedding(question, prepared.work));
    embeddings->prompt_tokens += static_cast<int64_t>(question.tokens.size());
    embeddings->questions.push_back(std::move(question));
  }
  prepared.read = [embeddings, name = model.name()](
                      const protocol::WorkResult& result) -> absl::StatusOr<json::object> {
    ZP_ASSIGN_OR_RETURN(json::array data, ReadAnswers(*embeddings, result));
    return json::object{{"object", "list"},
                        {"data", std::move(data)},
                        {"model", name},
                        {"usage", UsageJson(embeddings->prompt_tokens, result.usage)}};
  };
  return prepared;
}

}  // namespace zp::gateway
