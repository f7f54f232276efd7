// Tokens that go to the experts give the answers of experts that come to the tokens.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "checkpoint/synthetic.h"
#include "engine/engine.h"
#include "engine/host_model.h"
#include "engine/odd_spec.h"
#include "fabric/exchange_local.h"
#include "fabric/exchange_mesh.h"
#include "fabric/exchange_tcp.h"
#include "fabric/socket_address.h"
#include "gtest/gtest.h"
#include "model/dispatched_moe.h"

namespace zp::engine {
namespace {

using spec::DType;
using std::chrono::milliseconds;

enum class Transport { kLocal, kTcp };

spec::ModelSpec FourHeads(spec::ModelSpec spec) {
  spec.query_head_count = 4;
  spec.kv_head_count = 2;
  return spec;
}

std::vector<std::unique_ptr<fabric::Exchange>> MakeExchanges(Transport transport,
                                                             int32_t rank_count,
                                                             milliseconds time_out) {
  if (transport == Transport::kLocal) {
    return fabric::MakeLocalExchanges(rank_count, time_out);
  }
  std::vector<fabric::Descriptor> listeners;
  std::vector<fabric::RankAddress> addresses;
  for (int32_t rank = 0; rank < rank_count; ++rank) {
    listeners.push_back(*fabric::ListenForRanks({.host = "127.0.0.1"}));
    addresses.push_back({"127.0.0.1", fabric::PortOf(listeners.back().number())});
  }
  std::vector<std::unique_ptr<fabric::Exchange>> exchanges(rank_count);
  std::vector<std::jthread> threads;
  for (int32_t rank = 0; rank < rank_count; ++rank) {
    threads.emplace_back([&, rank] {
      auto sockets = fabric::ConnectMesh(listeners[rank], rank, addresses, milliseconds(10'000));
      ASSERT_TRUE(sockets.ok()) << sockets.status();
      exchanges[rank] = fabric::MakeTcpExchange(std::move(*sockets), rank, time_out);
    });
  }
  threads.clear();
  return exchanges;
}

// The blobs of a resident model, of one rank's experts only.
class LocalBank {
 public:
  LocalBank(const HostModel& host, int32_t rank, int32_t rank_count) {
    const auto provider = host.OpenExperts(0, nullptr);
    const spec::ModelSpec& spec = host.spec();
    layers_.resize(spec.layer_count);
    for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
      if (spec.layer_is_moe[layer]) {
        const experts::GatherTicket ticket = (*provider)->StartGather(layer);
        const auto blobs = (*provider)->Wait(ticket);
        layers_[layer].assign(blobs->begin(), blobs->end());
      }
      for (size_t expert = 0; expert < layers_[layer].size(); ++expert) {
        if (model::OwnerOfExpert(static_cast<int32_t>(expert), spec.expert_count, rank_count) !=
            rank) {
          layers_[layer][expert] = nullptr;
        }
      }
    }
  }
  std::span<const std::byte* const> Layer(int32_t layer) const { return layers_[layer]; }

 private:
  std::vector<std::vector<const std::byte*>> layers_;
};

protocol::Work RandomWork(uint32_t seed, int32_t token_count) {
  std::mt19937 random(seed);
  protocol::Sequence sequence;
  for (int32_t token = 0; token < token_count; ++token) {
    sequence.tokens.push_back(static_cast<spec::TokenId>(random() % 301));
  }
  // A row in the middle too: the last layer runs over asked rows alone.
  if (token_count > 1) {
    sequence.rows.push_back({.position = token_count / 2 - 1, .columns = {4, 5}});
  }
  sequence.rows.push_back(
      {.position = token_count - 1, .columns = {1, 7, 300}, .full_vocabulary = true});
  return {.request_id = "", .sequences = {std::move(sequence)}};
}

std::vector<float> NumbersOf(const protocol::WorkResult& result) {
  std::vector<float> numbers;
  for (const protocol::Row& row : result.sequences[0].rows) {
    numbers.insert(numbers.end(), row.column_logits.begin(), row.column_logits.end());
    if (row.log_sum_exp != 0) {
      numbers.push_back(row.log_sum_exp);
    }
  }
  return numbers;
}

std::vector<float> AnswersOf(Engine& engine, const std::vector<protocol::Work>& works) {
  std::vector<const protocol::Work*> batch;
  for (const protocol::Work& work : works) {
    batch.push_back(&work);
  }
  std::vector<float> numbers;
  for (const auto& work : engine.Run(batch).works) {
    EXPECT_TRUE(work.ok()) << work.status();
    if (work.ok()) {
      const std::vector<float> more = NumbersOf(*work);
      numbers.insert(numbers.end(), more.begin(), more.end());
    }
  }
  return numbers;
}

// One rank of dispatch.
class Rank {
 public:
  Rank(std::shared_ptr<const HostModel> host, std::unique_ptr<fabric::Exchange> exchange)
      : exchange_(std::move(exchange)), bank_(*host, exchange_->rank(), exchange_->rank_count()) {
    const auto make_moe = [&](ops::Kernels& kernels) {
      auto moe = std::make_unique<model::DispatchedMoe>(
          host->spec().layer_is_moe,
          host->expert_layout(),
          model::OwnersOfExperts(host->spec().expert_count, exchange_->rank_count()),
          [this](int32_t layer) { return bank_.Layer(layer); },
          *exchange_,
          kernels);
      moe_ = moe.get();
      return absl::StatusOr<std::unique_ptr<model::MoeBlock>>(std::move(moe));
    };
    engine_ = *Engine::Create(host, {.thread_count = 1, .chunk_tokens = 64}, make_moe);
  }

  Engine& engine() { return *engine_; }
  // The answers; without works the rank serves the others.
  std::vector<float> Pass(const std::vector<protocol::Work>& works) {
    if (!works.empty()) {
      return AnswersOf(*engine_, works);
    }
    model::PassProfile profile;
    profile.Clear(engine_->spec().layer_count, 0);
    const absl::Status status = moe_->ServePass(profile);
    EXPECT_TRUE(status.ok()) << status;
    return {};
  }

 private:
  std::unique_ptr<fabric::Exchange> exchange_;
  LocalBank bank_;
  model::DispatchedMoe* moe_ = nullptr;  // the engine's
  std::unique_ptr<Engine> engine_;
};

using Batches = std::vector<std::vector<protocol::Work>>;  // [rank]

class DispatchTest : public testing::TestWithParam<std::tuple<DType, Transport>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }

