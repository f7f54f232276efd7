#include "workplane/wire.h"

#include <bit>
#include <limits>

#include "absl/strings/cord.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "workplane/testing.h"

namespace zp::workplane {
namespace {

using protocol::Work;
using protocol::WorkResult;
using testing::HasSubstr;

// Over the bytes, as it travels.
template <typename Message>
Message Sent(const Message& message) {
  Message arrived;
  EXPECT_TRUE(arrived.ParseFromString(message.SerializeAsString()));
  return arrived;
}

void ExpectSame(const Work& left, const Work& right) {
  EXPECT_EQ(left.request_id, right.request_id);
  EXPECT_EQ(left.cache_salt, right.cache_salt);
  EXPECT_EQ(left.priority, right.priority);
  EXPECT_EQ(left.is_resent, right.is_resent);
  ASSERT_EQ(left.sequences.size(), right.sequences.size());
  for (size_t i = 0; i < left.sequences.size(); ++i) {
    EXPECT_EQ(left.sequences[i].tokens, right.sequences[i].tokens);
    EXPECT_EQ(left.sequences[i].pooling, right.sequences[i].pooling);
    ASSERT_EQ(left.sequences[i].rows.size(), right.sequences[i].rows.size());
    for (size_t j = 0; j < left.sequences[i].rows.size(); ++j) {
      EXPECT_EQ(left.sequences[i].rows[j].position, right.sequences[i].rows[j].position);
      EXPECT_EQ(left.sequences[i].rows[j].columns, right.sequences[i].rows[j].columns);
      EXPECT_EQ(left.sequences[i].rows[j].full_vocabulary,
                right.sequences[i].rows[j].full_vocabulary);
      EXPECT_EQ(left.sequences[i].rows[j].top_count, right.sequences[i].rows[j].top_count);
    }
  }
}

std::vector<uint32_t> Bits(const std::vector<float>& numbers) {
  std::vector<uint32_t> bits;
  for (const float number : numbers) {
    bits.push_back(std::bit_cast<uint32_t>(number));
  }
  return bits;
}

void ExpectSame(const WorkResult& left, const WorkResult& right) {
  EXPECT_EQ(left.usage.prompt_tokens, right.usage.prompt_tokens);
  EXPECT_EQ(left.usage.computed_tokens, right.usage.computed_tokens);
  EXPECT_EQ(left.usage.cached_tokens, right.usage.cached_tokens);
  EXPECT_EQ(std::bit_cast<uint64_t>(left.usage.flops), std::bit_cast<uint64_t>(right.usage.flops));
  EXPECT_EQ(left.usage.queue_seconds, right.usage.queue_seconds);
  EXPECT_EQ(left.usage.compute_seconds, right.usage.compute_seconds);
  ASSERT_EQ(left.sequences.size(), right.sequences.size());
  for (size_t i = 0; i < left.sequences.size(); ++i) {
    EXPECT_EQ(Bits(left.sequences[i].pooled), Bits(right.sequences[i].pooled));
    ASSERT_EQ(left.sequences[i].rows.size(), right.sequences[i].rows.size());
    for (size_t j = 0; j < left.sequences[i].rows.size(); ++j) {
      const protocol::Row& left_row = left.sequences[i].rows[j];
      const protocol::Row& right_row = right.sequences[i].rows[j];
      EXPECT_EQ(Bits(left_row.column_logits), Bits(right_row.column_logits));
      EXPECT_EQ(Bits({left_row.log_sum_exp}), Bits({right_row.log_sum_exp}));
      ASSERT_EQ(left_row.top.size(), right_row.top.size());
      for (size_t k = 0; k < left_row.top.size(); ++k) {
        EXPECT_EQ(left_row.top[k].token, right_row.top[k].token);
        EXPECT_EQ(Bits({left_row.top[k].logit}), Bits({right_row.top[k].logit}));
      }
    }
  }
}

float AnyFloat(Random& random) { return std::bit_cast<float>(static_cast<uint32_t>(random())); }

WorkResult RandomResult(Random& random) {
  WorkResult result = AnswerTo(RandomWork(random));
  for (protocol::SequenceResult& sequence : result.sequences) {
    for (float& number : sequence.pooled) {
      number = AnyFloat(random);
    }
    for (protocol::Row& row : sequence.rows) {
      row.log_sum_exp = AnyFloat(random);
      for (float& logit : row.column_logits) {
        logit = AnyFloat(random);
      }
      for (protocol::TokenLogit& top : row.top) {
        top = {.token = static_cast<int32_t>(random()), .logit = AnyFloat(random)};
      }
    }
  }
  result.usage = {.prompt_tokens = static_cast<int64_t>(random()),
                  .computed_tokens = static_cast<int64_t>(random()),
                  .cached_tokens = static_cast<int64_t>(random()),
                  .flops = std::bit_cast<double>(random()),
                  .queue_seconds = 1e-9 * static_cast<double>(random()),
                  .compute_seconds = 1e-9 * static_cast<double>(random())};
  return result;
}

TEST(Wire, AWorkArrivesAsItWasSent) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Work work = RandomWork(random);
    ASSERT_TRUE(CheckWork(work).ok()) << CheckWork(work);
    wire::Work message;
    ToWire(work, message);
    const absl::StatusOr<Work> arrived = FromWire(Sent(message));
    ASSERT_TRUE(arrived.ok()) << arrived.status();
    ExpectSame(*arrived, work);
  }
}

