// The same bits from memory, from files, and from both, on one rank or several.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "checkpoint/packed_experts.h"
#include "checkpoint/synthetic.h"
#include "checkpoint/testing.h"
#include "engine/engine.h"
#include "engine/host_model.h"
#include "engine/odd_spec.h"
#include "fabric/memory_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/pack_checkpoint.h"
#include "ops/cpu/cpu_kernels.h"

namespace zp::engine {
namespace {

namespace fs = std::filesystem;
using spec::DType;
using testing::HasSubstr;

// The activations, and whether the checkpoint's experts are 8-bit numbers. Those stay 8-bit in the
// packed directory; in memory, from a checkpoint that is not packed, they are wide.
struct StreamingCase {
  DType dtype;
  bool is_fp8;
};

class StreamingTest : public testing::TestWithParam<StreamingCase> {
 protected:
  DType dtype() const { return GetParam().dtype; }
  std::optional<spec::Fp8Blocks> fp8_blocks() const {
    return GetParam().is_fp8 ? std::optional(spec::Fp8Blocks{16, 10}) : std::nullopt;
  }
  std::unique_ptr<checkpoint::Checkpoint> CreateCheckpoint() const {
    return checkpoint::CreateSynthetic(spec_, 3, source(), fp8_blocks());
  }

  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "zp_streaming_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    ASSERT_TRUE(checkpoint::WriteSyntheticFiles(spec_, source(), fp8_blocks()).ok());
    base::ThreadPool pool(2);
    const auto kernels = ops::cpu::CreateKernels(dtype(), pool);
    const auto packed = model::PackCheckpoint(
        *CreateCheckpoint(), **kernels, pool, packed_directory(), [](const model::PackProgress&) {
        });
    ASSERT_TRUE(packed.ok()) << packed.status();
    expert_bytes_ =
        (*kernels)->expert_layout(spec_.model_dim, spec_.expert_dim, fp8_blocks()).bytes;
    wide_expert_bytes_ = (*kernels)->expert_layout(spec_.model_dim, spec_.expert_dim).bytes;
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string source() const { return root_ + "/source"; }
  std::string packed_directory() const { return root_ + "/packed"; }

  // Experts of each layer that fit beside the windows.
  int64_t BudgetFor(int32_t kept, int32_t rank_count, int32_t slots) const {
    return BudgetFor(expert_bytes_, kept, rank_count, slots);
  }
  int64_t BudgetFor(size_t expert_bytes, int32_t kept, int32_t rank_count, int32_t slots) const {
    return static_cast<int64_t>(expert_bytes) *
           (6 * kept + int64_t{rank_count} * slots * (spec_.expert_count - kept));
  }

  absl::StatusOr<std::shared_ptr<const HostModel>> LoadPacked(const HostModelOptions& options) {
    const auto checkpoint = checkpoint::Checkpoint::Open(packed_directory());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return HostModel::Load(**checkpoint, options);
  }

  std::vector<protocol::Work> RandomWorks(uint32_t seed) const {
    std::mt19937 random(seed);
    std::vector<protocol::Work> works;
    for (int i = 0; i < 6; ++i) {
      protocol::Sequence sequence;
      for (size_t token = 0; token < 1 + random() % 90; ++token) {
        sequence.tokens.push_back(static_cast<spec::TokenId>(random() % spec_.vocab_count));
      }
      const auto length = static_cast<int32_t>(sequence.tokens.size());
      sequence.rows.push_back({.position = length - 1,
                               .columns = {1, 7, 300},
                               .full_vocabulary = true,
                               .top_count = 3});
      works.push_back({.request_id = "", .sequences = {std::move(sequence)}});
    }
    return works;
  }

  // All numbers of all answers of a pass; adds what the prefix cache saved.
  static std::vector<float> Run(Engine& engine,
                                const std::vector<protocol::Work>& works,
                                int64_t* cached_tokens = nullptr) {
    std::vector<const protocol::Work*> batch;
    for (const protocol::Work& work : works) {
      batch.push_back(&work);
    }
    std::vector<float> numbers;
    const BatchResult result = engine.Run(batch);
    if (cached_tokens != nullptr) {
      *cached_tokens += result.report.cached_tokens;
    }
    for (const auto& work : result.works) {
      EXPECT_TRUE(work.ok()) << work.status();
      for (const protocol::Row& row : work->sequences[0].rows) {
        numbers.insert(numbers.end(), row.column_logits.begin(), row.column_logits.end());
        numbers.push_back(row.log_sum_exp);
      }
    }
    return numbers;
  }

