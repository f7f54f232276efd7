#include "apps/read_rate.h"

#include <poll.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <vector>

#include "fabric/abandon.h"
#include "memory/buffer.h"

namespace zp::apps {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPatienceMs = 10'000;

// Waits for completions and takes them; an errno value if none comes.
int AwaitSome(fabric::ByteSource& source, std::vector<fabric::SliceDone>& done) {
  done.clear();
  pollfd wait = {.fd = source.event_fd(), .events = POLLIN, .revents = 0};
  if (source.Arm() && poll(&wait, 1, kPatienceMs) != 1) {
    return ETIMEDOUT;
  }
  source.Poll(done);
  const auto failed = std::ranges::find_if(done, [](const auto& one) { return one.error != 0; });
  return failed != done.end() ? failed->error : 0;
}

}  // namespace

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

ReadReport ReadFor(fabric::ByteSource& source, uint64_t object_bytes, double seconds) {
  const auto depth = static_cast<uint64_t>(source.max_reads_in_flight());
  const memory::Buffer buffer(depth * kReadRateSliceBytes, "bench");
  uint64_t next_slice = 0;
  int64_t in_flight = 0;
  const auto start = [&](uint64_t slot) {
    ++in_flight;
    source.Start(
        {.object = 0,
         .offset = next_slice++ * kReadRateSliceBytes % object_bytes,
         .destination = buffer.bytes().subspan(slot * kReadRateSliceBytes, kReadRateSliceBytes),
         .token = slot});
  };
  for (uint64_t slot = 0; slot < depth; ++slot) {
    start(slot);
  }
  ReadReport report;
  uint64_t ended_slices = 0, warm_slices = 0;
  Clock::time_point begin = {};
  double begin_cpu_s = 0;
  std::vector<fabric::SliceDone> done;
  while (true) {
    report.error = AwaitSome(source, done);
    in_flight -= static_cast<int64_t>(done.size());
    if (report.error != 0) {
      break;
    }
    for (const fabric::SliceDone& one : done) {
      ++ended_slices;
      start(one.token);
    }
    const Clock::time_point now = Clock::now();
    if (warm_slices == 0) {
      if (ended_slices >= 2 * depth) {
        warm_slices = ended_slices;
        begin = now;
        begin_cpu_s = CpuSeconds();
      }
    } else if (now - begin > std::chrono::duration<double>(seconds)) {
      report.seconds = std::chrono::duration<double>(now - begin).count();
      break;
    }
  }
  report.cpu_s = CpuSeconds() - begin_cpu_s;
  report.bytes = (ended_slices - warm_slices) * kReadRateSliceBytes;
  report.all_bytes = ended_slices * kReadRateSliceBytes;
  // Until they have ended the buffer may be written to. A reader that gives up in the middle of a
  // read ends a server of UCX 1.13 (docs/decisions/0014), so those that go well are waited for.
  while (in_flight > 0 && report.error == 0) {
    report.error = AwaitSome(source, done);
    in_flight -= static_cast<int64_t>(done.size());
  }
  fabric::AbandonAndWait(source, in_flight);
  return report;
}

}  // namespace zp::apps
