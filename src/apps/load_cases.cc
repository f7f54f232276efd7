#include "apps/load_cases.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <utility>

#include "apps/bench_prompts.h"
#include "apps/load_bench.h"
#include "apps/load_report.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

using Clock = std::chrono::steady_clock;

constexpr double kProbeEverySeconds = 0.1;

json::object StatusesOf(const std::vector<TimedAnswer>& answers) {
  std::map<int, int64_t> counts;
  for (const TimedAnswer& answer : answers) {
    ++counts[answer.status];
  }
  json::object statuses;
  for (const auto& [status, count] : counts) {
    statuses[std::to_string(status)] = count;
  }
  return statuses;
}

double OwnCpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Of a request, whatever became of it: one that comes alone costs more than one of a pass full, so
// what an answer costs in the closed loop does not tell what is left for a refusal.
double GatewayCpuMicroseconds(const GatewayWork& begin, const GatewayWork& end) {
  const double requests = end.answered + end.refused - begin.answered - begin.refused;
  return 1e6 * (end.cpu_s - begin.cpu_s) / std::max(1.0, requests);
}

std::vector<std::string> BacklogFlags(const LoadSetting& setting) {
  return {"--max-backlog-seconds",
          fmt::format("{}", setting.max_backlog_seconds),
          "--max-connections",
          "16384"};
}

// `bodies` in turn at these times, on top of what is there.
void Append(const std::vector<double>& times,
            const std::vector<std::string>& bodies,
            std::vector<TimedRequest>& requests) {
  for (const double time : times) {
    requests.push_back({.at_s = time, .body = &bodies[requests.size() % bodies.size()]});
  }
}

// What became of probes that were sent one at a time from the end of an overload on. Recovered: the
// first that is as fast as before, counted from when all accepted before it was answered; slow:
// those that came to a server with nothing to do, and were not.
json::object ReportRecovery(const std::vector<TimedAnswer>& load,
                            const std::vector<TimedAnswer>& probes,
                            double stop_s,
                            double idle_latency_s) {
  double drained_s = 0;
  for (const TimedAnswer& answer : load) {
    drained_s = answer.status == 200 ? std::max(drained_s, answer.done_s - stop_s) : drained_s;
  }
  json::object report = {{"drained_s", drained_s}};
  double busy_until_s = drained_s;  // probes that wait behind the load drain after it
  int slow_count = 0;
  for (const TimedAnswer& probe : probes) {
    if (probe.status != 200) {
      continue;
    }
    const double due_s = probe.due_s - stop_s;
    report.emplace("accepted_again_s", due_s);  // the first
    if (probe.latency_s() <= idle_latency_s) {
      report.emplace("as_before_s", due_s);
      report.emplace("recovered_after_drain_s", due_s - busy_until_s);
      break;
    }
    slow_count += due_s >= busy_until_s ? 1 : 0;
    busy_until_s = std::max(busy_until_s, probe.done_s - stop_s);
  }
  report.emplace("slow_after_drain", slow_count);
  return report;
}

}  // namespace