  const spec::ModelSpec spec_ = OddSpec({true, true, false, true, true, true, true});
  std::string root_;
  size_t expert_bytes_ = 0;
  size_t wide_expert_bytes_ = 0;  // in memory, from a checkpoint that is not packed
};

TEST_P(StreamingTest, AnswersAreBitEqualFromAnyPlacement) {
  const auto resident = Engine::Create(
      *HostModel::Load(*CreateCheckpoint(), {.activation_dtype = dtype()}), {.thread_count = 2});
  ASSERT_TRUE(resident.ok()) << resident.status();
  const std::vector<std::vector<protocol::Work>> passes = {
      RandomWorks(1), RandomWorks(2), RandomWorks(3)};
  std::vector<std::vector<float>> expected;
  for (const auto& works : passes) {
    expected.push_back(Run(**resident, works));
  }
  for (const int32_t slots : {2, 3}) {
    for (const int32_t kept : {0, 1, 6, 12, 13}) {
      const auto host = LoadPacked({.activation_dtype = dtype(),
                                    .expert_memory_bytes = BudgetFor(kept, 1, slots),
                                    .window_slot_count = slots});
      ASSERT_TRUE(host.ok()) << host.status();
      EXPECT_NEAR((*host)->resident_fraction(), kept / 13.0, 0.03);
      const auto engine = Engine::Create(*host, {.thread_count = 2});
      ASSERT_TRUE(engine.ok()) << engine.status();
      for (size_t pass = 0; pass < passes.size(); ++pass) {
        EXPECT_EQ(Run(**engine, passes[pass]), expected[pass]) << kept << " kept";
      }
    }
  }
}

// However many chunks a layer goes in, its bank comes once.
TEST_P(StreamingTest, ThePassReportCountsEachGatheredByteOnce) {
  const auto host =
      LoadPacked({.activation_dtype = dtype(), .expert_memory_bytes = BudgetFor(3, 1, 2)});
  ASSERT_TRUE(host.ok()) << host.status();
  const auto engine = Engine::Create(*host, {.thread_count = 1, .chunk_tokens = 5});
  const std::vector<protocol::Work> works = RandomWorks(4);
  const protocol::Work* const batch[] = {&works[0], &works[1], &works[2]};
  const PassReport report = (*engine)->Run(batch).report;
  ASSERT_GT(report.computed_tokens, 10);
  int64_t layer_bytes = 0;
  for (const LayerReport& layer : report.layers) {
    layer_bytes += layer.gathered_bytes;
  }
  EXPECT_EQ(layer_bytes, static_cast<int64_t>(6 * 10 * expert_bytes_));
  EXPECT_EQ(report.gathered_bytes_by_source.at("file"), layer_bytes);
}

TEST_P(StreamingTest, RanksOfOneProcessAnswerAlikeAtTheSameTime) {
  constexpr int32_t kRanks = 4;
  const std::vector<protocol::Work> works = RandomWorks(5);
  std::vector<float> expected;
  for (const int32_t kept : {13, 4}) {
    const auto host =
        LoadPacked({.activation_dtype = dtype(),
                    .rank_count = kRanks,
                    .expert_memory_bytes = kept == 13 ? BudgetFor(13, 0, 0) : int64_t{1} << 30});
    ASSERT_TRUE(host.ok()) << host.status();
    std::vector<std::vector<float>> answers(kRanks);
    {
      std::vector<std::jthread> threads;
      for (int32_t rank = 0; rank < kRanks; ++rank) {
        threads.emplace_back([&, rank] {
          const auto engine = Engine::Create(*host, {.rank = rank, .thread_count = 1});
          for (int pass = 0; pass < 3; ++pass) {
            answers[rank] = Run(**engine, works);
          }
        });
      }
    }
    for (const std::vector<float>& answer : answers) {
      if (expected.empty()) {
        expected = answer;
      }
      EXPECT_EQ(answer, expected);
    }
  }
}

TEST_P(StreamingTest, RanksWithPrefixCachesAnswerAlikeOverStreamedExperts) {
  constexpr int32_t kRanks = 2;
  const auto resident = Engine::Create(
      *HostModel::Load(*CreateCheckpoint(), {.activation_dtype = dtype()}), {.thread_count = 1});
  ASSERT_TRUE(resident.ok()) << resident.status();
  const auto host = LoadPacked({.activation_dtype = dtype(),
                                .rank_count = kRanks,
                                .expert_memory_bytes = BudgetFor(4, kRanks, 2)});
  ASSERT_TRUE(host.ok()) << host.status();
  // Passes that come back; the second rank's cache holds a block or two.
  const std::vector<uint32_t> seeds = {1, 2, 1, 1, 3, 2, 1};
  std::vector<std::vector<float>> expected;
  for (const uint32_t seed : seeds) {
    expected.push_back(Run(**resident, RandomWorks(seed)));
  }
  std::vector<int64_t> cached_tokens(kRanks);
  {
    std::vector<std::jthread> threads;
    for (int32_t rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([&, rank] {
        const auto engine = Engine::Create(*host,
                                           {.rank = rank,
                                            .thread_count = 1,
                                            .prefix_cache_bytes = rank == 0 ? 64 << 20 : 30 << 10});
        ASSERT_TRUE(engine.ok()) << engine.status();
        for (size_t pass = 0; pass < seeds.size(); ++pass) {
          EXPECT_EQ(Run(**engine, RandomWorks(seeds[pass]), &cached_tokens[rank]), expected[pass]);
        }
      });
    }
  }
  EXPECT_GT(cached_tokens[0], 0);
  EXPECT_LE(cached_tokens[1], cached_tokens[0]);
}

// Hosts in one process, each with its memory held out to the others.
class Cluster {
 public:
  Cluster(std::vector<std::shared_ptr<const HostModel>> hosts) : hosts_(std::move(hosts)) {
    for (const auto& host : hosts_) {
      const fabric::MemoryRegion region{.object = 0, .bytes = host->kept_bytes()};
      auto server = fabric::ServeMemory(std::span(&region, 1), {});
      EXPECT_TRUE(server.ok()) << server.status();
      servers_.push_back(*std::move(server));
      auto engine = Engine::Create(host, {.thread_count = 1});
      EXPECT_TRUE(engine.ok()) << engine.status();
      engines_.push_back(*std::move(engine));
    }
    for (int32_t host = 0; host < host_count(); ++host) {
      ConnectAll(host);
    }
  }

