#include "fabric/peer_source.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <random>
#include <thread>

#include "fabric/descriptor.h"
#include "fabric/memory_server.h"
#include "gtest/gtest.h"
#include "memory/buffer.h"

namespace zp::fabric {
namespace {

constexpr size_t kBlockBytes = 4096;
constexpr size_t kSliceBytes = 64 * kBlockBytes;
constexpr size_t kRegionBytes = 64 * kSliceBytes;
constexpr std::chrono::seconds kPatience(20);

// Byte `offset` of `object`, so that any process can tell.
std::byte ByteAt(uint32_t object, uint64_t offset) {
  const uint64_t mixed = (offset / 8 + object * 1000003ull) * 0x9E3779B97F4A7C15ull;
  return static_cast<std::byte>(mixed >> (8 * (offset % 8)));
}

void Fill(std::span<std::byte> bytes, uint32_t object) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = ByteAt(object, i);
  }
}

bool Holds(const SliceRead& read) {
  for (size_t i = 0; i < read.destination.size(); ++i) {
    if (read.destination[i] != ByteAt(read.object, read.offset + i)) {
      return false;
    }
  }
  return true;
}

// Two regions, 3 and 8, of different lengths.
class Served {
 public:
  explicit Served(PeerTransport transport, uint16_t port = 0)
      : memory_(kRegionBytes + 5 * kBlockBytes, "test") {
    const auto bytes = memory_.bytes();
    Fill(bytes.first(kRegionBytes), 3);
    Fill(bytes.subspan(kRegionBytes), 8);
    const std::vector<MemoryRegion> regions = {{3, bytes.first(kRegionBytes)},
                                               {8, bytes.subspan(kRegionBytes)}};
    auto server = ServeMemory(regions, {.port = port, .transport = transport});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  const std::string& advertisement() const { return server_->advertisement(); }

 private:
  memory::Buffer memory_;
  std::unique_ptr<MemoryServer> server_;
};

// A server in a process of its own, to be stopped and killed.
class ServerProcess {
 public:
  explicit ServerProcess(PeerTransport transport) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    const Descriptor read_end(ends[0]);
    Descriptor write_end(ends[1]);
    process_ = fork();
    if (process_ == 0) {
      const Served served(transport);
      const uint32_t size = static_cast<uint32_t>(served.advertisement().size());
      if (write(write_end.number(), &size, sizeof(size)) != sizeof(size) ||
          write(write_end.number(), served.advertisement().data(), size) != size) {
        _exit(1);
      }
      pause();
      _exit(0);
    }
    write_end.Close();
    uint32_t size = 0;
    EXPECT_EQ(read(read_end.number(), &size, sizeof(size)), static_cast<ssize_t>(sizeof(size)));
    advertisement_.resize(size);
    EXPECT_EQ(read(read_end.number(), advertisement_.data(), size), static_cast<ssize_t>(size));
  }
  ~ServerProcess() {
    Signal(SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  void Signal(int number) const { kill(process_, number); }
  // Returns when it has stopped.
  void Freeze() const {
    Signal(SIGSTOP);
    EXPECT_EQ(waitpid(process_, nullptr, WUNTRACED), process_);
  }
  const std::string& advertisement() const { return advertisement_; }

 private:
  pid_t process_ = -1;
  std::string advertisement_;
};

class PeerSource : public testing::TestWithParam<PeerTransport> {
 protected:
  static std::unique_ptr<ByteSource> Open(const std::string& advertisement, int32_t depth = 8) {
    auto source = OpenPeerSource(advertisement, {.depth = depth});
    EXPECT_TRUE(source.ok()) << source.status();
    return *std::move(source);
  }

  // Starts `count` reads of object 3, tokens from `first_token`, each into its part of the buffer.
  void StartReads(ByteSource& source, uint64_t count, uint64_t first_token = 0) {
    for (uint64_t i = 0; i < count; ++i) {
      reads_[first_token + i] = {.object = 3,
                                 .offset = (first_token * 7 + i) % 64 * kSliceBytes,
                                 .destination = Slot(i),
                                 .token = first_token + i};
      source.Start(reads_[first_token + i]);
    }
  }

  // Sleeps on event_fd() until `count` reads have ended or `patience` is over.
  static std::map<uint64_t, int> WaitFor(ByteSource& source,
                                         size_t count,
                                         std::chrono::milliseconds patience = kPatience) {
    std::map<uint64_t, int> errors;
    std::vector<SliceDone> done;
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (errors.size() < count && std::chrono::steady_clock::now() < deadline) {
      if (source.Arm()) {
        pollfd wait = {.fd = source.event_fd(), .events = POLLIN, .revents = 0};
        poll(&wait, 1, static_cast<int>(patience.count()));
      }
      done.clear();
      source.Poll(done);
      for (const SliceDone& one : done) {
        EXPECT_TRUE(errors.emplace(one.token, one.error).second) << one.token << " ended twice";
      }
    }
    return errors;
  }

  void ExpectGoodReads(ByteSource& source, uint64_t count, uint64_t first_token) {
    StartReads(source, count, first_token);
    const auto errors = WaitFor(source, count);
    EXPECT_EQ(errors.size(), count);
    for (const auto& [token, error] : errors) {
      ASSERT_EQ(error, 0) << std::strerror(error);
      EXPECT_TRUE(Holds(reads_[token]));
    }
  }

  // Fills the buffer, and expects that nobody writes to it any more.
  void ExpectUntouched(ByteSource& source) {
    std::memset(buffer_.data(), 0xCD, buffer_.size_bytes());
    const auto errors = WaitFor(source, 1, std::chrono::milliseconds(300));
    EXPECT_TRUE(errors.empty());
    for (const std::byte byte : buffer_.bytes()) {
      ASSERT_EQ(byte, std::byte{0xCD});
    }
  }

  std::span<std::byte> Slot(uint64_t i) const {
    return buffer_.bytes().subspan(i * kSliceBytes, kSliceBytes);
  }

  memory::Buffer buffer_{8 * kSliceBytes, "test"};
  std::map<uint64_t, SliceRead> reads_;  // by token
};

TEST_P(PeerSource, ReadsWhatThePeerHolds) {
  const Served served(GetParam());
  const auto source = Open(served.advertisement());
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    std::vector<SliceRead> reads;
    for (uint64_t token = 0; token < 8; ++token) {
      const uint32_t object = random() % 4 == 0 ? 8 : 3;
      const size_t region_blocks = object == 8 ? 5 : kRegionBytes / kBlockBytes;
      const size_t first = random() % region_blocks;
      const size_t blocks = 1 + random() % std::min<size_t>(64, region_blocks - first);
      reads.push_back({.object = object,
                       .offset = first * kBlockBytes,
                       .destination = Slot(token).first(blocks * kBlockBytes),
                       .token = token});
      source->Start(reads.back());
    }
    for (const auto& [token, error] : WaitFor(*source, 8)) {
      ASSERT_EQ(error, 0) << std::strerror(error);
      EXPECT_TRUE(Holds(reads[token]));
    }
  }
}

TEST_P(PeerSource, ServesManySources) {
  const Served served(GetParam());
  std::vector<std::unique_ptr<ByteSource>> sources;
  for (int i = 0; i < 4; ++i) {
    sources.push_back(Open(served.advertisement(), 2));
    for (uint64_t j = 0; j < 2; ++j) {
      reads_[2 * i + j] = {.object = 3,
                           .offset = (2 * i + j) * kSliceBytes,
                           .destination = Slot(2 * i + j),
                           .token = 2 * i + j};
      sources.back()->Start(reads_[2 * i + j]);
    }
  }
  for (const auto& source : sources) {
    for (const auto& [token, error] : WaitFor(*source, 2)) {
      ASSERT_EQ(error, 0) << std::strerror(error);
      EXPECT_TRUE(Holds(reads_[token]));
    }
  }
}

TEST_P(PeerSource, RefusesWhatIsNotInARegion) {
  const Served served(GetParam());
  const auto source = Open(served.advertisement());
  source->Start({.object = 4, .destination = Slot(0)});
  EXPECT_NE(WaitFor(*source, 1).at(0), 0);
  source->Start({.object = 8, .offset = 4 * kBlockBytes, .destination = Slot(0), .token = 1});
  EXPECT_NE(WaitFor(*source, 1).at(1), 0);
  ExpectGoodReads(*source, 8, 2);
}

TEST_P(PeerSource, CarriesOnAfterAbandon) {
  const Served served(GetParam());
  const auto source = Open(served.advertisement());
  for (uint64_t round = 0; round < 10; ++round) {
    StartReads(*source, 8, 1000 + 100 * round);
    if (round % 2 == 1) {  // some of them are on their way
      WaitFor(*source, 0);
      std::vector<SliceDone> done;
      source->Poll(done);
      source->Abandon();
      EXPECT_EQ(done.size() + WaitFor(*source, 8 - done.size()).size(), 8u);
    } else {
      source->Abandon();
      for (const auto& [token, error] : WaitFor(*source, 8)) {
        EXPECT_EQ(error, ECANCELED);
      }
    }
    ExpectUntouched(*source);
    ExpectGoodReads(*source, 8, 100 * round);
  }
}

TEST_P(PeerSource, MayAbandonWhenItLikes) {
  const Served served(GetParam());
  const auto source = Open(served.advertisement());
  std::mt19937 random(3);
  std::vector<SliceDone> done;
  for (uint64_t round = 0; round < 200; ++round) {
    StartReads(*source, 8, 8 * round);
    done.clear();
    for (uint32_t polls = random() % 20; polls > 0; --polls) {
      source->Poll(done);
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 100));
    }
    source->Abandon();
    ASSERT_EQ(done.size() + WaitFor(*source, 8 - done.size()).size(), 8u);
  }
  ExpectGoodReads(*source, 8, 8000);
}

