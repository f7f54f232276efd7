#include "checkpoint/checkpoint.h"

#include <random>

#include "checkpoint/safetensors.h"
#include "checkpoint/synthetic.h"
#include "checkpoint/tensor_table.h"
#include "checkpoint/testing.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::checkpoint {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// A small checkpoint in several shards on disk, for each test to break in its own way.
class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override { Write(TinySpec()); }

  void Write(const spec::ModelSpec& spec) {
    std::filesystem::remove_all(directory_.path());
    const absl::Status status = WriteSynthetic(
        spec, 1, directory_.path(), [](int64_t, int64_t) {}, /*max_shard_bytes=*/20'000);
    ASSERT_TRUE(status.ok()) << status;
  }

  absl::Status OpenStatus() { return Checkpoint::Open(directory_.path()).status(); }

  void ExpectError(absl::StatusCode code, const std::string& message) {
    const absl::Status status = OpenStatus();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(base::MessageOf(status), HasSubstr(message));
  }

  void EditConfig(std::string_view from, std::string_view to) { EditText(config_, from, to); }

  // Adds a field to config.json.
  void AddToConfig(std::string_view field) { EditConfig("{", fmt::format("{{{},", field)); }

  std::string LastShard() const {
    std::string last;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
      if (entry.path().extension() == ".safetensors") {
        last = std::max(last, entry.path().string());
      }
    }
    return last;
  }

  const TemporaryDirectory directory_;
  const std::string config_ = directory_.File("config.json");
  const std::string index_ = directory_.File("model.safetensors.index.json");
};

TEST_F(CheckpointTest, ReadsTheSpecBack) {
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const spec::ModelSpec& spec = (*checkpoint)->spec();
  const spec::ModelSpec expected = TinySpec();
  EXPECT_EQ(spec.family, "qwen3_moe");
  EXPECT_EQ(spec.layer_count, expected.layer_count);
  EXPECT_EQ(spec.model_dim, expected.model_dim);
  EXPECT_EQ(spec.vocab_count, expected.vocab_count);
  EXPECT_EQ(spec.max_position_count, expected.max_position_count);
  EXPECT_EQ(spec.query_head_count, expected.query_head_count);
  EXPECT_EQ(spec.kv_head_count, expected.kv_head_count);
  EXPECT_EQ(spec.head_dim, expected.head_dim);
  EXPECT_TRUE(spec.has_qk_norm);
  EXPECT_EQ(spec.rope_theta, expected.rope_theta);
  EXPECT_EQ(spec.expert_count, expected.expert_count);
  EXPECT_EQ(spec.experts_per_token, expected.experts_per_token);
  EXPECT_EQ(spec.expert_dim, expected.expert_dim);
  EXPECT_TRUE(spec.normalize_top_k);
  EXPECT_EQ(spec.dense_ffn_dim, expected.dense_ffn_dim);
  EXPECT_EQ(spec.layer_is_moe, expected.layer_is_moe);
  EXPECT_EQ(spec.rms_epsilon, expected.rms_epsilon);
  EXPECT_FALSE(spec.tied_embeddings);
  EXPECT_EQ((*checkpoint)->directory(), directory_.path());
  EXPECT_EQ((*checkpoint)->TensorName(TensorRole::kExpertDown, 2, 4),
            "model.layers.2.mlp.experts.4.down_proj.weight");
}

TEST_F(CheckpointTest, KeepsReleasedTensorsReadable) {
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const TensorView& view = (*checkpoint)->Tensor(TensorRole::kEmbedding);
  const std::byte first = view.bytes[0];
  (*checkpoint)->Release(view);
  EXPECT_EQ(view.bytes[0], first);
}

TEST_F(CheckpointTest, ReadsTiedEmbeddings) {
  spec::ModelSpec spec = TinySpec();
  spec.tied_embeddings = true;
  Write(spec);
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Tensor(TensorRole::kOutputHead).bytes.data(),
            (*checkpoint)->Tensor(TensorRole::kEmbedding).bytes.data());
}

TEST_F(CheckpointTest, IgnoresTheHeadThatTiedEmbeddingsMakeRedundant) {
  EditConfig("\"tie_word_embeddings\":false", "\"tie_word_embeddings\":true");
  EXPECT_TRUE(OpenStatus().ok()) << OpenStatus();
}

TEST_F(CheckpointTest, SaysThatThereIsNoModel) {
  std::filesystem::remove(config_);
  ExpectError(absl::StatusCode::kNotFound, config_ + ": No such file");
}

TEST_F(CheckpointTest, SaysThatThereAreNoWeights) {
  std::filesystem::remove(index_);
  ExpectError(absl::StatusCode::kNotFound,
              "has neither a model.safetensors nor a model.safetensors.index.json");
}

TEST_F(CheckpointTest, NamesAMissingShard) {
  const std::string shard = LastShard();
  std::filesystem::remove(shard);
  ExpectError(absl::StatusCode::kNotFound, shard + ": is missing, though " + index_ + " names it");
}

TEST_F(CheckpointTest, NamesATruncatedShard) {
  const std::string shard = LastShard();
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  ExpectError(absl::StatusCode::kInvalidArgument, shard + ": tensor 'lm_head.weight': its bytes");
}