  int32_t host_count() const { return static_cast<int32_t>(hosts_.size()); }
  Engine& engine(int32_t host) { return *engines_[host]; }

  void Kill(int32_t host) { servers_[host].reset(); }
  void Revive(int32_t host) {
    const fabric::MemoryRegion region{.object = 0, .bytes = hosts_[host]->kept_bytes()};
    servers_[host] = *fabric::ServeMemory(std::span(&region, 1), {});
    ConnectAll(host);
  }

 private:
  void ConnectAll(int32_t host) {
    for (int32_t other = 0; other < host_count(); ++other) {
      if (other != host) {
        EXPECT_TRUE(engines_[other]->ConnectHost(host, servers_[host]->advertisement()).ok());
      }
    }
  }

  const std::vector<std::shared_ptr<const HostModel>> hosts_;
  std::vector<std::unique_ptr<fabric::MemoryServer>> servers_;
  std::vector<std::unique_ptr<Engine>> engines_;
};

TEST_P(StreamingTest, HostsThatShareTheExpertsAnswerAlike) {
  const std::vector<protocol::Work> works = RandomWorks(11);
  const auto alone = Engine::Create(*LoadPacked({.activation_dtype = dtype()}), {});
  const std::vector<float> expected = Run(**alone, works);
  for (const int32_t host_count : {2, 4}) {
    for (const int32_t redundancy : {1, 2}) {
      const int32_t kept = (spec_.expert_count * redundancy + host_count - 1) / host_count;
      std::vector<std::shared_ptr<const HostModel>> hosts;
      for (int32_t host = 0; host < host_count; ++host) {
        auto loaded = LoadPacked({.activation_dtype = dtype(),
                                  .expert_memory_bytes = BudgetFor(kept, 1, 2),
                                  .host_count = host_count,
                                  .host = host,
                                  .redundancy = redundancy});
        ASSERT_TRUE(loaded.ok()) << loaded.status();
        hosts.push_back(*std::move(loaded));
      }
      Cluster cluster(std::move(hosts));
      for (int32_t host = 0; host < host_count; ++host) {
        EXPECT_EQ(Run(cluster.engine(host), works), expected) << host << " of " << host_count;
      }
      // A host that is lost costs bandwidth, not answers; and it may come back.
      cluster.Kill(1);
      EXPECT_EQ(Run(cluster.engine(0), works), expected);
      EXPECT_EQ(Run(cluster.engine(0), works), expected);
      cluster.Revive(1);
      EXPECT_EQ(Run(cluster.engine(0), works), expected);
    }
  }
}

TEST_P(StreamingTest, ACorruptShardFailsThePassAndNamesFileAndExpert) {
  const auto host =
      LoadPacked({.activation_dtype = dtype(), .expert_memory_bytes = BudgetFor(2, 1, 2)});
  ASSERT_TRUE(host.ok()) << host.status();
  const auto engine = Engine::Create(*host, {.thread_count = 1});
  const std::vector<protocol::Work> works = RandomWorks(9);
  const std::vector<float> before = Run(**engine, works);
  const std::string shard = packed_directory() + "/" + checkpoint::PackedFileName(4);
  const auto offset = static_cast<std::streamoff>(7 * expert_bytes_ + 100);
  char byte = 0;
  const auto flip = [&] {
    std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(offset);
    file.get(byte);
    file.seekp(offset);
    file.put(static_cast<char>(byte ^ 1));
  };
  flip();
  const protocol::Work* const batch[] = {&works[0]};
  const BatchResult result = (*engine)->Run(batch);
  EXPECT_EQ(result.works[0].status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(base::MessageOf(result.works[0].status()), HasSubstr("layer 4, expert 7"));
  flip();  // mended: the engine goes on
  Run(**engine, works);
  EXPECT_EQ(Run(**engine, works), before);
}

TEST_P(StreamingTest, TooLittleMemoryIsSaidBeforeAnythingRuns) {
  const auto host = LoadPacked({.activation_dtype = dtype(), .expert_memory_bytes = 4096});
  EXPECT_EQ(host.status().code(), absl::StatusCode::kResourceExhausted);
  const auto unpacked = HostModel::Load(
      *CreateCheckpoint(),
      {.activation_dtype = dtype(), .expert_memory_bytes = BudgetFor(wide_expert_bytes_, 3, 1, 2)});
  EXPECT_EQ(unpacked.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(base::MessageOf(unpacked.status()), HasSubstr("zeroprefill pack"));
}

// A packed directory says what its experts are: an index that says otherwise is not believed.
TEST_P(StreamingTest, AnIndexThatLiesAboutTheNumbersIsRefused) {
  const std::string index = packed_directory() + "/experts.json";
  const std::string text = checkpoint::ReadText(index);
  const auto expect_refused = [&](std::string_view from, std::string_view to) {
    checkpoint::EditText(index, from, to);
    const auto host = LoadPacked({.activation_dtype = dtype()});
    EXPECT_FALSE(host.ok()) << to;
    EXPECT_THAT(base::MessageOf(host.status()), HasSubstr(packed_directory()));
    checkpoint::WriteText(index, text);
  };
  if (!fp8_blocks().has_value()) {
    expect_refused("\"version\":1", "\"version\":2");
    expect_refused("\"version\":1,",
                   "\"version\":2,\"fp8_block_size\":[16,10],\"scales_offset\":0,");
    return;
  }
  expect_refused("\"version\":2", "\"version\":1");
  expect_refused("\"fp8_block_size\":[16,10]", "\"fp8_block_size\":[10,16]");
  expect_refused("fp8 in blocks of 16 x 10", "fp8 in blocks of 16 x 11");
  const std::string field = "\"scales_offset\":";
  const size_t begin = text.find(field) + field.size();
  const std::string offset = text.substr(begin, text.find(',', begin) - begin);
  for (const size_t wrong : {size_t{0}, expert_bytes_ - 64, expert_bytes_, size_t{1} << 40}) {
    expect_refused(field + offset, field + std::to_string(wrong));
  }
  EXPECT_TRUE(LoadPacked({.activation_dtype = dtype()}).ok());
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         StreamingTest,
                         testing::Values(StreamingCase{DType::kBf16, false},
                                         StreamingCase{DType::kF32, false},
                                         StreamingCase{DType::kBf16, true},
                                         StreamingCase{DType::kF32, true}),
                         [](const auto& info) {
                           return std::string(NameOf(info.param.dtype)) +
                                  (info.param.is_fp8 ? "_fp8" : "");
                         });

}  // namespace
}  // namespace zp::engine
