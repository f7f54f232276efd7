// Getting out of reads that nobody wants any more.
#pragma once

#include <poll.h>

#include <cstdint>
#include <vector>

#include "fabric/byte_source.h"

namespace zp::fabric {

// Abandons the reads in flight and returns when their completions have come: from then on nothing
// writes to their destinations.
inline void AbandonAndWait(ByteSource& source, int64_t reads_in_flight) {
  source.Abandon();
  std::vector<SliceDone> done;
  while (reads_in_flight > 0) {
    if (source.Arm()) {
      pollfd wait = {.fd = source.event_fd(), .events = POLLIN, .revents = 0};
      poll(&wait, 1, /*timeout=*/100);
    }
    done.clear();
    source.Poll(done);
    reads_in_flight -= static_cast<int64_t>(done.size());
  }
}

}  // namespace zp::fabric
