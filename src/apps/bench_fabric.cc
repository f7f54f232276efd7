#include "apps/bench_fabric.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "apps/command.h"
#include "apps/read_rate.h"
#include "base/check.h"
#include "base/logging.h"
#include "base/status.h"
#include "boost/json.hpp"
#include "fabric/abandon.h"
#include "fabric/file_source.h"
#include "fabric/memory_server.h"
#include "fabric/peer_source.h"
#include "fmt/format.h"
#include "memory/buffer.h"

namespace zp::apps {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kRegionBytes = 256ull << 20;  // what a server holds out; beyond every cache

struct FabricOptions {
  bool json = false;
  std::string only = "all";
  std::vector<int32_t> depths = {4, 8, 16};
  std::vector<double> link_gbit_per_s = {0, 4};
  int32_t rounds = 5;
  double seconds = 1.0;
  std::string directory = ".";
};

// One transfer. CPU seconds are user and system time of the process; the kernel's work in
// interrupts goes to whichever process it interrupts.
struct Transfer {
  double bytes_per_s = 0;
  double reader_cpu_s_per_gb = 0;
  double server_cpu_s_per_gb = 0;
};

// --- the link ---

bool Run(const std::string& command) {
  return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
}

// Two network namespaces joined by a veth pair; loopback where there is no right to make them.
class Link {
 public:
  static constexpr const char* kServer = "zp-bench-server";
  static constexpr const char* kReader = "zp-bench-reader";

  Link() {
    Remove();
    const std::string in_server = fmt::format("ip -n {} ", kServer);
    const std::string in_reader = fmt::format("ip -n {} ", kReader);
    is_veth_ = geteuid() == 0 && Run(fmt::format("ip netns add {}", kServer)) &&
               Run(fmt::format("ip netns add {}", kReader)) &&
               Run(in_server +
                   fmt::format("link add veth0 type veth peer name veth0 netns {}", kReader)) &&
               Run(in_server + "addr add 10.201.0.1/24 dev veth0") &&
               Run(in_reader + "addr add 10.201.0.2/24 dev veth0") &&
               Run(in_server + "link set veth0 up") && Run(in_reader + "link set veth0 up") &&
               Run(in_server + "link set lo up") && Run(in_reader + "link set lo up");
  }
  ~Link() { Remove(); }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  const char* kind() const { return is_veth_ ? "veth" : "loopback"; }
  const char* interface() const { return is_veth_ ? "veth0" : "lo"; }
  std::string reader_address() const { return is_veth_ ? "10.201.0.2" : "127.0.0.1"; }

  // Limits what the server sends; 0 takes the limit away. False where that cannot be.
  bool Shape(double gbit_per_s) const {
    if (!is_veth_) {
      return gbit_per_s == 0;
    }
    const std::string tc = fmt::format("tc -n {} qdisc ", kServer);
    Run(tc + "del dev veth0 root");
    return gbit_per_s == 0 ||
           Run(tc + fmt::format("add dev veth0 root tbf rate {}mbit burst 1mb latency 20ms",
                                gbit_per_s * 1000));
  }

  // Puts this process into a namespace, with a /sys of its own: UCX looks for interfaces there.
  void Enter(const char* name) const {
    if (is_veth_) {
      const int file = open(fmt::format("/var/run/netns/{}", name).c_str(), O_RDONLY | O_CLOEXEC);
      ZP_CHECK(file >= 0 && setns(file, CLONE_NEWNET) == 0) << std::strerror(errno);
      close(file);
      ZP_CHECK(unshare(CLONE_NEWNS) == 0 &&
               mount("", "/", "none", MS_SLAVE | MS_REC, nullptr) == 0 &&
               mount(name, "/sys", "sysfs", 0, nullptr) == 0)
          << std::strerror(errno);
    }
  }
  // The beginning of a command line that runs in a namespace.
  std::string In(const char* name) const {
    return is_veth_ ? fmt::format("ip netns exec {} ", name) : "";
  }