TEST_F(CheckpointTest, NamesAShardThatLacksWhatTheIndexSays) {
  EditText(index_, "\"model.norm.weight\"", "\"model.worm.weight\"");
  ExpectError(absl::StatusCode::kNotFound, "has no tensor 'model.worm.weight', though");
}

TEST_F(CheckpointTest, RefusesShardsOutsideTheDirectory) {
  EditText(index_, "\"model-00001-of", "\"../model-00001-of");
  ExpectError(absl::StatusCode::kInvalidArgument, "which is no plain file name");
}

TEST_F(CheckpointTest, RefusesATensorThatTwoShardsHave) {
  std::filesystem::copy_file(LastShard(), directory_.File("twin.safetensors"));
  EditText(index_, "\"weight_map\":{", "\"weight_map\":{\"x\":\"twin.safetensors\",");
  ExpectError(absl::StatusCode::kInvalidArgument, "is in two files");
}

TEST_F(CheckpointTest, NamesAMissingTensor) {
  EditConfig("\"num_hidden_layers\":3", "\"num_hidden_layers\":4");
  ExpectError(absl::StatusCode::kNotFound,
              "tensor 'model.layers.3.input_layernorm.weight' of shape [20], which the model of "
              "its config.json needs, is in no file");
}

TEST_F(CheckpointTest, NamesATensorThatContradictsTheConfig) {
  EditConfig("\"moe_intermediate_size\":12", "\"moe_intermediate_size\":13");
  ExpectError(absl::StatusCode::kInvalidArgument,
              "tensor 'model.layers.0.mlp.experts.0.gate_proj.weight' has shape [12, 20], but "
              "config.json promises [13, 20]");
}

TEST_F(CheckpointTest, NamesATensorThatHasNoPlace) {
  EditConfig("\"num_experts\":5", "\"num_experts\":4");
  // The router is met first.
  ExpectError(absl::StatusCode::kInvalidArgument,
              "tensor 'model.layers.0.mlp.gate.weight' has shape [5, 20], but config.json promises "
              "[4, 20]");
  Write(TinySpec());
  EditConfig("\"num_hidden_layers\":3", "\"num_hidden_layers\":2");
  ExpectError(absl::StatusCode::kInvalidArgument,
              "has no place in the qwen3_moe model that config.json describes");
}

TEST_F(CheckpointTest, ReadsExpertsFusedIntoOneTensor) {
  // Two experts of gate [2, 2], up [2, 2], down [2, 2], as transformers 5 keeps them in memory.
  spec::ModelSpec spec = TinySpec();
  spec.layer_count = 1;
  spec.layer_is_moe = {true};
  Write(spec);
  const auto separate = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(separate.ok()) << separate.status();
  std::string header = "{";
  std::string data;
  const auto add =
      [&](const std::string& name, const std::string& shape, const std::string& bytes) {
        header += fmt::format(R"({}"{}":{{"dtype":"BF16","shape":{},"data_offsets":[{},{}]}})",
                              header.size() == 1 ? "" : ",",
                              name,
                              shape,
                              data.size(),
                              data.size() + bytes.size());
        data += bytes;
      };
  const auto bytes_of = [&](TensorRole role, int32_t layer = -1, int32_t expert = -1) {
    const TensorView& view = (*separate)->Tensor(role, layer, expert);
    return std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
  };
  for (const auto& [role, layer, expert] : TensorKeys(spec)) {
    if (expert < 0) {
      const std::vector<int64_t> shape = ShapeOf(spec, role);
      add((*separate)->TensorName(role, layer),
          shape.size() == 1 ? fmt::format("[{}]", shape[0])
                            : fmt::format("[{},{}]", shape[0], shape[1]),
          bytes_of(role, layer));
    }
  }
  std::string gate_up;
  std::string down;
  for (int32_t expert = 0; expert < spec.expert_count; ++expert) {
    gate_up += bytes_of(TensorRole::kExpertGate, 0, expert);
    gate_up += bytes_of(TensorRole::kExpertUp, 0, expert);
    down += bytes_of(TensorRole::kExpertDown, 0, expert);
  }
  add("model.layers.0.mlp.experts.gate_up_proj", "[5,24,20]", gate_up);
  add("model.layers.0.mlp.experts.down_proj", "[5,20,12]", down);
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t header_bytes = header.size();
  WriteText(directory_.File("model.safetensors"),
            std::string(reinterpret_cast<const char*>(&header_bytes), 8) + header + data);

  const auto fused = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(fused.ok()) << fused.status();
  for (const auto& [role, layer, expert] : TensorKeys(spec)) {
    const TensorView& view = (*fused)->Tensor(role, layer, expert);
    EXPECT_EQ(view.shape, ShapeOf(spec, role));
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size()),
              bytes_of(role, layer, expert));
  }
}

TEST_F(CheckpointTest, SurvivesRandomMutationsOfAShard) {
  const std::string shard = LastShard();
  const std::string original = ReadText(shard);
  std::mt19937 random(11);
  for (int round = 0; round < 500; ++round) {
    std::string text = original;
    for (int edit = 0; edit < 3; ++edit) {
      text[random() % std::min<size_t>(text.size(), 2000)] = static_cast<char>(random());
    }
    text.resize(random() % 4 == 0 ? random() % text.size() : text.size());
    WriteText(shard, text);
    const absl::Status status = OpenStatus();
    EXPECT_TRUE(status.ok() || !status.message().empty());
  }
}

}  // namespace
}  // namespace zp::checkpoint
