#include "apps/tunnel_report.h"

#include <algorithm>
#include <span>

#include "apps/bench_prompts.h"
#include "apps/tunnel_arithmetic.h"
#include "base/checksum.h"
#include "fmt/format.h"
#include "spec/flops.h"
#include "spec/saturation.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

const StrategyRounds* Find(const TunnelCase& tunnel_case, const std::string& strategy) {
  const auto found = tunnel_case.strategies.find(strategy);
  return found == tunnel_case.strategies.end() ? nullptr : &found->second;
}

json::object RangeOf(const std::vector<double>& values) {
  const auto [low, high] = std::ranges::minmax(values);
  return {{"median", Median(values)}, {"low", low}, {"high", high}};
}

json::object StrategyJson(const StrategyRounds& rounds, double peak_flops_per_s) {
  return {{"tokens_per_s", RangeOf(rounds.tokens_per_s)},
          {"busy_tokens_per_s", Median(rounds.busy_tokens_per_s)},
          {"mfu", Median(rounds.flops_per_s) / peak_flops_per_s},
          {"wait_fraction", Median(rounds.wait_fraction)},
          {"cpu_fraction", Median(rounds.cpu_fraction)},
          {"bytes_per_pass", Median(rounds.bytes_per_pass)},
          {"gather_bytes_per_s", Median(rounds.gather_bytes_per_s)},
          {"answers_checksum", fmt::format("{:016x}", rounds.answers_checksums.back())}};
}

json::array RankTokens(const TunnelWork& work) {
  json::array tokens;
  for (int32_t rank = 0; rank < static_cast<int32_t>(work.queues.size()); ++rank) {
    tokens.push_back(work.rank_tokens(rank));
  }
  return tokens;
}

// Of a rank while it does not wait: resident ranks tell best what the kernels achieve on this work.
double AchievedFlops(const TunnelSetting& setting, const TunnelCase& tunnel_case) {
  for (const char* strategy : {"resident", "alone", "gather"}) {
    if (const StrategyRounds* rounds = Find(tunnel_case, strategy); rounds != nullptr) {
      return Median(rounds->flops_per_s) / (1 - Median(rounds->wait_fraction));
    }
  }
  return 0.8 * setting.peak_flops_per_s;
}

void AddRatios(const TunnelSetting& setting, const TunnelCase& tunnel_case, json::object& line) {
  const StrategyRounds* gather = Find(tunnel_case, "gather");
  const StrategyRounds* resident = Find(tunnel_case, "resident");
  if (gather == nullptr) {
    return;
  }
  if (resident != nullptr) {
    // Bit for bit, in every round: gathering moves weights and changes no number.
    std::vector<uint64_t> answers = resident->answers_checksums;
    answers.insert(
        answers.end(), gather->answers_checksums.begin(), gather->answers_checksums.end());
    line["answers_equal"] = std::ranges::count(answers, answers[0]) == std::ssize(answers);
    line["of_resident"] = RatioOf(gather->tokens_per_s, resident->tokens_per_s);
  }
  if (const StrategyRounds* dispatch = Find(tunnel_case, "dispatch"); dispatch != nullptr) {
    line["ratio"] = RatioOf(gather->tokens_per_s, dispatch->tokens_per_s);
    line["busy_ratio"] = RatioOf(gather->busy_tokens_per_s, dispatch->busy_tokens_per_s);
  }
  if (const StrategyRounds* overlap = Find(tunnel_case, "dispatch-overlap"); overlap != nullptr) {
    line["ratio_overlap"] = RatioOf(gather->tokens_per_s, overlap->tokens_per_s);
    line["busy_ratio_overlap"] = RatioOf(gather->busy_tokens_per_s, overlap->busy_tokens_per_s);
  }
  if (const StrategyRounds* alone = Find(tunnel_case, "alone"); alone != nullptr) {
    std::vector<double> all_alone = alone->tokens_per_s;
    for (double& tokens_per_s : all_alone) {
      tokens_per_s *= setting.placement.ranks;
    }
    line["scaling"] = RatioOf(gather->tokens_per_s, all_alone);
  }
}

// How fast the other ranks were, beside one that has nothing or twice as much.
void AddIndependence(const TunnelCase& tunnel_case, const TunnelCase& even, json::object& line) {
  json::object others;
  for (const auto& [strategy, rounds] : tunnel_case.strategies) {
    const StrategyRounds* reference = Find(even, strategy);
    if (reference != nullptr && strategy != "alone") {
      others[strategy] = RatioOf(rounds.others_tokens_per_s, reference->others_tokens_per_s);
    }
  }
  line["others_of_even"] = std::move(others);
}

}  // namespace

absl::StatusOr<RankRun> RankRun::FromJson(const json::object& object) {
  try {
    const auto number = [&](const char* key) { return object.at(key).to_number<double>(); };
    return RankRun{.tokens = object.at("tokens").to_number<int64_t>(),
                   .seconds = number("seconds"),
                   .wait_seconds = number("wait_seconds"),
                   .gather_seconds = number("gather_seconds"),
                   .gathered_bytes = number("gathered_bytes"),
                   .flops = number("flops"),
                   .cpu_seconds = number("cpu_seconds"),
                   .answers_checksum = object.at("answers_checksum").to_number<uint64_t>()};
  } catch (const std::exception& error) {
    return absl::InternalError(fmt::format("a rank answered what it should not: {}", error.what()));
  }
}

