// How a rank of the wind tunnel reaches the others: by the network that its host has, or through
// memory that all ranks map.
//
// Thread safety: one thread. Ownership: what Reach and Join return must not outlive it, and it must
// not outlive what it holds out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "fabric/byte_source.h"
#include "fabric/exchange.h"

namespace zp::apps {

class RankLinks {
 public:
  virtual ~RankLinks() = default;

  // Makes bytes of this rank readable for the others, as object 0. Returns what they need to reach
  // them. Once, before Join.
  virtual absl::StatusOr<std::string> HoldOut(std::span<const std::byte> bytes) = 0;
  // The bytes for which HoldOut of `rank` gave `advertisement`.
  virtual absl::StatusOr<std::unique_ptr<fabric::ByteSource>> Reach(
      int32_t rank, const std::string& advertisement) = 0;
  // The all-to-all of dispatch; all ranks do this at once.
  virtual absl::StatusOr<std::unique_ptr<fabric::Exchange>> Join() = 0;
};

// addresses[rank], each in a network namespace of its own.
std::unique_ptr<RankLinks> MakeNetworkRankLinks(int32_t rank, std::vector<std::string> addresses);

// `path`: of memory of SharedRankLinksBytes that the process made that started the ranks.
size_t SharedRankLinksBytes(int32_t rank_count);
absl::StatusOr<std::unique_ptr<RankLinks>> OpenSharedRankLinks(int32_t rank,
                                                               int32_t rank_count,
                                                               const std::string& path);

}  // namespace zp::apps
