#include "apps/tunnel_hosts.h"

#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>

#include "apps/bench_prompts.h"
#include "checkpoint/packed_experts.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

constexpr std::chrono::seconds kAnswerTimeout(4 *
                                              3600);  // a queue of passes on an eighth of a core

// SIGINT and SIGTERM end a wait for a rank, and with it the run in good order: namespaces have no
// owner that would take them down.
void LetSignalsInterrupt() {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TunnelHosts>> TunnelHosts::Start(const TunnelHostsOptions& options) {
  LetSignalsInterrupt();
  std::unique_ptr<TunnelHosts> hosts(new TunnelHosts(options));
  ZP_RETURN_IF_ERROR(hosts->SetUp());
  return hosts;
}

absl::Status TunnelHosts::SetUp() {
  ZP_ASSIGN_OR_RETURN(links_, TunnelLinks::Create(options_.links, options_.placement.ranks));
  if (options_.has_held_copy) {
    ZP_ASSIGN_OR_RETURN(const checkpoint::PackedExperts packed,
                        checkpoint::ReadPackedExperts(options_.packed_directory, options_.spec));
    if (auto copies = ExpertCopies::Make(packed); copies.ok()) {
      copies_ = *std::move(copies);
    } else {
      fmt::print(stderr,
                 "tunnel: {}; resident ranks map the files as they are, in small pages\n",
                 base::MessageOf(copies.status()));
    }
  }
  cores_per_rank_ = CoresPerRank(options_.placement.ranks,
                                 static_cast<int32_t>(std::thread::hardware_concurrency()));
  for (int32_t rank = 0; rank < options_.placement.ranks; ++rank) {
    ZP_RETURN_IF_ERROR(StartRank(rank));
  }
  // All at once, as they will compute. Under a quota only a mean over many of its periods counts.
  ZP_ASSIGN_OR_RETURN(const auto peaks,
                      TellAll(cores_per_rank_ < 1 ? "peak 3 mean" : "peak 1 best"));
  std::vector<double> flops_per_s;
  flops_per_s.reserve(peaks.size());
  for (const json::object& peak : peaks) {
    flops_per_s.push_back(peak.at("peak_flops_per_s").to_number<double>());
  }
  peak_flops_per_s_ = Median(flops_per_s);
  return LoadRanks();
}

absl::Status TunnelHosts::StartRank(int32_t rank) {
  const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  std::vector<std::string> command = links_->CommandPrefix(rank);
  for (const std::string& word :
       {std::filesystem::read_symlink("/proc/self/exe").string(),
        std::string("bench"),
        std::string("tunnel-rank"),
        "--packed=" + options_.packed_directory,
        "--held=" + (copies_ != nullptr ? copies_->directory() : options_.packed_directory),
        fmt::format("--host={}", rank),
        fmt::format("--hosts={}", options_.placement.ranks),
        fmt::format("--redundancy={}", options_.placement.redundancy),
        fmt::format("--dtype={}", spec::NameOf(options_.dtype)),
        fmt::format("--cpus={}", rank % cores)}) {
    command.push_back(word);
  }
  const std::vector<std::string> links = links_->RankArguments();
  command.insert(command.end(), links.begin(), links.end());
  ZP_ASSIGN_OR_RETURN(ranks_.emplace_back(), ChildProcess::Start(command));
  if (cores_per_rank_ < 1) {
    ZP_ASSIGN_OR_RETURN(quotas_.emplace_back(),
                        CpuQuota::Limit(ranks_.back()->pid(), cores_per_rank_));
  }
  return absl::OkStatus();
}

// Links are shaped last: what is set up before need not wait for them.
absl::Status TunnelHosts::LoadRanks() {
  ZP_ASSIGN_OR_RETURN(const auto loaded, TellAll("load"));
  std::vector<std::string> advertisements;
  advertisements.reserve(loaded.size());
  for (const json::object& one : loaded) {
    advertisements.emplace_back(one.at("advertisement").as_string());
  }
  ZP_RETURN_IF_ERROR(ConnectRanks(advertisements));
  ZP_RETURN_IF_ERROR(links_->Shape(nominal_link_bytes_per_s()));
  return MeasureLink(advertisements[1]);
}

// The first rank reads from the second, the others rest.
absl::Status TunnelHosts::MeasureLink(const std::string& advertisement) {
  const auto cpu_seconds = [&]() -> absl::StatusOr<double> {
    double seconds = 0;
    ZP_ASSIGN_OR_RETURN(const auto answers, TellEach({"cpu", "cpu"}));
    for (const json::object& answer : answers) {
      seconds += answer.at("cpu_seconds").to_number<double>();
    }
    return seconds;
  };
  ZP_ASSIGN_OR_RETURN(const double begin, cpu_seconds());
  ZP_ASSIGN_OR_RETURN(const auto link, TellEach({fmt::format("link 1 {}", advertisement)}));
  ZP_ASSIGN_OR_RETURN(const double end, cpu_seconds());
  link_bytes_per_s_ = link[0].at("link_bytes_per_s").to_number<double>();
  link_cpu_s_per_gb_ = 1e9 * (end - begin) / link[0].at("all_bytes").to_number<double>();
  return absl::OkStatus();
}

absl::Status TunnelHosts::ConnectRanks(const std::vector<std::string>& advertisements) {
  for (int32_t host = 0; host < options_.placement.ranks; ++host) {
    for (int32_t rank = 0; rank < options_.placement.ranks; ++rank) {
      if (rank != host) {
        ZP_RETURN_IF_ERROR(
            ranks_[rank]->WriteLine(fmt::format("connect {} {}", host, advertisements[host])));
        ZP_RETURN_IF_ERROR(AnswerOf(rank).status());
      }
    }
  }
  return TellAll("mesh").status();
}

absl::StatusOr<std::vector<json::object>> TunnelHosts::TellAll(const std::string& command) {
  return TellEach(std::vector<std::string>(options_.placement.ranks, command));
}

absl::StatusOr<std::vector<json::object>> TunnelHosts::TellEach(
    const std::vector<std::string>& commands) {
  for (size_t rank = 0; rank < commands.size(); ++rank) {
    ZP_RETURN_IF_ERROR(ranks_[rank]->WriteLine(commands[rank]));
  }
  std::vector<json::object> answers;
  for (size_t rank = 0; rank < commands.size(); ++rank) {
    ZP_ASSIGN_OR_RETURN(answers.emplace_back(), AnswerOf(static_cast<int32_t>(rank)));
  }
  return answers;
}

absl::StatusOr<json::object> TunnelHosts::AnswerOf(int32_t rank) {
  ZP_ASSIGN_OR_RETURN(const std::string line, ranks_[rank]->ReadLine(kAnswerTimeout));
  boost::system::error_code error;
  const json::value value = json::parse(line, error);
  if (error || !value.is_object()) {
    return absl::InternalError(fmt::format("rank {} said '{}'", rank, line));
  }
  json::object answer = value.as_object();
  if (const json::value* problem = answer.if_contains("error"); problem != nullptr) {
    return absl::InternalError(fmt::format("rank {}: {}", rank, std::string(problem->as_string())));
  }
  return answer;
}

}  // namespace zp::apps