TEST_P(PeerSource, IsDestroyedWithReadsInFlight) {
  const Served served(GetParam());
  const auto source = Open(served.advertisement());
  StartReads(*source, 8);
}

TEST_P(PeerSource, EndsItsReadsWhenThePeerIsKilled) {
  const ServerProcess server(GetParam());
  const auto source = Open(server.advertisement());
  ExpectGoodReads(*source, 8, 0);
  server.Freeze();  // so that the reads are in flight when it dies
  StartReads(*source, 8, 100);
  EXPECT_TRUE(WaitFor(*source, 1, std::chrono::milliseconds(100)).empty());
  server.Signal(SIGKILL);
  const auto errors = WaitFor(*source, 8);
  EXPECT_EQ(errors.size(), 8u);
  for (const auto& [token, error] : errors) {
    EXPECT_NE(error, 0);
  }
  ExpectUntouched(*source);
  source->Start({.object = 3, .destination = Slot(0), .token = 999});
  EXPECT_NE(WaitFor(*source, 1).at(999), 0);
}

TEST_P(PeerSource, WaitsForAFrozenPeerUntilAbandonedAndComesBack) {
  const ServerProcess server(GetParam());
  const auto source = Open(server.advertisement());
  ExpectGoodReads(*source, 8, 0);
  server.Freeze();
  StartReads(*source, 8, 100);
  EXPECT_TRUE(WaitFor(*source, 1, std::chrono::milliseconds(300)).empty());
  source->Abandon();
  const auto errors = WaitFor(*source, 8);
  EXPECT_EQ(errors.size(), 8u);
  for (const auto& [token, error] : errors) {
    EXPECT_EQ(error, ECANCELED);
  }
  std::memset(buffer_.data(), 0xCD, buffer_.size_bytes());
  server.Signal(SIGCONT);  // what it still sends must go nowhere
  ExpectUntouched(*source);
  ExpectGoodReads(*source, 8, 200);
}

