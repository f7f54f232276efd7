#include "apps/tunnel_links.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "apps/child_process.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace fs = std::filesystem;

// Short names: an interface has at most 15 characters.
std::string UniqueName() { return fmt::format("zp{}", getpid() % 100000); }

bool WriteText(const fs::path& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.flush();
  return file.good();
}

}  // namespace

TunnelLinks::TunnelLinks(int32_t rank_count) : rank_count_(rank_count), name_(UniqueName()) {}

absl::StatusOr<std::unique_ptr<TunnelLinks>> TunnelLinks::Create(int32_t rank_count) {
  if (geteuid() != 0) {
    return absl::PermissionDeniedError("network namespaces need root");
  }
  std::unique_ptr<TunnelLinks> links(new TunnelLinks(rank_count));
  ZP_RETURN_IF_ERROR(links->SetUp());
  return links;
}

absl::Status TunnelLinks::SetUp() {
  ZP_RETURN_IF_ERROR(RunProgram({"ip", "link", "add", name_, "type", "bridge"}));
  ZP_RETURN_IF_ERROR(RunProgram({"ip", "link", "set", name_, "up"}));
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    const std::string space = NamespaceOf(rank);
    const std::vector<std::vector<std::string>> commands = {
        {"ip", "netns", "add", space},
        {"ip", "link", "add", OuterEnd(rank), "type", "veth", "peer", "eth0", "netns", space},
        {"ip", "link", "set", OuterEnd(rank), "master", name_, "up"},
        {"ip", "-n", space, "addr", "add", address(rank) + "/24", "dev", "eth0"},
        {"ip", "-n", space, "link", "set", "eth0", "up"},
        {"ip", "-n", space, "link", "set", "lo", "up"}};
    for (const auto& command : commands) {
      ZP_RETURN_IF_ERROR(RunProgram(command));
    }
  }
  return absl::OkStatus();
}

TunnelLinks::~TunnelLinks() {
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    (void)RunProgram({"ip", "netns", "del", NamespaceOf(rank)});
  }
  (void)RunProgram({"ip", "link", "del", name_});
}

absl::Status TunnelLinks::Shape(double bytes_per_s) {
  const std::string rate = fmt::format("{:.0f}bit", 8 * bytes_per_s);
  // Enough for what the link carries in 4 ms, and for one large segment.
  const std::string burst = fmt::format("{:.0f}b", std::max(bytes_per_s * 0.004, 131072.0));
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    const std::vector<std::string> shape = {
        "root", "tbf", "rate", rate, "burst", burst, "latency", "50ms"};
    std::vector<std::string> outer = {"tc", "qdisc", "replace", "dev", OuterEnd(rank)};
    std::vector<std::string> inner = {
        "tc", "-n", NamespaceOf(rank), "qdisc", "replace", "dev", "eth0"};
    outer.insert(outer.end(), shape.begin(), shape.end());
    inner.insert(inner.end(), shape.begin(), shape.end());
    ZP_RETURN_IF_ERROR(RunProgram(outer));
    ZP_RETURN_IF_ERROR(RunProgram(inner));
  }
  return absl::OkStatus();
}

std::string TunnelLinks::address(int32_t rank) const { return fmt::format("10.77.0.{}", rank + 1); }

std::vector<std::string> TunnelLinks::CommandPrefix(int32_t rank) const {
  return {"ip", "netns", "exec", NamespaceOf(rank)};
}

std::string TunnelLinks::NamespaceOf(int32_t rank) const {
  return fmt::format("{}r{}", name_, rank);
}

std::string TunnelLinks::OuterEnd(int32_t rank) const { return fmt::format("{}v{}", name_, rank); }

absl::StatusOr<std::unique_ptr<CpuQuota>> CpuQuota::Limit(pid_t pid, double cores) {
  // Short: within one period a rank may run at full speed.
  constexpr int kPeriodMicroseconds = 10'000;
  const int quota = static_cast<int>(cores * kPeriodMicroseconds);
  const std::string name = fmt::format("zeroprefill-{}", pid);
  const fs::path v1 = "/sys/fs/cgroup/cpu";
  const fs::path v2 = "/sys/fs/cgroup";
  const bool is_v1 = fs::exists(v1 / "cpu.cfs_quota_us");
  const fs::path directory = (is_v1 ? v1 : v2) / name;
  std::error_code error;
  fs::create_directory(directory, error);
  bool ok = !error;
  if (is_v1) {
    ok = ok && WriteText(directory / "cpu.cfs_period_us", std::to_string(kPeriodMicroseconds)) &&
         WriteText(directory / "cpu.cfs_quota_us", std::to_string(quota));
  } else {
    WriteText(v2 / "cgroup.subtree_control", "+cpu");
    ok = ok && WriteText(directory / "cpu.max", fmt::format("{} {}", quota, kPeriodMicroseconds));
  }
  if (!ok || !WriteText(directory / "cgroup.procs", std::to_string(pid))) {
    return absl::FailedPreconditionError(
        fmt::format("{}: a CPU quota cannot be set here", directory.string()));
  }
  return std::unique_ptr<CpuQuota>(new CpuQuota(directory.string()));
}

CpuQuota::~CpuQuota() {
  std::error_code ignored;
  fs::remove(directory_, ignored);
}

}  // namespace zp::apps