 private:
  static void Remove() {
    if (geteuid() == 0) {
      Run(fmt::format("ip netns del {}", kServer));
      Run(fmt::format("ip netns del {}", kReader));
    }
  }
  bool is_veth_ = false;
};

// --- processes ---

// A forked process with a socket to it; it ends when the socket is closed.
class Child {
 public:
  explicit Child(const std::function<void(int socket)>& body) {
    std::array<int, 2> ends = {-1, -1};
    ZP_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    process_ = fork();
    if (process_ == 0) {
      close(ends[0]);
      body(ends[1]);
      _exit(0);
    }
    close(ends[1]);
    socket_ = ends[0];
  }
  ~Child() {
    close(socket_);
    waitpid(process_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  int socket() const { return socket_; }

 private:
  pid_t process_ = -1;
  int socket_ = -1;
};

bool SendAll(int socket, const void* data, size_t bytes) {
  return send(socket, data, bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes);
}
bool ReceiveAll(int socket, void* data, size_t bytes) {
  return recv(socket, data, bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes);
}

void UseUcxOverTcpOn(const char* interface) {
  setenv("UCX_TLS", "tcp", 1);
  setenv("UCX_NET_DEVICES", interface, 1);
}

// Sends its advertisement, then its CPU seconds for every byte it gets.
void ServeUntilClosed(const Link& link, fabric::PeerTransport transport, int socket) {
  link.Enter(Link::kServer);
  UseUcxOverTcpOn(link.interface());
  const memory::Buffer memory(kRegionBytes, "bench");
  std::memset(memory.data(), 1, memory.size_bytes());
  const std::vector<fabric::MemoryRegion> regions = {{0, memory.bytes()}};
  const auto server =
      fabric::ServeMemory(regions, {.address = link.interface(), .transport = transport});
  ExitOnError(server.status());
  const std::string& advertisement = (*server)->advertisement();
  const uint64_t size = advertisement.size();
  bool is_open =
      SendAll(socket, &size, sizeof(size)) && SendAll(socket, advertisement.data(), size);
  char asked = 0;
  while (is_open && ReceiveAll(socket, &asked, 1)) {
    const double cpu_s = CpuSeconds();
    is_open = SendAll(socket, &cpu_s, sizeof(cpu_s));
  }
}

absl::StatusOr<Transfer> MeasurePeer(const Link& link,
                                     fabric::PeerTransport transport,
                                     int32_t depth,
                                     double seconds) {
  const Child server([&](int socket) { ServeUntilClosed(link, transport, socket); });
  uint64_t size = 0;
  std::string advertisement;
  const auto server_cpu_s = [&] {
    double cpu_s = 0;
    return SendAll(server.socket(), "?", 1) && ReceiveAll(server.socket(), &cpu_s, sizeof(cpu_s))
               ? cpu_s
               : -1;
  };
  if (!ReceiveAll(server.socket(), &size, sizeof(size))) {
    return absl::UnavailableError("the server did not start");
  }
  advertisement.resize(size);
  ReceiveAll(server.socket(), advertisement.data(), size);
  const double cpu_s_before = server_cpu_s();
  ReadReport report = {.error = EIO};
  {
    const Child reader([&](int socket) {
      link.Enter(Link::kReader);
      UseUcxOverTcpOn(link.interface());
      const auto source = fabric::OpenPeerSource(advertisement, {.depth = depth});
      ExitOnError(source.status());
      const ReadReport result = ReadFor(**source, kRegionBytes, seconds);
      SendAll(socket, &result, sizeof(result));
    });
    ReceiveAll(reader.socket(), &report, sizeof(report));
  }
  const double cpu_s_after = server_cpu_s();
  if (report.error != 0 || cpu_s_before < 0 || cpu_s_after < 0) {
    return absl::UnavailableError(fmt::format(
        "reading from the server: {}", std::strerror(report.error == 0 ? EIO : report.error)));
  }
  return Transfer{.bytes_per_s = static_cast<double>(report.bytes) / report.seconds,
                  .reader_cpu_s_per_gb = report.cpu_s / (1e-9 * static_cast<double>(report.bytes)),
                  .server_cpu_s_per_gb = (cpu_s_after - cpu_s_before) /
                                         (1e-9 * static_cast<double>(report.all_bytes))};
}

// iperf3 over the same link, in the same direction, one stream.
absl::StatusOr<Transfer> MeasureIperf3(const Link& link, double seconds) {
  const std::string receiver = link.In(Link::kReader) + "iperf3 -s -1 -p 5301 -D";
  const std::string sender =
      link.In(Link::kServer) + fmt::format("iperf3 -J -p 5301 -c {} -t {} 2>&1",
                                           link.reader_address(),
                                           std::max(1, static_cast<int>(seconds)));
  if (!Run("command -v iperf3") || !Run(receiver)) {
    return absl::UnavailableError("iperf3 does not run; it is a package of Debian");
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  std::string text;
  const std::unique_ptr<FILE, int (*)(FILE*)> output(popen(sender.c_str(), "r"), pclose);
  std::array<char, 4096> part;
  while (const size_t count = fread(part.data(), 1, part.size(), output.get())) {
    text.append(part.data(), count);
  }
  try {
    const json::value result = json::parse(text);
    const json::value& end = result.at("end");
    const double bytes_per_s = end.at("sum_received").at("bits_per_second").to_number<double>() / 8;
    const auto cpu_s_per_gb = [&](const char* side) {
      const json::value& percent = end.at("cpu_utilization_percent").at(side);
      return percent.to_number<double>() / 100 / (1e-9 * bytes_per_s);
    };
    return Transfer{.bytes_per_s = bytes_per_s,
                    .reader_cpu_s_per_gb = cpu_s_per_gb("remote_total"),
                    .server_cpu_s_per_gb = cpu_s_per_gb("host_total")};
  } catch (const std::exception& error) {
    return absl::UnavailableError(fmt::format("iperf3: {}", error.what()));
  }
}

// --- files ---

absl::StatusOr<Transfer> MeasureFileSource(const std::string& path,
                                           uint64_t file_bytes,
                                           int32_t depth,
                                           double seconds) {
  const std::vector<std::string> paths = {path};
  ZP_ASSIGN_OR_RETURN(const auto source, fabric::OpenFileSource(paths, {.depth = depth}));
  const ReadReport report = ReadFor(*source, file_bytes, seconds);
  if (report.error != 0) {
    return absl::ErrnoToStatus(report.error, path);
  }
  return Transfer{.bytes_per_s = static_cast<double>(report.bytes) / report.seconds,
                  .reader_cpu_s_per_gb = report.cpu_s / (1e-9 * static_cast<double>(report.bytes))};
}

// The yardstick: `depth` threads with nothing but pread.
absl::StatusOr<Transfer> MeasurePlainReads(const std::string& path,
                                           uint64_t file_bytes,
                                           int32_t depth,
                                           double seconds) {
  const int file = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (file < 0) {
    return absl::ErrnoToStatus(errno, path);
  }
  const memory::Buffer buffer(static_cast<size_t>(depth) * kReadRateSliceBytes, "bench");
  std::memset(buffer.data(), 0, buffer.size_bytes());
  std::atomic<uint64_t> next_slice = 0;
  const Clock::time_point begin = Clock::now();
  const double begin_cpu_s = CpuSeconds();
  {
    std::vector<std::jthread> threads;
    threads.reserve(depth);
    for (int32_t i = 0; i < depth; ++i) {
      threads.emplace_back([&, i] {
        while (Clock::now() - begin < std::chrono::duration<double>(seconds)) {
          const uint64_t offset = next_slice++ * kReadRateSliceBytes % file_bytes;
          ZP_CHECK(pread(file,
                         buffer.data() + static_cast<uint64_t>(i) * kReadRateSliceBytes,
                         kReadRateSliceBytes,
                         static_cast<off_t>(offset)) == static_cast<ssize_t>(kReadRateSliceBytes));
        }
      });
    }
  }
  close(file);
  const double bytes = static_cast<double>(next_slice * kReadRateSliceBytes);
  return Transfer{
      .bytes_per_s = bytes / std::chrono::duration<double>(Clock::now() - begin).count(),
      .reader_cpu_s_per_gb = (CpuSeconds() - begin_cpu_s) / (1e-9 * bytes)};
}

// --- the report ---

struct Case {
  std::string name;
  int32_t depth = 0;
  std::function<absl::StatusOr<Transfer>()> measure;
};

json::object Summary(std::vector<double> values) {
  std::ranges::sort(values);
  return {{"median", values[values.size() / 2]}, {"min", values.front()}, {"max", values.back()}};
}

// Measures all cases in every round, the first being the yardstick of the same `depth` (or of all
// depths, where its own is 0), and prints a line for each.
absl::Status MeasureAll(const std::vector<Case>& cases,
                        int32_t rounds,
                        const json::object& common) {
  std::vector<std::vector<Transfer>> transfers(cases.size());
  for (int32_t round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      ZP_ASSIGN_OR_RETURN(const Transfer transfer, cases[i].measure());
      transfers[i].push_back(transfer);
    }
  }
  size_t yardstick = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    if (cases[i].name == cases[0].name) {
      yardstick = i;
    }
    std::vector<double> rates, ratios, reader_cpu, server_cpu;
    for (int32_t round = 0; round < rounds; ++round) {
      const Transfer& transfer = transfers[i][round];
      rates.push_back(transfer.bytes_per_s);
      ratios.push_back(transfer.bytes_per_s / transfers[yardstick][round].bytes_per_s);
      reader_cpu.push_back(transfer.reader_cpu_s_per_gb);
      server_cpu.push_back(transfer.server_cpu_s_per_gb);
    }
    json::object line = common;
    line["case"] = cases[i].name;
    line["depth"] = cases[i].depth;
    line["bytes_per_s"] = Summary(rates);
    line["of_" + cases[0].name] = Summary(ratios);
    line["reader_cpu_s_per_gb"] = Summary(reader_cpu);
    line["server_cpu_s_per_gb"] = Summary(server_cpu);
    fmt::print("{}\n", json::serialize(line));
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

absl::Status MeasureLink(const FabricOptions& options) {
  const Link link;
  for (const double gbit_per_s : options.link_gbit_per_s) {
    if (!link.Shape(gbit_per_s)) {
      base::log::warn("the link cannot be limited to {} Gbit/s here: left out", gbit_per_s);
      continue;
    }
    std::vector<Case> cases = {
        {.name = "iperf3", .measure = [&] { return MeasureIperf3(link, options.seconds); }}};
    for (const int32_t depth : options.depths) {
      for (const auto& [name, transport] :
           {std::pair("tcp", fabric::PeerTransport::kTcp), {"ucx", fabric::PeerTransport::kUcx}}) {
        cases.push_back(
            {.name = name, .depth = depth, .measure = [&, depth, transport = transport] {
               return MeasurePeer(link, transport, depth, options.seconds);
             }});
      }
    }
    ZP_RETURN_IF_ERROR(MeasureAll(cases,
                                  options.rounds,
                                  {{"bench", "fabric"},
                                   {"link", link.kind()},
                                   {"link_gbit_per_s", gbit_per_s},
                                   {"slice_bytes", kReadRateSliceBytes},
                                   {"rounds", options.rounds}}));
  }
  return absl::OkStatus();
}

absl::Status MeasureFiles(const FabricOptions& options) {
  constexpr uint64_t kFileBytes = 2ull << 30;
  const std::string path =
      std::filesystem::path(options.directory) / fmt::format("zp-bench-fabric.{}", getpid());
  const std::shared_ptr<void> remove_at_end(nullptr, [&](void*) { std::filesystem::remove(path); });
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  std::mt19937_64 random(1);
  std::vector<uint64_t> words(kReadRateSliceBytes / sizeof(uint64_t));
  std::ranges::generate(words, random);
  bool is_written = file >= 0;
  for (uint64_t offset = 0; is_written && offset < kFileBytes; offset += kReadRateSliceBytes) {
    words[0] = offset;
    is_written =
        write(file, words.data(), kReadRateSliceBytes) == static_cast<ssize_t>(kReadRateSliceBytes);
  }
  is_written = is_written && fsync(file) == 0;
  if (!is_written) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot write {}", path));
  }
  close(file);
  std::vector<Case> cases;
  for (const int32_t depth : options.depths) {
    cases.push_back({.name = "pread", .depth = depth, .measure = [&, depth] {
                       return MeasurePlainReads(path, kFileBytes, depth, options.seconds);
                     }});
    cases.push_back({.name = "file_source", .depth = depth, .measure = [&, depth] {
                       return MeasureFileSource(path, kFileBytes, depth, options.seconds);
                     }});
  }
  return MeasureAll(cases,
                    options.rounds,
                    {{"bench", "fabric"},
                     {"link", "file"},
                     {"slice_bytes", kReadRateSliceBytes},
                     {"rounds", options.rounds}});
}

absl::Status RunFabric(const FabricOptions& options) {
  if (options.only != "files") {
    ZP_RETURN_IF_ERROR(MeasureLink(options));
  }
  if (options.only != "link") {
    ZP_RETURN_IF_ERROR(MeasureFiles(options));
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchFabricCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "fabric",
      "Bandwidth and CPU of reading weights from a peer, beside iperf3 on the same link, and from "
      "a "
      "file; root makes a link of its own (two network namespaces), else it is loopback");
  const auto options = std::make_shared<FabricOptions>();
  command->add_flag("--json", options->json, "JSON lines; there is no other form");
  command->add_option("--only", options->only, "What to measure")
      ->check(CLI::IsMember({"all", "link", "files"}))
      ->capture_default_str();
  command->add_option("--depths", options->depths, "Slices of 2 MiB in flight")
      ->delimiter(',')
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--link-gbit", options->link_gbit_per_s, "Limits of the link; 0: none")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "Rounds, each with all cases")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seconds", options->seconds, "Length of one transfer")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--directory", options->directory, "Where the 2 GiB file is written")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  command->callback([options] { ExitOnError(RunFabric(*options)); });
}

}  // namespace zp::apps
