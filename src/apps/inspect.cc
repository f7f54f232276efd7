#include "apps/inspect.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "apps/command.h"
#include "base/units.h"
#include "boost/json/object.hpp"
#include "boost/json/serialize.hpp"
#include "boost/json/string.hpp"
#include "boost/json/value.hpp"
#include "checkpoint/checkpoint.h"
#include "fmt/format.h"
#include "spec/flops.h"

namespace zp::apps {
namespace {

struct InspectOptions {
  std::string path;
  bool json = false;
};

constexpr std::array kPromptTokens = {256, 2048, 32768};

// One line of the answer: for programs (key, value) and for people (label, text).
struct Fact {
  std::string key;
  boost::json::value value;
  std::string label;
  std::string text;
};

Fact Text(std::string key, std::string label, std::string text) {
  boost::json::value value(boost::json::string(text.data(), text.size()));
  return {std::move(key), std::move(value), std::move(label), std::move(text)};
}

Fact Count(std::string key, std::string label, int64_t value) {
  return {std::move(key), value, std::move(label), fmt::format("{}", value)};
}

Fact Parameters(std::string key, std::string label, int64_t value) {
  return {std::move(key), value, std::move(label), base::FormatCount(static_cast<double>(value))};
}

Fact Bytes(std::string key, std::string label, int64_t value) {
  return {std::move(key), value, std::move(label), base::FormatBytes(value)};
}

std::vector<Fact> ShapeFacts(const spec::ModelSpec& spec) {
  const int64_t moe_layers = std::count(spec.layer_is_moe.begin(), spec.layer_is_moe.end(), true);
  std::vector<Fact> facts = {
      Text("family", "family", spec.family),
      Text("weight_dtype", "weights", std::string(spec::NameOf(spec.weight_dtype))),
      Count("layers", "layers", spec.layer_count),
      Count("moe_layers", "layers with experts", moe_layers),
      Count("model_dim", "model width", spec.model_dim),
      Count("query_heads", "query heads", spec.query_head_count),
      Count("kv_heads", "key/value heads", spec.kv_head_count),
      Count("head_dim", "head width", spec.head_dim),
      Count("experts", "experts", spec.expert_count),
      Count("experts_per_token", "experts per token", spec.experts_per_token),
      Count("expert_dim", "expert width", spec.expert_dim),
  };
  if (moe_layers < spec.layer_count) {
    facts.push_back(Count("dense_ffn_dim", "dense FFN width", spec.dense_ffn_dim));
  }
  facts.push_back(Count("vocabulary", "vocabulary", spec.vocab_count));
  facts.push_back(Count("max_positions", "longest sequence", spec.max_position_count));
  facts.push_back({"tied_embeddings",
                   spec.tied_embeddings,
                   "tied embeddings",
                   spec.tied_embeddings ? "yes" : "no"});
  return facts;
}

std::vector<Fact> SizeFacts(const spec::ModelSpec& spec) {
  const auto weight_bytes = static_cast<int64_t>(spec::SizeOf(spec.weight_dtype));
  const int64_t expert_bytes = spec::ExpertParameters(spec) * weight_bytes;
  const int64_t kv_bytes = spec::KvBytesPerToken(spec, spec::DType::kBf16);
  return {
      Parameters("parameters", "parameters", spec::TotalParameters(spec)),
      Parameters("active_parameters", "active parameters", spec::ActiveParameters(spec)),
      Bytes("expert_bytes", "an expert", expert_bytes),
      Bytes("bank_bytes", "a layer's experts", expert_bytes * spec.expert_count),
      Bytes("weight_bytes", "all weights", spec::TotalParameters(spec) * weight_bytes),
      Bytes("kv_bytes_per_token", "KV cache a token (bf16)", kv_bytes),
  };
}

// A prompt whose last row is asked for, over the whole vocabulary: FLOPs a token.
double PromptFlopsPerToken(const spec::ModelSpec& spec, int64_t token_count) {
  spec::PassShape shape;
  shape.token_count = token_count;
  shape.asked_token_count = 1;
  shape.attention_flops = spec::AttentionFlops(spec, token_count, 0);
  shape.asked_attention_flops = spec::AttentionFlops(spec, 1, token_count - 1);
  shape.full_vocabulary_rows = 1;
  return spec::PassFlops(spec, shape) / static_cast<double>(token_count);
}

std::vector<Fact> FlopFacts(const spec::ModelSpec& spec) {
  std::vector<Fact> facts;
  for (const int64_t token_count : kPromptTokens) {
    const double flops = PromptFlopsPerToken(spec, token_count);
    facts.push_back({fmt::format("flops_per_token_at_{}", token_count),
                     flops,
                     fmt::format("a token, prompt of {}", token_count),
                     base::FormatCount(flops) + "FLOP"});
  }
  return facts;
}

// A folder is checked down to its last tensor; a config.json alone is enough to count.
absl::StatusOr<spec::ModelSpec> ReadSpec(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(path, ignored)) {
    return checkpoint::ReadModelSpec(path);
  }
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<checkpoint::Checkpoint> checkpoint,
                      checkpoint::Checkpoint::Open(path));
  return checkpoint->spec();
}

void PrintJson(const std::vector<Fact>& facts) {
  boost::json::object object;
  for (const Fact& fact : facts) {
    object[fact.key] = fact.value;
  }
  fmt::print("{}\n", boost::json::serialize(object));
}

void PrintText(const std::vector<Fact>& facts) {
  for (const Fact& fact : facts) {
    fmt::print("{:<26} {}\n", fact.label, fact.text);
  }
}

absl::Status Inspect(const InspectOptions& options) {
  ZP_ASSIGN_OR_RETURN(const spec::ModelSpec spec, ReadSpec(options.path));
  std::vector<Fact> facts;
  for (const auto& group : {ShapeFacts(spec), SizeFacts(spec), FlopFacts(spec)}) {
    facts.insert(facts.end(), group.begin(), group.end());
  }
  options.json ? PrintJson(facts) : PrintText(facts);
  return absl::OkStatus();
}

}  // namespace

void AddInspectCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("inspect", "Show a model's shapes, parameters, FLOPs and bytes");
  auto options = std::make_shared<InspectOptions>();
  command->add_option("path", options->path, "A Hugging Face model folder, or a config.json")
      ->required();
  command->add_flag("--json", options->json, "One JSON object instead of a table");
  command->callback([options] { ExitOnError(Inspect(*options)); });
}

}  // namespace zp::apps
