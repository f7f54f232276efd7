#include "workplane/wire.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <numeric>
#include <string>
#include <string_view>

#include "absl/strings/cord.h"
#include "fmt/format.h"

namespace zp::workplane {
namespace {

using protocol::RowAsk;
using protocol::Sequence;
using protocol::TokenId;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// What a row of an answer costs on the wire beside its numbers, at most.
constexpr size_t kRowBytes = 16;

absl::Status CheckMost(const char* field, uint64_t value, uint64_t most) {
  if (value > most) {
    return absl::InvalidArgumentError(fmt::format("{} is {}, the limit is {}", field, value, most));
  }
  return absl::OkStatus();
}

struct WorkCounts {
  size_t request_id_bytes = 0;
  size_t cache_salt_bytes = 0;
  size_t sequences = 0;
  size_t tokens = 0;
  size_t rows = 0;
  size_t columns = 0;
};

absl::Status CheckCounts(const WorkCounts& counts) {
  ZP_RETURN_IF_ERROR(CheckMost("request_id bytes", counts.request_id_bytes, kMaxRequestIdBytes));
  ZP_RETURN_IF_ERROR(CheckMost("cache_salt bytes", counts.cache_salt_bytes, kMaxCacheSaltBytes));
  ZP_RETURN_IF_ERROR(CheckMost("sequences", counts.sequences, kMaxSequences));
  ZP_RETURN_IF_ERROR(CheckMost("tokens", counts.tokens, kMaxTokens));
  ZP_RETURN_IF_ERROR(CheckMost("rows", counts.rows, kMaxRows));
  return CheckMost("columns", counts.columns, kMaxColumns);
}

// What CostOf and the ranks may rely on, whoever sent the work.
absl::Status CheckElements(const protocol::Work& work) {
  uint64_t answer_bytes = 0;
  for (const Sequence& sequence : work.sequences) {
    if (sequence.tokens.empty()) {
      return absl::InvalidArgumentError("tokens of a sequence: there must be at least one");
    }
    for (const RowAsk& row : sequence.rows) {
      if (row.position < 0 || row.position >= static_cast<int64_t>(sequence.tokens.size())) {
        return absl::InvalidArgumentError(fmt::format(
            "row position is {} in a sequence of {} tokens", row.position, sequence.tokens.size()));
      }
      if (row.top_count < 0) {
        return absl::InvalidArgumentError(
            fmt::format("top_count is {}; it must be 0 or more", row.top_count));
      }
      ZP_RETURN_IF_ERROR(CheckMost("top_count", row.top_count, kMaxTopCount));
      answer_bytes += kRowBytes + sizeof(float) * row.columns.size() +
                      sizeof(protocol::TokenLogit) * static_cast<uint64_t>(row.top_count);
    }
  }
  return CheckMost("bytes of the answer", answer_bytes, kMaxAnswerBytes);
}

template <typename Counts>
uint64_t Sum(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
}

absl::Status CheckSame(const char* field, uint64_t count, uint64_t expected) {
  if (count != expected) {
    return absl::InvalidArgumentError(
        fmt::format("{} has {} elements where there must be {}", field, count, expected));
  }
  return absl::OkStatus();
}

absl::Status CheckArrays(const wire::Work& message) {
  const auto sequences = static_cast<uint64_t>(message.sequence_token_counts_size());
  const auto rows = static_cast<uint64_t>(message.row_positions_size());
  ZP_RETURN_IF_ERROR(
      CheckSame("sequence_row_counts", message.sequence_row_counts_size(), sequences));
  ZP_RETURN_IF_ERROR(CheckSame("sequence_poolings", message.sequence_poolings_size(), sequences));
  ZP_RETURN_IF_ERROR(
      CheckSame("tokens", message.tokens_size(), Sum(message.sequence_token_counts())));
  ZP_RETURN_IF_ERROR(CheckSame("row_positions", rows, Sum(message.sequence_row_counts())));
  ZP_RETURN_IF_ERROR(CheckSame("row_column_counts", message.row_column_counts_size(), rows));
  ZP_RETURN_IF_ERROR(CheckSame("row_full_vocabulary", message.row_full_vocabulary_size(), rows));
  ZP_RETURN_IF_ERROR(CheckSame("row_top_counts", message.row_top_counts_size(), rows));
  ZP_RETURN_IF_ERROR(
      CheckSame("columns", message.columns_size(), Sum(message.row_column_counts())));
  for (const uint32_t pooling : message.sequence_poolings()) {
    ZP_RETURN_IF_ERROR(
        CheckMost("pooling", pooling, static_cast<uint32_t>(protocol::Pooling::kMean)));
  }
  for (const uint32_t top_count : message.row_top_counts()) {
    ZP_RETURN_IF_ERROR(CheckMost("top_count", top_count, kMaxTopCount));
  }
  return absl::OkStatus();
}

absl::Status CheckArrays(const wire::Result& message) {
  const auto sequences = static_cast<uint64_t>(message.sequence_row_counts_size());
  const auto rows = static_cast<uint64_t>(message.row_column_counts_size());
  ZP_RETURN_IF_ERROR(CheckMost("sequences", sequences, kMaxSequences));
  ZP_RETURN_IF_ERROR(CheckMost("rows", rows, kMaxRows));
  ZP_RETURN_IF_ERROR(
      CheckSame("sequence_pooled_counts", message.sequence_pooled_counts_size(), sequences));
  ZP_RETURN_IF_ERROR(
      CheckSame("pooled", message.pooled_size(), Sum(message.sequence_pooled_counts())));
  ZP_RETURN_IF_ERROR(CheckSame("row_column_counts", rows, Sum(message.sequence_row_counts())));
  ZP_RETURN_IF_ERROR(CheckSame("row_top_counts", message.row_top_counts_size(), rows));
  ZP_RETURN_IF_ERROR(CheckSame("row_log_sum_exps", message.row_log_sum_exps_size(), rows));
  ZP_RETURN_IF_ERROR(
      CheckSame("column_logits", message.column_logits_size(), Sum(message.row_column_counts())));
  ZP_RETURN_IF_ERROR(
      CheckSame("top_tokens", message.top_tokens_size(), Sum(message.row_top_counts())));
  return CheckSame("top_logits", message.top_logits_size(), message.top_tokens_size());
}

// An array that is read from its beginning to its end. REQUIRES: as many as are taken are there.
template <typename T>
class Flat {
 public:
  explicit Flat(const google::protobuf::RepeatedField<T>& field) : next_(field.data()) {}
  T Take() { return *next_++; }
  template <typename Target>
  void TakeInto(std::vector<Target>& target, size_t count) {
    target.assign(next_, next_ + count);
    next_ += count;
  }

