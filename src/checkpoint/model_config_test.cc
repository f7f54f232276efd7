#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::checkpoint {
namespace {

using testing::HasSubstr;

// As transformers 4 writes it, with the values of Qwen3-30B-A3B.
constexpr const char* kClassicConfig = R"({
  "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
  "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
  "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
  "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
  "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
  "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": null,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_sliding_window": false,
  "vocab_size": 151936
})";

// As transformers 5 writes it; no head_dim.
constexpr const char* kNewConfig = R"({
  "architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 2, "dtype": "float16",
  "hidden_size": 64, "intermediate_size": 100, "max_position_embeddings": 512,
  "mlp_only_layers": [3], "model_type": "qwen3_moe", "moe_intermediate_size": 24,
  "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 6,
  "num_key_value_heads": 2, "num_local_experts": 6, "rms_norm_eps": 1e-05,
  "rope_parameters": {"rope_theta": 5000, "rope_type": "default"}, "sliding_window": null,
  "vocab_size": 300
})";

class ModelConfigTest : public testing::Test {
 protected:
  absl::StatusOr<spec::ModelSpec> Read(const std::string& text) {
    WriteText(path_, text);
    return ReadModelSpec(path_);
  }

  // The error of the classic config with `from` replaced by `to`.
  absl::Status Edited(const std::string& from, const std::string& to) {
    std::string text = kClassicConfig;
    return Read(text.replace(text.find(from), from.size(), to)).status();
  }

  void ExpectError(const absl::Status& status, absl::StatusCode code, const std::string& message) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(base::MessageOf(status), HasSubstr(path_ + ": "));
    EXPECT_THAT(base::MessageOf(status), HasSubstr(message));
  }
  void ExpectInvalid(const std::string& from, const std::string& to, const std::string& message) {
    ExpectError(Edited(from, to), absl::StatusCode::kInvalidArgument, message);
  }
  void ExpectUnsupported(const std::string& from,
                         const std::string& to,
                         const std::string& message) {
    ExpectError(Edited(from, to), absl::StatusCode::kUnimplemented, message);
  }

  const TemporaryDirectory directory_;
  const std::string path_ = directory_.File("config.json");
};

TEST_F(ModelConfigTest, ReadsAClassicConfig) {
  const auto spec = Read(kClassicConfig);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->layer_count, 48);
  EXPECT_EQ(spec->model_dim, 2048);
  EXPECT_EQ(spec->head_dim, 128);
  EXPECT_EQ(spec->rope_theta, 1e6);
  EXPECT_EQ(spec->expert_count, 128);
  EXPECT_TRUE(spec->normalize_top_k);
  EXPECT_EQ(spec->weight_dtype, spec::DType::kBf16);
  EXPECT_EQ(spec->layer_is_moe, std::vector<bool>(48, true));
}

TEST_F(ModelConfigTest, ReadsAConfigOfNewerTransformers) {
  const auto spec = Read(kNewConfig);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->head_dim, 16);
  EXPECT_EQ(spec->rope_theta, 5000);
  EXPECT_EQ(spec->expert_count, 6);
  EXPECT_FALSE(spec->normalize_top_k);
  EXPECT_EQ(spec->weight_dtype, spec::DType::kF16);
  EXPECT_EQ(spec->rms_epsilon, 1e-5f);
  EXPECT_EQ(spec->layer_is_moe, (std::vector<bool>{false, true, false, false, false, true}));
}