TEST(Wire, AResultArrivesBitForBit) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const WorkResult result = RandomResult(random);
    wire::Result message;
    ASSERT_TRUE(ToWire(result, message).ok());
    const absl::StatusOr<WorkResult> arrived = FromWire(Sent(message));
    ASSERT_TRUE(arrived.ok()) << arrived.status();
    ExpectSame(*arrived, result);
    EXPECT_EQ(ShapeOf(*arrived), ShapeOf(result));
  }
}

TEST(Wire, AnAnswerHasTheShapeOfItsWork) {
  Random random(1);
  const Work work = RandomWork(random);
  EXPECT_EQ(ShapeOf(work), ShapeOf(AnswerTo(work)));
  WorkResult other = AnswerTo(work);
  other.sequences.emplace_back();
  EXPECT_NE(ShapeOf(work), ShapeOf(other));
}

TEST(Wire, AReportArrivesAsItWasSent) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    protocol::RankReport report = ReportOf(1e3 * static_cast<double>(random()));
    report.compute_flops_per_s = static_cast<double>(random());
    report.saturation_flops = static_cast<double>(random());
    report.saturation_tokens = static_cast<double>(random());
    report.cache.is_cleared = random() % 2 == 0;
    for (int64_t i = Draw(random, 0, 9); i > 0; --i) {
      report.cache.removed.push_back({.high = random(), .low = random()});
      report.cache.stored.push_back({.high = random(), .low = random()});
    }
    wire::Report message;
    ToWire(3, report, message);
    const absl::StatusOr<protocol::RankReport> arrived = FromWire(Sent(message), 4);
    ASSERT_TRUE(arrived.ok()) << arrived.status();
    EXPECT_EQ(arrived->flops_per_s, report.flops_per_s);
    EXPECT_EQ(arrived->compute_flops_per_s, report.compute_flops_per_s);
    EXPECT_EQ(arrived->saturation_flops, report.saturation_flops);
    EXPECT_EQ(arrived->saturation_tokens, report.saturation_tokens);
    EXPECT_EQ(arrived->cache.is_cleared, report.cache.is_cleared);
    EXPECT_EQ(arrived->cache.removed, report.cache.removed);
    EXPECT_EQ(arrived->cache.stored, report.cache.stored);
  }
}

TEST(Wire, AnErrorKeepsCodeMessageAndRetrySeconds) {
  absl::Status status = absl::ResourceExhaustedError("the queue is full\xff");
  status.SetPayload(protocol::kRetrySecondsPayload, absl::Cord("17"));
  wire::Error message;
  ToWire(status, message);
  EXPECT_EQ(FromWire(Sent(message)), status);
  for (int code = 1; code <= 16; ++code) {
    const absl::Status plain(static_cast<absl::StatusCode>(code), "why");
    wire::Error plain_message;
    ToWire(plain, plain_message);
    EXPECT_EQ(FromWire(Sent(plain_message)), plain);
  }
  message.set_code(0);
  EXPECT_TRUE(absl::IsInternal(FromWire(message))) << "an error is never OK";
  message.set_code(17);
  EXPECT_TRUE(absl::IsInternal(FromWire(message)));
}

