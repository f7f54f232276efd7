// The links of a wind tunnel, as the process sees them that starts the ranks: how ranks are started
// so that they have them, and how fast they are.
//
// Shaped: one network namespace per rank, joined by a bridge, each with a link that brings and
// takes so many bytes a second. The ranks' own cores do the networking. Needs root and the programs
// ip and tc (iproute2).
//
// Shared: memory that all ranks map, with a timetable of the links (tunnel_shared_links.h). They
// cost the cores one copy.
//
// Thread safety: one thread. Ownership: the destructor takes namespaces and bridge down.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace zp::apps {

enum class LinkKind { kShaped, kShared };

// "shaped" or "shared"; InvalidArgument otherwise.
absl::StatusOr<LinkKind> ParseLinkKind(const std::string& name);
std::string NameOf(LinkKind kind);

class TunnelLinks {
 public:
  // Errors: PermissionDenied for shaped ones without root.
  static absl::StatusOr<std::unique_ptr<TunnelLinks>> Create(LinkKind kind, int32_t rank_count);
  virtual ~TunnelLinks() = default;

  // Both directions of every rank's link, of which nobody has made use yet.
  virtual absl::Status Shape(double bytes_per_s) = 0;
  // What to put before a command that is to run on a rank's host.
  virtual std::vector<std::string> CommandPrefix(int32_t rank) const = 0;
  // What tells `bench tunnel-rank` how it reaches the other ranks.
  virtual std::vector<std::string> RankArguments() const = 0;
};

// Gives a process a share of one core, enforced by the kernel, so that one rank's waiting does not
// speed up another.
class CpuQuota {
 public:
  // Errors: FailedPrecondition where control groups cannot be written.
  static absl::StatusOr<std::unique_ptr<CpuQuota>> Limit(pid_t pid, double cores);
  ~CpuQuota();

 private:
  explicit CpuQuota(std::string directory) : directory_(std::move(directory)) {}
  const std::string directory_;
};

}  // namespace zp::apps