TEST_P(PeerSource, SaysThatNobodyListens) {
  std::string advertisement;
  {
    const Served served(GetParam());
    advertisement = served.advertisement();
  }
  const auto source = Open(advertisement);
  StartReads(*source, 8);
  const auto errors = WaitFor(*source, 8);
  EXPECT_EQ(errors.size(), 8u);
  for (const auto& [token, error] : errors) {
    EXPECT_NE(error, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Transports,
                         PeerSource,
                         testing::Values(PeerTransport::kTcp, PeerTransport::kUcx),
                         [](const auto& info) {
                           return info.param == PeerTransport::kTcp ? "Tcp" : "Ucx";
                         });

TEST(OpenPeerSource, RefusesWhatIsNoAdvertisement) {
  for (const std::string text : {"",
                                 "tcp",
                                 "tcp 1.2.3.4 99999 00",
                                 "tcp host 1 00112233445566778899aabbccddeeff",
                                 "ucx ",
                                 "\xff\x00\x01"}) {
    EXPECT_EQ(OpenPeerSource(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ServeMemory, RefusesAddressesThatAreNotItsOwn) {
  for (const std::string address : {"0.0.0.0", "192.0.2.1", "no-such-interface"}) {
    const auto server = ServeMemory({}, {.address = address});
    EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument) << server.status();
    EXPECT_NE(server.status().ToString().find(address), std::string::npos);
  }
  EXPECT_TRUE(ServeMemory({}, {.address = "lo"}).ok());
}

TEST(ServeMemory, RefusesTwoRegionsOfOneObject) {
  const std::vector<MemoryRegion> regions = {{.object = 1}, {.object = 1}};
  EXPECT_EQ(ServeMemory(regions, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace zp::fabric
