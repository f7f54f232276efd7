// Between the messages of work_plane.proto and the types of protocol. What comes in is checked
// here: every count against its limit, every array against the others.
//
// Thread safety: pure functions. Errors: InvalidArgument names the field and the limit.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/status.h"
#include "protocol/rank_report.h"
#include "protocol/work.h"
#include "workplane/work_plane.pb.h"

namespace zp::workplane {

// What is more comes from a mistake or an attacker. The gateway's own limits lie below.
inline constexpr size_t kMaxRequestIdBytes = 1024;
inline constexpr size_t kMaxCacheSaltBytes = size_t{4} << 10;  // 1,024 characters in UTF-8
inline constexpr size_t kMaxSequences = size_t{1} << 20;
inline constexpr size_t kMaxTokens = size_t{4} << 20;   // of all sequences of a work
inline constexpr size_t kMaxRows = size_t{4} << 20;     // the same
inline constexpr size_t kMaxColumns = size_t{4} << 20;  // the same
inline constexpr size_t kMaxTopCount = size_t{1} << 20;
inline constexpr uint64_t kMaxRemainingMs = uint64_t{7} * 24 * 3600 * 1000;
inline constexpr size_t kMaxErrorMessageBytes = 4096;  // what is longer is cut
inline constexpr size_t kMaxReportBlocks = size_t{64} << 10;
// Of a rank's prefix cache: 512M tokens. A gateway keeps the names of all, some 60 bytes each.
inline constexpr uint64_t kMaxHeldBlocks = uint64_t{32} << 20;

// A work or an answer; a message has a few small ones or one large one.
inline constexpr size_t kMaxSubmitBytes = size_t{64} << 20;
inline constexpr size_t kMaxAnswerBytes = size_t{128} << 20;
// A message is full when it has so many bytes; what comes after goes with the next.
inline constexpr size_t kFullMessageBytes = size_t{256} << 10;
// Beside the one last thing that filled a message: reports, cancels, names of fields.
inline constexpr size_t kMessageSlackBytes = size_t{4} << 20;

// The join token in the metadata of a stream; binary, so that it may have any bytes.
inline constexpr char kTokenKey[] = "zeroprefill-join-token-bin";

// The limits, on the side that sends; also that the answer will not be too large to be sent.
absl::Status CheckWork(const protocol::Work& work);
// Without the deadline. REQUIRES: CheckWork said yes.
void ToWire(const protocol::Work& work, wire::Work& message);
absl::StatusOr<protocol::Work> FromWire(const wire::Work& message);

// Milliseconds that are left, rounded up; 0: none. More than the limit becomes the limit.
uint64_t RemainingMs(std::chrono::steady_clock::time_point deadline,
                     std::chrono::steady_clock::time_point now);
absl::StatusOr<std::optional<std::chrono::steady_clock::time_point>> DeadlineOf(
    const wire::Submit& message, std::chrono::steady_clock::time_point now);

// InvalidArgument if it is too large to be sent.
absl::Status ToWire(const protocol::WorkResult& result, wire::Result& message);
absl::StatusOr<protocol::WorkResult> FromWire(const wire::Result& message);

// How many rows and columns the answer to a work has, and which sequences a vector. Two that are
// equal can be read with the same indices.
std::vector<uint32_t> ShapeOf(const protocol::Work& work);
std::vector<uint32_t> ShapeOf(const protocol::WorkResult& result);

// REQUIRES: not OK. Of the payloads kRetrySecondsPayload travels.
void ToWire(const absl::Status& status, wire::Error& message);
// Never OK; Internal for a code that there is not.
absl::Status FromWire(const wire::Error& message);

// REQUIRES: at most kMaxReportBlocks blocks, removed and stored together.
void ToWire(int32_t rank, const protocol::RankReport& report, wire::Report& message);
// Of a host with so many ranks; the rank is in the message.
absl::StatusOr<protocol::RankReport> FromWire(const wire::Report& message, int32_t rank_count);

// How many blocks a rank says it holds: reports follow on reports, so that a limit for each alone
// bounds nothing that is kept of them.
class HeldBlockCount {
 public:
  // 0: the rank has no cache.
  explicit HeldBlockCount(uint64_t max_blocks) : max_blocks_(max_blocks) {}

  // With the next report. An error is one that no rank sends: nothing is counted then.
  absl::Status Count(const protocol::CacheEvents& events);

 private:
  uint64_t max_blocks_;
  uint64_t blocks_ = 0;
};

}  // namespace zp::workplane
