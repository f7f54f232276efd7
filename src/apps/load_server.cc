#include "apps/load_server.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "fmt/format.h"

namespace zp::apps {
namespace {

constexpr std::chrono::seconds kStartTimeout{300};
constexpr std::chrono::milliseconds kWatchEvery{50};

}  // namespace

MetricsPage ParseMetrics(const std::string& page) {
  MetricsPage series;
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.rfind(' ');
    if (!line.starts_with('#') && space != std::string::npos) {
      series[line.substr(0, space)] = std::strtod(line.c_str() + space, nullptr);
    }
  }
  return series;
}

absl::StatusOr<std::unique_ptr<LoadServer>> LoadServer::Start(
    const std::vector<std::string>& flags) {
  std::vector<std::string> argv = {std::filesystem::read_symlink("/proc/self/exe").string(),
                                   "serve",
                                   "--port",
                                   "0",
                                   "--log-level",
                                   "warn"};
  argv.insert(argv.end(), flags.begin(), flags.end());
  ZP_ASSIGN_OR_RETURN(std::unique_ptr<ChildProcess> process, ChildProcess::Start(argv));
  // "ready: http://127.0.0.1:8000 serves NAME"
  ZP_ASSIGN_OR_RETURN(const std::string line, process->ReadLine(kStartTimeout));
  std::istringstream words(line);
  std::string ready;
  std::string url;
  words >> ready >> url;
  ZP_ASSIGN_OR_RETURN(ServerAddress address, ParseUrl(url));
  return std::unique_ptr<LoadServer>(new LoadServer(std::move(process), std::move(address)));
}

LoadServer::LoadServer(std::unique_ptr<ChildProcess> process, ServerAddress address)
    : process_(std::move(process)),
      address_(std::move(address)),
      watch_([this](const std::stop_token& stop) {
        while (!stop.stop_requested()) {
          {
            const int64_t bytes = ResidentBytes();
            const std::lock_guard lock(mutex_);
            resident_bytes_.emplace_back(std::chrono::steady_clock::now(), bytes);
          }
          std::this_thread::sleep_for(kWatchEvery);
        }
      }) {}

absl::StatusOr<MetricsPage> LoadServer::ReadMetrics() const {
  ZP_ASSIGN_OR_RETURN(const HttpAnswer answer, Get(address_, "/metrics"));
  return ParseMetrics(answer.body);
}

int64_t LoadServer::PeakBytes(TimePoint begin, TimePoint end) const {
  int64_t peak_bytes = 0;
  const std::lock_guard lock(mutex_);
  for (const auto& [time, bytes] : resident_bytes_) {
    peak_bytes = begin <= time && time <= end ? std::max(peak_bytes, bytes) : peak_bytes;
  }
  return peak_bytes;
}

// Threads that end or begin meanwhile do not count.
double LoadServer::GatewayCpuSeconds() const {
  double cpu_s = 0;
  std::error_code error;
  const std::string tasks = fmt::format("/proc/{}/task", process_->pid());
  for (const auto& task : std::filesystem::directory_iterator(tasks, error)) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm") >> std::ws, name);
    int64_t cpu_ns = 0;
    if (name == "http" || name == "gateway") {
      std::ifstream(task.path() / "schedstat") >> cpu_ns;
    }
    cpu_s += 1e-9 * static_cast<double>(cpu_ns);
  }
  return cpu_s;
}

int64_t LoadServer::ResidentBytes() const {
  std::ifstream file(fmt::format("/proc/{}/statm", process_->pid()));
  int64_t size_pages = 0;
  int64_t resident_pages = 0;
  file >> size_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace zp::apps