  void SetUp() override {
    auto host =
        HostModel::Load(*checkpoint::CreateSynthetic(spec_, 3), {.activation_dtype = dtype()});
    ASSERT_TRUE(host.ok()) << host.status();
    host_ = *host;
    gathered_ = *Engine::Create(host_, {.thread_count = 1});
  }

  std::vector<std::vector<float>> Dispatch(int32_t rank_count, const Batches& batches) {
    auto exchanges = MakeExchanges(std::get<1>(GetParam()), rank_count, milliseconds(60'000));
    std::vector<std::vector<float>> answers(rank_count);
    std::vector<std::jthread> threads;
    for (int32_t rank = 0; rank < rank_count; ++rank) {
      threads.emplace_back([&, rank] {
        Rank one(host_, std::move(exchanges[rank]));
        one.Pass(batches[rank]);
        answers[rank] = one.Pass(batches[rank]);  // buffers of an earlier pass are in use
      });
    }
    threads.clear();
    return answers;
  }

  // The answers of the same engine in f32 with gathering: the truth.
  std::vector<float> TrueAnswers(const std::vector<protocol::Work>& works) {
    if (precise_ == nullptr) {
      precise_ = *Engine::Create(*HostModel::Load(*checkpoint::CreateSynthetic(spec_, 3),
                                                  {.activation_dtype = DType::kF32}),
                                 {.thread_count = 1});
    }
    return AnswersOf(*precise_, works);
  }

  // f32: the sums have another order, nothing else. bf16: gathering rounds activations to 8 bits
  // some eight times a layer; dispatching once more for each partial sum, so its error is of the
  // same size. Single numbers jump where a rounding changes which expert is chosen, so the bound
  // holds for this model and these prompts, not for any: with seven heads for four the errors stand
  // as 2.7 to 1. What proves the bf16 arithmetic, to the bit, is model.dispatched_moe_test.
  void ExpectAsGood(const std::vector<std::vector<float>>& answers, const Batches& batches) {
    double error = 0, gathered_error = 0;
    for (size_t rank = 0; rank < batches.size(); ++rank) {
      const std::vector<float> truth = TrueAnswers(batches[rank]);
      const std::vector<float> gathered = AnswersOf(*gathered_, batches[rank]);
      ASSERT_EQ(answers[rank].size(), truth.size());
      float largest = 0;
      for (const float number : truth) {
        largest = std::max(largest, std::abs(number));
      }
      for (size_t i = 0; i < truth.size(); ++i) {
        if (dtype() == DType::kF32) {
          EXPECT_NEAR(answers[rank][i], truth[i], 1e-5f * largest);
        }
        error += std::pow(answers[rank][i] - truth[i], 2);
        gathered_error += std::pow(gathered[i] - truth[i], 2);
      }
    }
    if (dtype() == DType::kBf16) {
      EXPECT_LE(std::sqrt(error), 1.5 * std::sqrt(gathered_error));
    }
  }

  const spec::ModelSpec spec_ = FourHeads(OddSpec({true, true, false, true, true}));
  std::shared_ptr<const HostModel> host_;
  std::unique_ptr<Engine> gathered_, precise_;
};

TEST_P(DispatchTest, EveryRankAnswersAsWithGathering) {
  for (const int32_t rank_count : {1, 2, 3, 4}) {
    Batches batches(rank_count);
    for (int32_t rank = 0; rank < rank_count; ++rank) {
      for (uint32_t work = 0; work < 12; ++work) {
        batches[rank].push_back(RandomWork(work + 100 * static_cast<uint32_t>(rank), 60));
      }
    }
    const auto answers = Dispatch(rank_count, batches);
    ExpectAsGood(answers, batches);
  }
}

TEST_P(DispatchTest, BatchesMayBeUnevenOrEmptyAndAnAnswerDependsOnItsRequestAlone) {
  const std::vector<protocol::Work> small = {RandomWork(1, 10)};
  const std::vector<protocol::Work> large = {RandomWork(2, 300), RandomWork(3, 200)};
  for (const int32_t rank_count : {2, 3, 4}) {
    Batches batches(rank_count);
    batches[0] = small;
    batches[1] = large;
    const auto answers = Dispatch(rank_count, batches);
    if (dtype() == DType::kF32) {  // six rows of bf16 are too few for a mean error
      ExpectAsGood(answers, batches);
    }
    // Alone, and on another rank: the bits are the same.
    Batches alone(rank_count);
    alone[rank_count - 1] = small;
    EXPECT_EQ(Dispatch(rank_count, alone)[rank_count - 1], answers[0]);
  }
}

TEST_P(DispatchTest, ALostRankFailsThePassOfTheOthers) {
  auto exchanges = MakeExchanges(std::get<1>(GetParam()), 3, milliseconds(60'000));
  std::vector<std::jthread> threads;
  for (int32_t rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      Rank one(host_, std::move(exchanges[rank]));
      const std::vector<protocol::Work> works = {RandomWork(7, 100)};
      EXPECT_FALSE(one.Pass(works).empty());
      if (rank == 2) {
        return;  // and leaves
      }
      const protocol::Work* const batch[] = {&works[0]};
      const BatchResult result = one.engine().Run(batch);
      EXPECT_EQ(result.works[0].status().code(), absl::StatusCode::kUnavailable)
          << result.works[0].status();
    });
  }
}

TEST_P(DispatchTest, ARankThatDoesNotComeFailsThePassAfterTheTimeOut) {
  auto exchanges = MakeExchanges(std::get<1>(GetParam()), 2, milliseconds(100));
  Rank one(host_, std::move(exchanges[0]));
  const protocol::Work work = RandomWork(7, 100);
  const protocol::Work* const batch[] = {&work};
  EXPECT_EQ(one.engine().Run(batch).works[0].status().code(), absl::StatusCode::kDeadlineExceeded);
}

INSTANTIATE_TEST_SUITE_P(DTypesAndTransports,
                         DispatchTest,
                         testing::Combine(testing::Values(DType::kBf16, DType::kF32),
                                          testing::Values(Transport::kLocal, Transport::kTcp)),
                         [](const auto& parameters) {
                           return std::string(NameOf(std::get<0>(parameters.param))) +
                                  (std::get<1>(parameters.param) == Transport::kLocal ? "Local"
                                                                                      : "Tcp");
                         });

}  // namespace
}  // namespace zp::engine