absl::StatusOr<json::object> RunOverload(const LoadSetting& setting) {
  std::mt19937_64 random(setting.seed);
  const std::vector<std::string> bodies =
      RandomBodies(setting, setting.short_tokens, kLoadBodyCount, random);
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<LoadBench> bench,
                      LoadBench::Start(setting, BacklogFlags(setting)));
  ZP_ASSIGN_OR_RETURN(const GatewayWork start, bench->ReadGatewayWork());
  ZP_ASSIGN_OR_RETURN(const double capacity_per_s, bench->MeasureCapacity(bodies));
  const auto closed_loop_end = Clock::now();
  ZP_ASSIGN_OR_RETURN(const GatewayWork overload_begin, bench->ReadGatewayWork());
  ZP_ASSIGN_OR_RETURN(const std::vector<TimedAnswer> idle,
                      bench->client().KeepInFlight(bodies, 1, 1.0));
  const std::vector<double> idle_latencies = LatenciesOf(idle);
  ZP_RETURN_IF_ERROR(bench->TakePasses().status());

  std::vector<TimedRequest> requests;
  Append(
      PoissonTimes(setting.overload * capacity_per_s, setting.seconds, random), bodies, requests);
  const auto load_count = static_cast<int64_t>(requests.size());
  std::vector<double> probe_times;
  for (double after_s = 0; after_s < 1.5 * setting.max_backlog_seconds + 3;
       after_s += kProbeEverySeconds) {
    probe_times.push_back(setting.seconds + after_s);
  }
  Append(probe_times, bodies, requests);
  const auto begin = Clock::now();
  const double begin_s = bench->client().Now();
  const double cpu_begin_s = OwnCpuSeconds();
  ZP_ASSIGN_OR_RETURN(std::vector<TimedAnswer> load, bench->client().SendAt(requests));
  const double client_cpu_s = OwnCpuSeconds() - cpu_begin_s;
  const auto half = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(setting.seconds / 2));
  const std::vector<TimedAnswer> probes(load.begin() + load_count, load.end());
  load.resize(load_count);
  const double stop_s = begin_s + setting.seconds;
  const double per_s = AnswersPerSecond(load, begin_s, stop_s);
  double late_s = 0;
  for (const TimedAnswer& answer : load) {
    late_s = std::max(late_s, answer.sent_s - answer.due_s);
  }
  const LoadServer& server = bench->server();
  ZP_ASSIGN_OR_RETURN(json::object passes, bench->TakePasses());
  ZP_ASSIGN_OR_RETURN(const GatewayWork overload_end, bench->ReadGatewayWork());
  // The machine may have been disturbed at either time.
  ZP_ASSIGN_OR_RETURN(const double capacity_after_per_s, bench->MeasureCapacity(bodies));
  const auto first_refused = std::ranges::find(load, 429, &TimedAnswer::status);
  return json::object{
      {"case", "overload"},
      {"short_tokens", setting.short_tokens},
      {"capacity_per_s", capacity_per_s},
      {"capacity_after_per_s", capacity_after_per_s},
      {"offered_per_s", static_cast<double>(load_count) / setting.seconds},
      {"answered_per_s", per_s},
      {"of_capacity", per_s / std::max(capacity_per_s, capacity_after_per_s)},
      {"statuses", StatusesOf(load)},
      {"retry_after", ReportRefusals(RefusalsOf(load))},
      {"refusal", first_refused == load.end() ? "" : first_refused->body},
      {"idle", ReportLatency(idle_latencies)},
      {"accepted", ReportLatency(LatenciesOf(load))},
      {"sent_late_ms_max", 1e3 * late_s},
      {"resident_bytes",
       {{"closed_loop", server.PeakBytes(Clock::time_point(), closed_loop_end)},
        {"first_half", server.PeakBytes(begin, begin + half)},
        {"second_half", server.PeakBytes(begin + half, begin + 2 * half)}}},
      {"gateway_cpu_us_per_request",
       {{"closed_loop", GatewayCpuMicroseconds(start, overload_begin)},
        {"overload", GatewayCpuMicroseconds(overload_begin, overload_end)}}},
      {"client_cpu_ms_per_request", 1e3 * client_cpu_s / static_cast<double>(requests.size())},
      {"recovery", ReportRecovery(load, probes, stop_s, Quantile(idle_latencies, 1))},
      {"passes", std::move(passes)}};
}

absl::StatusOr<json::object> RunCold(const LoadSetting& setting) {
  std::mt19937_64 random(setting.seed);
  const std::vector<std::string> bodies =
      RandomBodies(setting, setting.short_tokens, kLoadBodyCount, random);
  double capacity_per_s = 0;
  {
    ZP_ASSIGN_OR_RETURN(const std::unique_ptr<LoadBench> warm, LoadBench::Start(setting, {}));
    ZP_ASSIGN_OR_RETURN(capacity_per_s, warm->MeasureCapacity(bodies));
  }
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<LoadBench> bench,
                      LoadBench::Start(setting, BacklogFlags(setting)));
  std::vector<TimedRequest> requests;
  const double seconds = setting.max_backlog_seconds;  // the backlog is full after half of them
  Append(PoissonTimes(setting.overload * capacity_per_s, seconds, random), bodies, requests);
  ZP_ASSIGN_OR_RETURN(const std::vector<TimedAnswer> answers, bench->client().SendAt(requests));
  const std::vector<Refusal> refusals = RefusalsOf(answers);
  return json::object{
      {"case", "cold"},
      {"capacity_per_s", capacity_per_s},
      {"statuses", StatusesOf(answers)},
      {"first_refused_s", refusals.empty() ? -1 : refusals[0].at_s - answers[0].due_s},
      {"first_told_s", refusals.empty() ? 0 : refusals[0].told_s},
      {"first_true_s", refusals.empty() ? 0 : refusals[0].true_s},
      {"retry_after", ReportRefusals(refusals)}};
}

}  // namespace zp::apps