 private:
  const T* next_;
};

void AddBlocks(const std::vector<protocol::BlockHash>& blocks,
               google::protobuf::RepeatedField<uint64_t>& field) {
  field.Reserve(static_cast<int>(2 * blocks.size()));
  for (const protocol::BlockHash& block : blocks) {
    field.Add(block.high);
    field.Add(block.low);
  }
}

std::vector<protocol::BlockHash> BlocksOf(const google::protobuf::RepeatedField<uint64_t>& field) {
  std::vector<protocol::BlockHash> blocks;
  blocks.reserve(field.size() / 2);
  for (int i = 0; i + 1 < field.size(); i += 2) {
    blocks.push_back({.high = field[i], .low = field[i + 1]});
  }
  return blocks;
}

absl::Status CheckNumber(const char* field, double value) {
  if (!(value >= 0 && value <= std::numeric_limits<double>::max())) {
    return absl::InvalidArgumentError(
        fmt::format("{} is {}; it must be 0 or more, and finite", field, value));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckWork(const protocol::Work& work) {
  WorkCounts counts = {.request_id_bytes = work.request_id.size(),
                       .cache_salt_bytes = work.cache_salt.size(),
                       .sequences = work.sequences.size()};
  for (const Sequence& sequence : work.sequences) {
    counts.tokens += sequence.tokens.size();
    counts.rows += sequence.rows.size();
    for (const RowAsk& row : sequence.rows) {
      counts.columns += row.columns.size();
    }
  }
  ZP_RETURN_IF_ERROR(CheckCounts(counts));
  return CheckElements(work);
}

void ToWire(const protocol::Work& work, wire::Work& message) {
  message.set_request_id(work.request_id);
  message.set_cache_salt(work.cache_salt);
  message.set_priority(work.priority);
  message.set_is_resent(work.is_resent);
  message.mutable_tokens()->Reserve(static_cast<int>(work.token_count()));
  for (const Sequence& sequence : work.sequences) {
    message.add_sequence_token_counts(static_cast<uint32_t>(sequence.tokens.size()));
    message.add_sequence_row_counts(static_cast<uint32_t>(sequence.rows.size()));
    message.add_sequence_poolings(static_cast<uint32_t>(sequence.pooling));
    message.mutable_tokens()->Add(sequence.tokens.begin(), sequence.tokens.end());
    for (const RowAsk& row : sequence.rows) {
      message.add_row_positions(row.position);
      message.add_row_column_counts(static_cast<uint32_t>(row.columns.size()));
      message.add_row_full_vocabulary(row.full_vocabulary);
      message.add_row_top_counts(static_cast<uint32_t>(row.top_count));
      message.mutable_columns()->Add(row.columns.begin(), row.columns.end());
    }
  }
}

absl::StatusOr<protocol::Work> FromWire(const wire::Work& message) {
  ZP_RETURN_IF_ERROR(
      CheckCounts({.request_id_bytes = message.request_id().size(),
                   .cache_salt_bytes = message.cache_salt().size(),
                   .sequences = static_cast<size_t>(message.sequence_token_counts_size()),
                   .tokens = static_cast<size_t>(message.tokens_size()),
                   .rows = static_cast<size_t>(message.row_positions_size()),
                   .columns = static_cast<size_t>(message.columns_size())}));
  ZP_RETURN_IF_ERROR(CheckArrays(message));
  protocol::Work work = {.request_id = message.request_id(),
                         .sequences = {},
                         .cache_salt = message.cache_salt(),
                         .priority = message.priority(),
                         .is_resent = message.is_resent()};
  work.sequences.resize(message.sequence_token_counts_size());
  Flat<int32_t> tokens(message.tokens());
  Flat<int32_t> columns(message.columns());
  int row_index = 0;
  for (size_t i = 0; i < work.sequences.size(); ++i) {
    const int index = static_cast<int>(i);
    Sequence& sequence = work.sequences[i];
    tokens.TakeInto(sequence.tokens, message.sequence_token_counts(index));
    sequence.pooling = static_cast<protocol::Pooling>(message.sequence_poolings(index));
    sequence.rows.resize(message.sequence_row_counts(index));
    for (RowAsk& row : sequence.rows) {
      row.position = message.row_positions(row_index);
      row.full_vocabulary = message.row_full_vocabulary(row_index);
      row.top_count = static_cast<int32_t>(message.row_top_counts(row_index));
      columns.TakeInto(row.columns, message.row_column_counts(row_index));
      ++row_index;
    }
  }
  ZP_RETURN_IF_ERROR(CheckElements(work));
  return work;
}

uint64_t RemainingMs(steady_clock::time_point deadline, steady_clock::time_point now) {
  if (deadline <= now) {
    return 0;
  }
  const auto remaining = std::chrono::ceil<milliseconds>(deadline - now).count();
  return std::min(static_cast<uint64_t>(remaining), kMaxRemainingMs);
}

absl::StatusOr<std::optional<steady_clock::time_point>> DeadlineOf(const wire::Submit& message,
                                                                   steady_clock::time_point now) {
  if (!message.has_remaining_ms()) {
    return std::optional<steady_clock::time_point>();
  }
  ZP_RETURN_IF_ERROR(CheckMost("remaining_ms", message.remaining_ms(), kMaxRemainingMs));
  return std::optional(now + milliseconds(message.remaining_ms()));
}

absl::Status ToWire(const protocol::WorkResult& result, wire::Result& message) {
  wire::Usage& usage = *message.mutable_usage();
  usage.set_prompt_tokens(result.usage.prompt_tokens);
  usage.set_computed_tokens(result.usage.computed_tokens);
  usage.set_cached_tokens(result.usage.cached_tokens);
  usage.set_flops(result.usage.flops);
  usage.set_queue_seconds(result.usage.queue_seconds);
  usage.set_compute_seconds(result.usage.compute_seconds);
  for (const protocol::SequenceResult& sequence : result.sequences) {
    message.add_sequence_row_counts(static_cast<uint32_t>(sequence.rows.size()));
    message.add_sequence_pooled_counts(static_cast<uint32_t>(sequence.pooled.size()));
    message.mutable_pooled()->Add(sequence.pooled.begin(), sequence.pooled.end());
    for (const protocol::Row& row : sequence.rows) {
      message.add_row_column_counts(static_cast<uint32_t>(row.column_logits.size()));
      message.add_row_top_counts(static_cast<uint32_t>(row.top.size()));
      message.add_row_log_sum_exps(row.log_sum_exp);
      message.mutable_column_logits()->Add(row.column_logits.begin(), row.column_logits.end());
      for (const protocol::TokenLogit& top : row.top) {
        message.add_top_tokens(top.token);
        message.add_top_logits(top.logit);
      }
    }
  }
  return CheckMost("bytes of the answer", message.ByteSizeLong(), kMaxAnswerBytes);
}

absl::StatusOr<protocol::WorkResult> FromWire(const wire::Result& message) {
  ZP_RETURN_IF_ERROR(CheckArrays(message));
  const wire::Usage& usage = message.usage();
  protocol::WorkResult result = {.sequences = {},
                                 .usage = {.prompt_tokens = usage.prompt_tokens(),
                                           .computed_tokens = usage.computed_tokens(),
                                           .cached_tokens = usage.cached_tokens(),
                                           .flops = usage.flops(),
                                           .queue_seconds = usage.queue_seconds(),
                                           .compute_seconds = usage.compute_seconds()}};
  result.sequences.resize(message.sequence_row_counts_size());
  Flat<float> pooled(message.pooled());
  Flat<float> columns(message.column_logits());
  Flat<int32_t> top_tokens(message.top_tokens());
  Flat<float> top_logits(message.top_logits());
  int row_index = 0;
  for (size_t i = 0; i < result.sequences.size(); ++i) {
    const int index = static_cast<int>(i);
    protocol::SequenceResult& sequence = result.sequences[i];
    pooled.TakeInto(sequence.pooled, message.sequence_pooled_counts(index));
    sequence.rows.resize(message.sequence_row_counts(index));
    for (protocol::Row& row : sequence.rows) {
      row.log_sum_exp = message.row_log_sum_exps(row_index);
      columns.TakeInto(row.column_logits, message.row_column_counts(row_index));
      row.top.resize(message.row_top_counts(row_index));
      for (protocol::TokenLogit& top : row.top) {
        top = {.token = top_tokens.Take(), .logit = top_logits.Take()};
      }
      ++row_index;
    }
  }
  return result;
}

std::vector<uint32_t> ShapeOf(const protocol::Work& work) {
  std::vector<uint32_t> shape;
  for (const Sequence& sequence : work.sequences) {
    shape.push_back(sequence.pooling != protocol::Pooling::kNone ? 1 : 0);
    shape.push_back(static_cast<uint32_t>(sequence.rows.size()));
    for (const RowAsk& row : sequence.rows) {
      shape.push_back(static_cast<uint32_t>(row.columns.size()));
    }
  }
  return shape;
}

std::vector<uint32_t> ShapeOf(const protocol::WorkResult& result) {
  std::vector<uint32_t> shape;
  for (const protocol::SequenceResult& sequence : result.sequences) {
    shape.push_back(sequence.pooled.empty() ? 0 : 1);
    shape.push_back(static_cast<uint32_t>(sequence.rows.size()));
    for (const protocol::Row& row : sequence.rows) {
      shape.push_back(static_cast<uint32_t>(row.column_logits.size()));
    }
  }
  return shape;
}

void ToWire(const absl::Status& status, wire::Error& message) {
  message.set_code(static_cast<uint32_t>(status.code()));
  message.set_message(base::MessageOf(status).substr(0, kMaxErrorMessageBytes));
  if (const auto payload = status.GetPayload(protocol::kRetrySecondsPayload)) {
    const std::string digits(*payload);
    uint64_t seconds = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), seconds);
    if (error == std::errc() && end == digits.data() + digits.size()) {
      message.set_retry_seconds(seconds);
    }
  }
}

absl::Status FromWire(const wire::Error& message) {
  constexpr auto kLastCode = static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);
  const std::string text = message.message().substr(0, kMaxErrorMessageBytes);
  if (message.code() == 0 || message.code() > kLastCode) {
    return absl::InternalError(
        fmt::format("an error with the code {}, which there is not: {}", message.code(), text));
  }
  absl::Status status(static_cast<absl::StatusCode>(message.code()), text);
  if (message.has_retry_seconds()) {
    status.SetPayload(protocol::kRetrySecondsPayload,
                      absl::Cord(std::to_string(message.retry_seconds())));
  }
  return status;
}

void ToWire(int32_t rank, const protocol::RankReport& report, wire::Report& message) {
  message.set_rank(static_cast<uint32_t>(rank));
  message.set_flops_per_s(report.flops_per_s);
  message.set_compute_flops_per_s(report.compute_flops_per_s);
  message.set_saturation_flops(report.saturation_flops);
  message.set_saturation_tokens(report.saturation_tokens);
  message.set_is_cleared(report.cache.is_cleared);
  AddBlocks(report.cache.removed, *message.mutable_removed());
  AddBlocks(report.cache.stored, *message.mutable_stored());
}

absl::StatusOr<protocol::RankReport> FromWire(const wire::Report& message, int32_t rank_count) {
  if (message.rank() >= static_cast<uint32_t>(rank_count)) {
    return absl::InvalidArgumentError(
        fmt::format("rank is {}; the host has {}", message.rank(), rank_count));
  }
  ZP_RETURN_IF_ERROR(CheckNumber("flops_per_s", message.flops_per_s()));
  ZP_RETURN_IF_ERROR(CheckNumber("compute_flops_per_s", message.compute_flops_per_s()));
  ZP_RETURN_IF_ERROR(CheckNumber("saturation_flops", message.saturation_flops()));
  ZP_RETURN_IF_ERROR(CheckNumber("saturation_tokens", message.saturation_tokens()));
  if (message.removed_size() % 2 != 0 || message.stored_size() % 2 != 0) {
    return absl::InvalidArgumentError("removed and stored must have two numbers a block");
  }
  ZP_RETURN_IF_ERROR(CheckMost("blocks of a report",
                               (static_cast<uint64_t>(message.removed_size()) +
                                static_cast<uint64_t>(message.stored_size())) /
                                   2,
                               kMaxReportBlocks));
  return protocol::RankReport{.flops_per_s = message.flops_per_s(),
                              .compute_flops_per_s = message.compute_flops_per_s(),
                              .saturation_flops = message.saturation_flops(),
                              .saturation_tokens = message.saturation_tokens(),
                              .cache = {.is_cleared = message.is_cleared(),
                                        .removed = BlocksOf(message.removed()),
                                        .stored = BlocksOf(message.stored())}};
}

absl::Status HeldBlockCount::Count(const protocol::CacheEvents& events) {
  const uint64_t held = events.is_cleared ? 0 : blocks_;
  ZP_RETURN_IF_ERROR(CheckMost("removed blocks", events.removed.size(), held));
  const uint64_t blocks = held - events.removed.size() + events.stored.size();
  ZP_RETURN_IF_ERROR(CheckMost("held blocks", blocks, max_blocks_));
  blocks_ = blocks;
  return absl::OkStatus();
}

}  // namespace zp::workplane
