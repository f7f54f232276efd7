#include "apps/tunnel_rank_links.h"

#include <chrono>
#include <utility>

#include "apps/process_memory.h"
#include "apps/shared_memory.h"
#include "apps/tunnel_shared_exchange.h"
#include "apps/tunnel_shared_links.h"
#include "apps/tunnel_shared_source.h"
#include "fabric/exchange_mesh.h"
#include "fabric/exchange_tcp.h"
#include "fabric/memory_server.h"
#include "fabric/peer_source.h"

namespace zp::apps {
namespace {

// Time is stretched here, and patience with it.
constexpr std::chrono::seconds kJoinTimeout{60};
constexpr std::chrono::seconds kStepTimeout{600};

class NetworkRankLinks final : public RankLinks {
 public:
  NetworkRankLinks(int32_t rank, std::vector<std::string> addresses) : rank_(rank) {
    constexpr uint16_t kPort = 7300;  // every rank has a network namespace of its own
    for (std::string& address : addresses) {
      addresses_.push_back({.host = std::move(address), .port = kPort});
    }
  }

  absl::StatusOr<std::string> HoldOut(std::span<const std::byte> bytes) override {
    const fabric::MemoryRegion region{.object = 0, .bytes = bytes};
    ZP_ASSIGN_OR_RETURN(
        server_, fabric::ServeMemory(std::span(&region, 1), {.address = addresses_[rank_].host}));
    ZP_ASSIGN_OR_RETURN(listener_, fabric::ListenForRanks(addresses_[rank_]));
    return server_->advertisement();
  }

  absl::StatusOr<std::unique_ptr<fabric::ByteSource>> Reach(
      int32_t, const std::string& advertisement) override {
    return fabric::OpenPeerSource(advertisement);
  }

  absl::StatusOr<std::unique_ptr<fabric::Exchange>> Join() override {
    ZP_ASSIGN_OR_RETURN(std::vector<fabric::Descriptor> sockets,
                        fabric::ConnectMesh(listener_, rank_, addresses_, kJoinTimeout));
    return fabric::MakeTcpExchange(std::move(sockets), rank_, kStepTimeout);
  }

 private:
  const int32_t rank_;
  std::vector<fabric::RankAddress> addresses_;
  std::unique_ptr<fabric::MemoryServer> server_;
  fabric::Descriptor listener_;
};

// The timetable comes first in the memory, then the exchange.
class SharedRankLinks final : public RankLinks {
 public:
  SharedRankLinks(int32_t rank, int32_t rank_count, std::unique_ptr<SharedMemory> memory)
      : rank_(rank),
        rank_count_(rank_count),
        memory_(std::move(memory)),
        links_(memory_->bytes(), rank_count) {}

  absl::StatusOr<std::string> HoldOut(std::span<const std::byte> bytes) override {
    AllowReaders();
    return HeldOutMemory::Of(bytes).ToText();
  }

  absl::StatusOr<std::unique_ptr<fabric::ByteSource>> Reach(
      int32_t rank, const std::string& advertisement) override {
    ZP_ASSIGN_OR_RETURN(const HeldOutMemory memory, HeldOutMemory::FromText(advertisement));
    return MakeSharedSource(memory, links_, rank, rank_);
  }

  absl::StatusOr<std::unique_ptr<fabric::Exchange>> Join() override {
    return JoinSharedExchange(memory_->bytes().subspan(SharedLinks::BytesFor(rank_count_)),
                              links_,
                              rank_,
                              rank_count_,
                              kStepTimeout);
  }

 private:
  const int32_t rank_;
  const int32_t rank_count_;
  const std::unique_ptr<SharedMemory> memory_;
  SharedLinks links_;
};

}  // namespace

std::unique_ptr<RankLinks> MakeNetworkRankLinks(int32_t rank, std::vector<std::string> addresses) {
  return std::make_unique<NetworkRankLinks>(rank, std::move(addresses));
}

size_t SharedRankLinksBytes(int32_t rank_count) {
  return SharedLinks::BytesFor(rank_count) + SharedExchangeBytes(rank_count);
}

absl::StatusOr<std::unique_ptr<RankLinks>> OpenSharedRankLinks(int32_t rank,
                                                               int32_t rank_count,
                                                               const std::string& path) {
  ZP_ASSIGN_OR_RETURN(std::unique_ptr<SharedMemory> memory, SharedMemory::Open(path));
  if (memory->bytes().size() < SharedRankLinksBytes(rank_count)) {
    return absl::InvalidArgumentError(path + " is too small for the links of so many ranks");
  }
  return std::make_unique<SharedRankLinks>(rank, rank_count, std::move(memory));
}

}  // namespace zp::apps
