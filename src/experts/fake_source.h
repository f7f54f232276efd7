// A source in memory that a test can slow down, stop, break and corrupt.
//
// Thread safety: the switches from any thread, the rest as ByteSource.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "experts/expert_source.h"

namespace zp::experts {

// The blobs of a catalog, random, and what goes with them.
struct FakeBlobs {
  ExpertCatalog catalog;
  std::vector<std::vector<std::byte>> objects;  // [layer]: all experts of it, one after the other
  std::vector<std::vector<uint64_t>> checksums;

  FakeBlobs(ExpertCatalog what, uint32_t seed) : catalog(std::move(what)) {
    std::mt19937 random(seed);
    for (LayerIndex layer = 0; layer < catalog.layer_count(); ++layer) {
      std::vector<std::byte>& object =
          objects.emplace_back(catalog.expert_count_of(layer) * catalog.expert_bytes);
      for (std::byte& byte : object) {
        byte = static_cast<std::byte>(random());
      }
      checksums.emplace_back();
      for (int32_t expert = 0; expert < catalog.expert_count_of(layer); ++expert) {
        checksums.back().push_back(base::Checksum(Blob(layer, expert)));
      }
    }
  }

  std::span<const std::byte> Blob(LayerIndex layer, int32_t expert) const {
    return std::span(objects[layer]).subspan(expert * catalog.expert_bytes, catalog.expert_bytes);
  }
};

struct FakeSwitches {
  std::atomic<bool> stopped{false};      // gives no sign of life
  std::atomic<bool> corrupt{false};      // delivers a wrong byte in each slice
  std::atomic<int> error{0};             // errno of every read
  std::atomic<int> reads_per_poll{100};  // that complete
  std::atomic<int64_t> started{0};
  std::atomic<int64_t> abandoned{0};
};

class FakeSource : public fabric::ByteSource {
 public:
  FakeSource(std::string name, const FakeBlobs& blobs, FakeSwitches& switches, int32_t depth = 4)
      : name_(std::move(name)),
        blobs_(blobs),
        switches_(switches),
        depth_(depth),
        event_fd_(eventfd(1, EFD_NONBLOCK)) {}
  ~FakeSource() override { close(event_fd_); }

  std::string_view name() const override { return name_; }
  int32_t max_reads_in_flight() const override { return depth_; }
  void Start(const fabric::SliceRead& read) override {
    ++switches_.started;
    reads_.push_back(read);
  }
  void Poll(std::vector<fabric::SliceDone>& done) override {
    if (cancelling_) {
      cancelling_ = false;
      for (; !reads_.empty(); reads_.pop_front()) {
        done.push_back({reads_.front().token, ECANCELED});
      }
    }
    for (int n = switches_.reads_per_poll; n > 0 && !reads_.empty() && !switches_.stopped; --n) {
      done.push_back({reads_.front().token, Deliver(reads_.front())});
      reads_.pop_front();
    }
  }
  bool Arm() override { return switches_.stopped || reads_.empty(); }
  int event_fd() const override { return event_fd_; }
  void Abandon() override {
    ++switches_.abandoned;
    cancelling_ = true;
  }

 private:
  int Deliver(const fabric::SliceRead& read) const {
    if (switches_.error != 0) {
      return switches_.error;
    }
    std::memcpy(read.destination.data(),
                blobs_.objects[read.object].data() + read.offset,
                read.destination.size());
    if (switches_.corrupt) {
      read.destination[read.destination.size() / 2] ^= std::byte{1};
    }
    return 0;
  }

  const std::string name_;
  const FakeBlobs& blobs_;
  FakeSwitches& switches_;
  const int32_t depth_;
  const int event_fd_;
  std::deque<fabric::SliceRead> reads_;
  bool cancelling_ = false;
};

// A source of the experts for which `has(layer, expert)`.
template <typename Has>
ExpertSource MakeFakeSource(
    SourceKind kind, std::string name, const FakeBlobs& blobs, FakeSwitches& switches, Has has) {
  ExpertSource source{.kind = kind, .name = name, .bytes = nullptr, .places = {}};
  source.bytes = std::make_unique<FakeSource>(std::move(name), blobs, switches);
  for (LayerIndex layer = 0; layer < blobs.catalog.layer_count(); ++layer) {
    std::vector<BlobPlace>& places = source.places.emplace_back();
    for (int32_t expert = 0; expert < blobs.catalog.expert_count_of(layer); ++expert) {
      places.push_back({.is_there = has(layer, expert),
                        .object = static_cast<uint32_t>(layer),
                        .offset = expert * blobs.catalog.expert_bytes});
    }
  }
  return source;
}

inline ExpertSource MakeFakeSource(SourceKind kind,
                                   std::string name,
                                   const FakeBlobs& blobs,
                                   FakeSwitches& switches) {
  return MakeFakeSource(
      kind, std::move(name), blobs, switches, [](LayerIndex, int32_t) { return true; });
}

}  // namespace zp::experts
