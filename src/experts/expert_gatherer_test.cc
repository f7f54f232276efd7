// The window with its thread.
#include "experts/expert_gatherer.h"

#include <random>
#include <thread>

#include "experts/fake_source.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace zp::experts {
namespace {

constexpr size_t kBlob = 3 * 4096;

ExpertCatalog SmallCatalog() {
  return {.layer_has_experts = {true, false, true, true, true, true},
          .expert_count = 7,
          .expert_bytes = kBlob};
}

class ExpertGathererTest : public testing::Test {
 protected:
  ExpertGathererTest() : blobs_(SmallCatalog(), 2) {}

  // A rank whose host keeps `kept` experts of each layer and finds the others in the file.
  std::unique_ptr<ExpertGatherer> MakeGatherer(int32_t kept, int32_t slots = 2) {
    const size_t budget = kBlob * (5 * kept + slots * (7 - kept));
    auto placement =
        Placement::Compute(blobs_.catalog, {{.expert_memory_bytes = budget}}, slots, 0);
    EXPECT_TRUE(placement.ok()) << placement.status();
    auto store = std::make_shared<ExpertStore>(*std::move(placement), 0);
    for (LayerIndex layer = 0; layer < blobs_.catalog.layer_count(); ++layer) {
      for (int32_t expert = 0; expert < blobs_.catalog.expert_count_of(layer); ++expert) {
        if (store->Find(layer, expert) != nullptr) {
          std::ranges::copy(blobs_.Blob(layer, expert), store->Blob(layer, expert).begin());
        }
      }
    }
    std::vector<ExpertSource> sources;
    sources.push_back(MakeFakeSource(SourceKind::kFile, "file", blobs_, file_));
    return std::make_unique<ExpertGatherer>(std::move(store),
                                            std::move(sources),
                                            blobs_.checksums,
                                            ExpertGathererOptions{.window_slot_count = slots,
                                                                  .loop = {.slice_bytes = 4096},
                                                                  .poison_released_slots = true});
  }

  void ExpectBank(ExpertGatherer& gatherer, const GatherTicket& ticket) {
    const auto bank = gatherer.Wait(ticket);
    ASSERT_TRUE(bank.ok()) << bank.status();
    for (int32_t expert = 0; expert < 7; ++expert) {
      ASSERT_EQ(std::memcmp((*bank)[expert], blobs_.Blob(ticket.layer(), expert).data(), kBlob), 0)
          << "layer " << ticket.layer() << " expert " << expert;
    }
  }

  FakeBlobs blobs_;
  FakeSwitches file_;
};

TEST_F(ExpertGathererTest, KeptAndGatheredExpertsLieInOneBank) {
  for (const int32_t kept : {0, 1, 3, 6, 7}) {
    const auto gatherer = MakeGatherer(kept);
    for (const LayerIndex layer : {0, 2, 3, 4, 5, 0, 2}) {
      const GatherTicket ticket = gatherer->StartGather(layer);
      ExpectBank(*gatherer, ticket);
      EXPECT_EQ(gatherer->report(ticket).bytes, (7 - kept) * static_cast<int64_t>(kBlob));
    }
  }
}

TEST_F(ExpertGathererTest, WhereEverythingIsKeptNothingIsReadOrWaitedFor) {
  const auto gatherer = MakeGatherer(7);
  const GatherTicket ticket = gatherer->StartGather(3);
  ExpectBank(*gatherer, ticket);
  EXPECT_EQ(file_.started, 0);
  EXPECT_EQ(gatherer->exposed_wait_seconds(), 0);
}

// Released slots are poisoned, so a bank that is read after the window took its slot, or a gather
// that writes to a slot in use, shows up as wrong bytes (and as a race under the thread sanitizer).
TEST_F(ExpertGathererTest, StressABankInUseIsNeverOverwritten) {
  const std::vector<LayerIndex> layers = {0, 2, 3, 4, 5};
  for (const int32_t slots : {2, 3}) {
    const auto gatherer = MakeGatherer(1, slots);
    std::mt19937 random(slots);
    std::deque<GatherTicket> window;
    size_t next = 0;
    for (int step = 0; step < 3000; ++step) {
      while (static_cast<int32_t>(window.size()) < slots) {
        window.push_back(gatherer->StartGather(layers[next++ % layers.size()]));
      }
      file_.reads_per_poll = 1 + static_cast<int>(random() % 4);
      if (random() % 10 == 0) {  // a pass that failed: its tickets go before their banks came
        window.clear();
        continue;
      }
      ExpectBank(*gatherer, window.front());
      window.pop_front();
    }
  }
}

TEST_F(ExpertGathererTest, AnExpertThatCannotBeReadFailsItsBankAndNoOther) {
  const auto gatherer = MakeGatherer(2);
  file_.corrupt = true;
  {
    const GatherTicket ticket = gatherer->StartGather(2);
    EXPECT_EQ(gatherer->Wait(ticket).status().code(), absl::StatusCode::kDataLoss);
  }
  file_.corrupt = false;
  const GatherTicket ticket = gatherer->StartGather(2);
  ExpectBank(*gatherer, ticket);
}

TEST_F(ExpertGathererTest, WaitingIsExposedWait) {
  const auto gatherer = MakeGatherer(2);
  file_.stopped = true;
  const GatherTicket ticket = gatherer->StartGather(0);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    file_.stopped = false;
  });
  ExpectBank(*gatherer, ticket);
  later.join();
  EXPECT_GE(gatherer->exposed_wait_seconds(), 0.02);
}

TEST_F(ExpertGathererTest, EndsWhileBanksAreOnTheirWay) {
  for (int round = 0; round < 50; ++round) {
    auto gatherer = MakeGatherer(2);
    GatherTicket first = gatherer->StartGather(0);
    { const GatherTicket second = gatherer->StartGather(2); }
    first = {};
    gatherer.reset();
  }
}

TEST_F(ExpertGathererTest, TooManyTicketsIsABug) {
  const auto gatherer = MakeGatherer(7);
  const GatherTicket first = gatherer->StartGather(0);
  const GatherTicket second = gatherer->StartGather(2);
  EXPECT_DEATH(gatherer->StartGather(3), "more than 2 tickets");
}

}  // namespace
}  // namespace zp::experts
