#include "apps/tunnel_links.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <utility>

#include "apps/child_process.h"
#include "apps/shared_memory.h"
#include "apps/tunnel_rank_links.h"
#include "apps/tunnel_shared_links.h"
#include "fmt/format.h"
#include "fmt/ranges.h"

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

class ShapedLinks final : public TunnelLinks {
 public:
  explicit ShapedLinks(int32_t rank_count) : rank_count_(rank_count), name_(UniqueName()) {}
  ~ShapedLinks() override;

  absl::Status SetUp();
  absl::Status Shape(double bytes_per_s) override;
  std::vector<std::string> CommandPrefix(int32_t rank) const override {
    return {"ip", "netns", "exec", NamespaceOf(rank)};
  }
  std::vector<std::string> RankArguments() const override;

 private:
  static std::string AddressOf(int32_t rank) { return fmt::format("10.77.0.{}", rank + 1); }
  std::string NamespaceOf(int32_t rank) const { return fmt::format("{}r{}", name_, rank); }
  std::string OuterEnd(int32_t rank) const { return fmt::format("{}v{}", name_, rank); }

  const int32_t rank_count_;
  const std::string name_;
};

absl::Status ShapedLinks::SetUp() {
  ZP_RETURN_IF_ERROR(RunProgram({"ip", "link", "add", name_, "type", "bridge"}));
  ZP_RETURN_IF_ERROR(RunProgram({"ip", "link", "set", name_, "up"}));
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    const std::string space = NamespaceOf(rank);
    const std::vector<std::vector<std::string>> commands = {
        {"ip", "netns", "add", space},
        {"ip", "link", "add", OuterEnd(rank), "type", "veth", "peer", "eth0", "netns", space},
        {"ip", "link", "set", OuterEnd(rank), "master", name_, "up"},
        {"ip", "-n", space, "addr", "add", AddressOf(rank) + "/24", "dev", "eth0"},
        {"ip", "-n", space, "link", "set", "eth0", "up"},
        {"ip", "-n", space, "link", "set", "lo", "up"}};
    for (const auto& command : commands) {
      ZP_RETURN_IF_ERROR(RunProgram(command));
    }
  }
  return absl::OkStatus();
}

ShapedLinks::~ShapedLinks() {
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    (void)RunProgram({"ip", "netns", "del", NamespaceOf(rank)});
  }
  (void)RunProgram({"ip", "link", "del", name_});
}

absl::Status ShapedLinks::Shape(double bytes_per_s) {
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

std::vector<std::string> ShapedLinks::RankArguments() const {
  std::vector<std::string> addresses;
  addresses.reserve(rank_count_);
  for (int32_t rank = 0; rank < rank_count_; ++rank) {
    addresses.push_back(AddressOf(rank));
  }
  return {fmt::format("--addresses={}", fmt::join(addresses, ","))};
}

class SharedMemoryLinks final : public TunnelLinks {
 public:
  SharedMemoryLinks(int32_t rank_count, std::unique_ptr<SharedMemory> memory)
      : memory_(std::move(memory)), links_(memory_->bytes(), rank_count) {}

  absl::Status Shape(double bytes_per_s) override {
    links_.SetRate(bytes_per_s);
    return absl::OkStatus();
  }
  std::vector<std::string> CommandPrefix(int32_t) const override { return {}; }
  std::vector<std::string> RankArguments() const override {
    return {"--shared=" + memory_->path()};
  }

 private:
  const std::unique_ptr<SharedMemory> memory_;
  SharedLinks links_;
};

}  // namespace

absl::StatusOr<LinkKind> ParseLinkKind(const std::string& name) {
  for (const LinkKind kind : {LinkKind::kShaped, LinkKind::kShared}) {
    if (NameOf(kind) == name) {
      return kind;
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("--links is '{}', but must be shaped or shared", name));
}

std::string NameOf(LinkKind kind) { return kind == LinkKind::kShaped ? "shaped" : "shared"; }

absl::StatusOr<std::unique_ptr<TunnelLinks>> TunnelLinks::Create(LinkKind kind,
                                                                 int32_t rank_count) {
  if (kind == LinkKind::kShared) {
    ZP_ASSIGN_OR_RETURN(std::unique_ptr<SharedMemory> memory,
                        SharedMemory::Create(SharedRankLinksBytes(rank_count)));
    return std::make_unique<SharedMemoryLinks>(rank_count, std::move(memory));
  }
  if (geteuid() != 0) {
    return absl::PermissionDeniedError(
        "network namespaces need root; --links shared does without them");
  }
  auto links = std::make_unique<ShapedLinks>(rank_count);
  ZP_RETURN_IF_ERROR(links->SetUp());
  return links;
}

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