TEST(Wire, WhatIsLeftOfADeadlineIsRoundedUpAndBounded) {
  const std::chrono::steady_clock::time_point now(std::chrono::seconds(100));
  EXPECT_EQ(RemainingMs(now, now), 0u);
  EXPECT_EQ(RemainingMs(now - std::chrono::seconds(1), now), 0u);
  EXPECT_EQ(RemainingMs(now + std::chrono::microseconds(1), now), 1u);
  EXPECT_EQ(RemainingMs(std::chrono::steady_clock::time_point::max(), now), kMaxRemainingMs);
  wire::Submit submit;
  EXPECT_EQ(*DeadlineOf(submit, now), std::nullopt);
  submit.set_remaining_ms(30);
  EXPECT_EQ(*DeadlineOf(submit, now), now + std::chrono::milliseconds(30));
  submit.set_remaining_ms(kMaxRemainingMs + 1);
  EXPECT_THAT(base::MessageOf(DeadlineOf(submit, now).status()), HasSubstr("remaining_ms"));
}

// A work that is right but for what `spoil` does to its message.
absl::Status StatusOf(const std::function<void(wire::Work&)>& spoil) {
  const Work work = {.request_id = "r",
                     .sequences = {{.tokens = {1, 2}, .rows = {{.position = 1, .columns = {5}}}}}};
  wire::Work message;
  ToWire(work, message);
  EXPECT_TRUE(FromWire(message).ok());
  spoil(message);
  return FromWire(message).status();
}

TEST(Wire, WhatIsTooMuchOrDoesNotFitIsRefusedByName) {
  const std::vector<std::pair<std::string, std::function<void(wire::Work&)>>> cases = {
      {"request_id", [](auto& m) { m.set_request_id(std::string(kMaxRequestIdBytes + 1, 'a')); }},
      {"cache_salt", [](auto& m) { m.set_cache_salt(std::string(kMaxCacheSaltBytes + 1, 'a')); }},
      {"sequences",
       [](auto& m) { m.mutable_sequence_token_counts()->Resize(kMaxSequences + 1, 1); }},
      {"tokens", [](auto& m) { m.mutable_tokens()->Resize(kMaxTokens + 1, 1); }},
      {"rows", [](auto& m) { m.mutable_row_positions()->Resize(kMaxRows + 1, 1); }},
      {"columns", [](auto& m) { m.mutable_columns()->Resize(kMaxColumns + 1, 1); }},
      {"sequence_row_counts", [](auto& m) { m.add_sequence_row_counts(0); }},
      {"sequence_poolings", [](auto& m) { m.add_sequence_poolings(0); }},
      {"pooling", [](auto& m) { m.set_sequence_poolings(0, 3); }},
      {"tokens has", [](auto& m) { m.add_tokens(3); }},
      {"tokens has", [](auto& m) { m.set_sequence_token_counts(0, UINT32_MAX); }},
      {"row_positions", [](auto& m) { m.add_row_positions(0); }},
      {"row_column_counts", [](auto& m) { m.add_row_column_counts(0); }},
      {"row_full_vocabulary", [](auto& m) { m.add_row_full_vocabulary(false); }},
      {"row_top_counts", [](auto& m) { m.add_row_top_counts(0); }},
      {"columns has", [](auto& m) { m.add_columns(3); }},
      {"row position", [](auto& m) { m.set_row_positions(0, 2); }},
      {"row position", [](auto& m) { m.set_row_positions(0, -1); }},
      {"top_count", [](auto& m) { m.set_row_top_counts(0, kMaxTopCount + 1); }},
      {"top_count", [](auto& m) { m.set_row_top_counts(0, UINT32_MAX); }},
      {"tokens of a sequence",
       [](auto& m) {
         m.add_sequence_token_counts(0);
         m.add_sequence_row_counts(0);
         m.add_sequence_poolings(0);
       }},
  };
  for (const auto& [name, spoil] : cases) {
    const absl::Status status = StatusOf(spoil);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << name << ": " << status;
    EXPECT_THAT(base::MessageOf(status), HasSubstr(name));
  }
}