json::object RankRun::ToJson() const {
  return {{"tokens", tokens},
          {"seconds", seconds},
          {"wait_seconds", wait_seconds},
          {"gather_seconds", gather_seconds},
          {"gathered_bytes", gathered_bytes},
          {"flops", flops},
          {"cpu_seconds", cpu_seconds},
          {"answers_checksum", answers_checksum}};
}

void StrategyRounds::Record(const std::vector<RankRun>& runs, int32_t pass_count) {
  RankRun all;
  double last_seconds = 0;
  double busy = 0;
  double others = 0;
  double busy_flops_per_s = 0;
  int busy_count = 0;
  std::vector<uint64_t> answers;
  for (size_t rank = 0; rank < runs.size(); ++rank) {
    const RankRun& run = runs[rank];
    all.tokens += run.tokens;
    all.seconds += run.seconds;
    all.wait_seconds += run.wait_seconds;
    all.gather_seconds += run.gather_seconds;
    all.gathered_bytes += run.gathered_bytes;
    all.cpu_seconds += run.cpu_seconds;
    answers.push_back(run.answers_checksum);
    last_seconds = std::max(last_seconds, run.seconds);
    if (run.tokens > 0) {
      const double rate = static_cast<double>(run.tokens) / run.seconds;
      busy += rate;
      others += rank + 1 < runs.size() ? rate / static_cast<double>(runs.size() - 1) : 0;
      busy_flops_per_s += run.flops / run.seconds;
      ++busy_count;
    }
  }
  const auto rank_count = static_cast<double>(runs.size());
  answers_checksums.push_back(base::Checksum(std::as_bytes(std::span(answers))));
  tokens_per_s.push_back(static_cast<double>(all.tokens) / last_seconds);
  busy_tokens_per_s.push_back(busy);
  others_tokens_per_s.push_back(others);
  flops_per_s.push_back(busy_flops_per_s / std::max(busy_count, 1));
  wait_fraction.push_back(all.wait_seconds / all.seconds);
  cpu_fraction.push_back(all.cpu_seconds / all.seconds);
  bytes_per_pass.push_back(all.gathered_bytes / rank_count / pass_count);
  gather_bytes_per_s.push_back(all.gather_seconds > 0 ? all.gathered_bytes / all.gather_seconds
                                                      : 0);
}

int64_t ElementBytes(const TunnelSetting& setting) {
  return static_cast<int64_t>(spec::SizeOf(setting.dtype));
}

double TunnelSaturation(const TunnelSetting& setting, double flops_per_s, double context_tokens) {
  return spec::SaturationTokens(
      MissingBytes(setting.spec, ElementBytes(setting), setting.placement) /
          setting.link_bytes_per_s,
      flops_per_s,
      spec::LayerFlopsPerToken(setting.spec, context_tokens));
}

json::object ReportCase(const TunnelSetting& setting,
                        const TunnelCase& tunnel_case,
                        const TunnelCase* even) {
  const TunnelWork& work = tunnel_case.work;
  const double achieved = AchievedFlops(setting, tunnel_case);
  const double saturation = TunnelSaturation(setting, achieved, work.mean_context);
  const int64_t smallest_pass = work.smallest_pass();
  json::object line = {
      {"bench", "tunnel"},
      {"case", tunnel_case.name},
      {"ranks", setting.placement.ranks},
      {"redundancy", setting.placement.redundancy},
      {"shape", setting.shape},
      {"model_dim", setting.spec.model_dim},
      {"layers", setting.spec.layer_count},
      {"balance", setting.balance},
      {"dtype", std::string(spec::NameOf(setting.dtype))},
      {"element_bytes", ElementBytes(setting)},
      {"bytes_per_flop", setting.bytes_per_flop},
      {"links", setting.links},
      {"rounds", setting.rounds},
      {"load", setting.load},
      {"cores_per_rank", setting.cores_per_rank},
      {"cpu_quota", setting.cores_per_rank < 1 ? "enforced, every rank alike" : "none: own cores"},
      {"passes_per_rank", work.pass_count()},
      {"rank_tokens", RankTokens(work)},
      {"smallest_pass_tokens", smallest_pass},
      {"asked_tokens", work.asked_tokens},
      {"file_repeats", work.file_repeats},
      {"mean_context", work.mean_context},
      {"peak_flops_per_s", setting.peak_flops_per_s},
      {"nominal_link_bytes_per_s", setting.nominal_link_bytes_per_s},
      {"link_bytes_per_s", setting.link_bytes_per_s},
      {"link_cpu_s_per_gb", setting.link_cpu_s_per_gb},
      {"saturation_tokens", saturation},
      {"above_saturation", static_cast<double>(smallest_pass) >= saturation},
      {"ideal_ratio",
       IdealRatio(setting.spec,
                  ElementBytes(setting),
                  setting.placement,
                  achieved,
                  setting.link_bytes_per_s,
                  work.mean_context)}};
  if (Find(tunnel_case, "resident") != nullptr || Find(tunnel_case, "alone") != nullptr) {
    line["resident_huge_page_fraction"] = setting.huge_page_fraction;
  }
  AddRatios(setting, tunnel_case, line);
  if (even != nullptr) {
    AddIndependence(tunnel_case, *even, line);
  }
  for (const auto& [strategy, rounds] : tunnel_case.strategies) {
    line[strategy] = StrategyJson(rounds, setting.peak_flops_per_s);
  }
  return line;
}

}  // namespace zp::apps