TEST_F(ModelConfigTest, NamesFieldAndLimit) {
  ExpectInvalid(
      "\"hidden_size\": 2048,", "", "'hidden_size' is missing, it must be a whole number");
  ExpectInvalid("2048", "-5", "'hidden_size' must be a whole number from 1 to 131072, but is -5");
  ExpectInvalid("2048", "\"2048\"", "but is \"2048\"");
  ExpectInvalid("2048", "2048.5", "'hidden_size' must be a whole number");
  ExpectInvalid("2048", "99999999999999999999", "'hidden_size' must be a whole number");
  ExpectInvalid(
      "\"num_experts_per_tok\": 8", "\"num_experts_per_tok\": 129", "from 1 to 128, but is 129");
  ExpectInvalid(
      "\"num_key_value_heads\": 4", "\"num_key_value_heads\": 5", "does not divide the 32");
  ExpectInvalid("\"head_dim\": 128", "\"head_dim\": 127", "'head_dim' is 127, but must be even");
  ExpectInvalid(
      "\"mlp_only_layers\": []", "\"mlp_only_layers\": [48]", "'mlp_only_layers' must be a list");
  ExpectInvalid("1e-06", "0", "'rms_norm_eps' must be a number above zero, but is 0");
  ExpectInvalid(
      "\"norm_topk_prob\": true", "\"norm_topk_prob\": 1", "must be true or false, but is 1");
  ExpectInvalid("\"num_experts\": 128",
                "\"num_experts\": 128, \"num_local_experts\": 64",
                "'num_experts' is 128, but num_local_experts is 64");
  ExpectInvalid("\"qwen3_moe\"", "7", "'model_type' must be a string, but is 7");
}

TEST_F(ModelConfigTest, DenseLayersNeedTheirWidth) {
  std::string text = kClassicConfig;
  text.replace(text.find("\"mlp_only_layers\": []"), 21, "\"mlp_only_layers\": [0]");
  text.replace(text.find("\"intermediate_size\": 6144,"), 26, "");
  ExpectError(
      Read(text).status(), absl::StatusCode::kInvalidArgument, "'intermediate_size' is missing");
}

TEST_F(ModelConfigTest, SaysWhatIsNotSupported) {
  ExpectUnsupported("\"qwen3_moe\"",
                    "\"mixtral\"",
                    "model type 'mixtral' is not supported; supported: 'qwen3_moe'");
  ExpectUnsupported(
      "Qwen3MoeForCausalLM",
      "Qwen3MoeForTokenClassification",
      "'architectures' is [Qwen3MoeForTokenClassification], but only Qwen3MoeForCausalLM");
  ExpectUnsupported("\"rope_scaling\": null",
                    R"("rope_scaling": {"type": "yarn", "factor": 4.0})",
                    "'rope_scaling.type' is 'yarn', but only 'default' is supported");
  ExpectUnsupported("\"rope_scaling\": null",
                    R"("rope_parameters": {"rope_type": "linear"})",
                    "'rope_parameters.rope_type' is 'linear'");
  ExpectUnsupported("\"attention_bias\": false",
                    "\"attention_bias\": true",
                    "'attention_bias' is true, which is not supported");
  ExpectUnsupported("\"use_sliding_window\": false",
                    "\"use_sliding_window\": true",
                    "'use_sliding_window' is true");
  ExpectUnsupported("silu", "gelu", "'hidden_act' is 'gelu', but only 'silu' is supported");
  ExpectUnsupported("\"bfloat16\"", "\"int8\"", "'torch_dtype' is 'int8'");
  ExpectUnsupported("\"sliding_window\": null",
                    R"("quantization_config": {"bits": 4})",
                    "'quantization_config.quant_method' is 'none', but only 'fp8' is supported");
}

TEST_F(ModelConfigTest, RefusesWhatIsNoJson) {
  ExpectError(Read("").status(), absl::StatusCode::kInvalidArgument, "is no JSON");
  ExpectError(Read("{\"a\":").status(), absl::StatusCode::kInvalidArgument, "is no JSON");
  ExpectError(Read("[1]").status(), absl::StatusCode::kInvalidArgument, "must hold a JSON object");
  ExpectError(
      Read(std::string(100'000, '[')).status(), absl::StatusCode::kInvalidArgument, "is no JSON");
  ExpectError(Read(std::string(5'000'000, ' ')).status(),
              absl::StatusCode::kInvalidArgument,
              "the limit is 4194304");
}

}  // namespace
}  // namespace zp::checkpoint