TEST(Wire, AWorkWhoseAnswerWouldBeTooLargeIsNotSent) {
  Work work;
  protocol::Sequence& sequence = work.sequences.emplace_back();
  sequence.tokens.resize(100);
  protocol::RowAsk row;
  row.full_vocabulary = true;
  row.top_count = 1 << 20;
  sequence.rows.assign(100, row);
  EXPECT_THAT(base::MessageOf(CheckWork(work)), HasSubstr("bytes of the answer"));
}

TEST(Wire, AReportThatCannotBeIsRefusedByName) {
  wire::Report message;
  ToWire(1, ReportOf(1, {}, {Block(2)}), message);
  const auto status_of = [&](const std::function<void(wire::Report&)>& spoil) {
    wire::Report spoilt = message;
    spoil(spoilt);
    return base::MessageOf(FromWire(spoilt, 2).status());
  };
  EXPECT_EQ(status_of([](auto&) {}), "");
  EXPECT_THAT(status_of([](auto& m) { m.set_rank(2); }), HasSubstr("rank is 2"));
  EXPECT_THAT(status_of([](auto& m) { m.set_flops_per_s(-1); }), HasSubstr("flops_per_s"));
  EXPECT_THAT(
      status_of([](auto& m) { m.set_saturation_tokens(std::numeric_limits<double>::quiet_NaN()); }),
      HasSubstr("saturation_tokens"));
  EXPECT_THAT(status_of([](auto& m) { m.add_stored(1); }), HasSubstr("two numbers"));
  EXPECT_THAT(status_of([](auto& m) {
                m.mutable_removed()->Resize(2 * static_cast<int>(kMaxReportBlocks), 1);
              }),
              HasSubstr("blocks of a report"));
}

TEST(Wire, ARankHoldsNoMoreThanItHasRoomForHoweverManyReportsSayIt) {
  HeldBlockCount count(/*max_blocks=*/3);
  const auto add = [&](std::vector<protocol::BlockHash> removed,
                       std::vector<protocol::BlockHash> stored,
                       bool is_cleared = false) {
    return base::MessageOf(count.Count(
        {.is_cleared = is_cleared, .removed = std::move(removed), .stored = std::move(stored)}));
  };
  EXPECT_EQ(add({}, {Block(1), Block(2)}), "");
  EXPECT_EQ(add({Block(1)}, {Block(3), Block(4)}), "");
  EXPECT_THAT(add({}, {Block(5)}), HasSubstr("held blocks is 4, the limit is 3"));
  EXPECT_THAT(add({Block(1), Block(2), Block(3), Block(4)}, {}),
              HasSubstr("removed blocks is 4, the limit is 3"));
  EXPECT_EQ(add({}, {Block(1), Block(2), Block(3)}, /*is_cleared=*/true), "");
  EXPECT_EQ(add({Block(1), Block(2), Block(3)}, {}), "");
  EXPECT_THAT(add({Block(1)}, {}), HasSubstr("removed blocks is 1, the limit is 0"));
}

// What a stranger may send: nothing of it crashes, and what is taken can be sent on.
TEST(Wire, RandomMessagesAreRefusedOrRight) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    wire::Work message;
    ToWire(RandomWork(random), message);
    std::string bytes = message.SerializeAsString();
    for (int64_t i = Draw(random, 1, 4); i > 0; --i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    wire::Work arrived;
    if (!arrived.ParseFromString(bytes)) {
      continue;
    }
    if (const absl::StatusOr<Work> work = FromWire(arrived); work.ok()) {
      EXPECT_TRUE(CheckWork(*work).ok());
    }
    wire::Result result;
    ASSERT_TRUE(ToWire(RandomResult(random), result).ok());
    bytes = result.SerializeAsString();
    bytes[random() % bytes.size()] = static_cast<char>(random());
    if (result.ParseFromString(bytes)) {
      FromWire(result).status().IgnoreError();
    }
  }
}

}  // namespace
}  // namespace zp::workplane
