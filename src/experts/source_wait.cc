#include "experts/source_wait.h"

#include <poll.h>

#include <algorithm>
#include <array>

#include "base/check.h"

namespace zp::experts {

void AwaitSources(const std::vector<ExpertSource>& sources,
                  int wake_fd,
                  std::chrono::steady_clock::time_point deadline) {
  std::array<pollfd, 65> fds;
  ZP_CHECK(sources.size() < fds.size()) << sources.size();
  size_t count = 0;
  fds[count++] = {.fd = wake_fd, .events = POLLIN, .revents = 0};  // poll skips -1
  for (const ExpertSource& source : sources) {
    if (source.bytes == nullptr) {
      continue;
    }
    if (!source.bytes->Arm()) {
      return;
    }
    fds[count++] = {.fd = source.bytes->event_fd(), .events = POLLIN, .revents = 0};
  }
  const auto timeout =
      std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  poll(fds.data(), count, static_cast<int>(std::max<int64_t>(timeout.count(), 0)));
}

}  // namespace zp::experts
