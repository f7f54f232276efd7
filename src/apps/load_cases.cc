#include "apps/load_cases.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <utility>

#include "apps/bench_prompts.h"
#include "apps/load_client.h"
#include "apps/load_report.h"
#include "apps/load_server.h"
#include "fmt/format.h"
#include "fmt/ranges.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

using Clock = std::chrono::steady_clock;

constexpr char kPath[] = "/v1/completions";
// Bodies that take turns: more than can be outstanding at once, so that none is there twice.
constexpr int kBodyCount = 8192;
constexpr double kWarmUpSeconds = 3;
constexpr double kProbeEverySeconds = 0.1;

// The most likely token after random ones: nothing is shared, and little is answered.
std::string RandomBody(const LoadSetting& setting, int64_t tokens, std::mt19937_64& random) {
  std::vector<uint64_t> prompt(tokens);
  for (uint64_t& token : prompt) {
    token = random() % setting.vocab_count;
  }
  return fmt::format(R"({{"prompt":[{}],"max_tokens":1,"logprobs":1}})", fmt::join(prompt, ","));
}

std::vector<std::string> RandomBodies(const LoadSetting& setting,
                                      int64_t tokens,
                                      int count,
                                      std::mt19937_64& random) {
  std::vector<std::string> bodies(count);
  for (std::string& body : bodies) {
    body = RandomBody(setting, tokens, random);
  }
  return bodies;
}

std::vector<double> LatenciesOf(const std::vector<TimedAnswer>& answers) {
  std::vector<double> latencies;
  for (const TimedAnswer& answer : answers) {
    if (answer.status == 200) {
      latencies.push_back(answer.latency_s());
    }
  }
  return latencies;
}

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

// A server with its client and what was seen of it.
class Bench {
 public:
  static absl::StatusOr<std::unique_ptr<Bench>> Start(const LoadSetting& setting,
                                                      const std::vector<std::string>& more_flags) {
    std::vector<std::string> flags = setting.serve_flags;
    flags.insert(flags.end(), more_flags.begin(), more_flags.end());
    auto bench = std::unique_ptr<Bench>(new Bench(setting));
    ZP_ASSIGN_OR_RETURN(bench->server_, LoadServer::Start(flags));
    ZP_ASSIGN_OR_RETURN(bench->client_, LoadClient::Create(bench->server_->address(), kPath));
    return bench;
  }

  LoadServer& server() { return *server_; }
  LoadClient& client() { return *client_; }

  // Short requests answered a second while as many as fill its passes are in flight.
  absl::StatusOr<double> MeasureCapacity(const std::vector<std::string>& bodies) {
    ZP_RETURN_IF_ERROR(client_->KeepInFlight(bodies, setting_.in_flight, kWarmUpSeconds).status());
    const double begin_s = client_->Now();
    const double seconds = setting_.seconds / 2;
    ZP_ASSIGN_OR_RETURN(const std::vector<TimedAnswer> answers,
                        client_->KeepInFlight(bodies, setting_.in_flight, seconds));
    const double per_s = AnswersPerSecond(answers, begin_s, begin_s + seconds);
    if (per_s <= 0) {
      return absl::InternalError("no request was answered in the closed loop");
    }
    return per_s;
  }

  // {"count", "mean_ms", "mean_tokens"} of the passes since the last call.
  absl::StatusOr<json::object> TakePasses() {
    ZP_ASSIGN_OR_RETURN(MetricsPage page, server_->ReadMetrics());
    std::swap(page, page_);
    const auto grown = [&](const std::string& name) {
      const std::string series = name + R"({rank="0"})";
      return page_[series] - page[series];
    };
    const double count = std::max(1.0, grown("zeroprefill_pass_seconds_count"));
    return json::object{{"count", count},
                        {"mean_ms", 1e3 * grown("zeroprefill_pass_seconds_sum") / count},
                        {"mean_tokens", grown("zeroprefill_batch_tokens_sum") / count},
                        {"cached_tokens", grown("zeroprefill_prefix_cache_hit_tokens_total")}};
  }

 private:
  explicit Bench(const LoadSetting& setting) : setting_(setting) {}

  const LoadSetting setting_;
  std::unique_ptr<LoadServer> server_;
  std::unique_ptr<LoadClient> client_;
  MetricsPage page_;
};

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

// What became of probes that were sent one at a time from the end of an overload on.
json::object ReportRecovery(const std::vector<TimedAnswer>& load,
                            const std::vector<TimedAnswer>& probes,
                            double stop_s,
                            double idle_latency_s) {
  double drained_s = 0;
  for (const TimedAnswer& answer : load) {
    drained_s = answer.status == 200 ? std::max(drained_s, answer.done_s - stop_s) : drained_s;
  }
  json::object report = {{"drained_s", drained_s}};
  for (const TimedAnswer& probe : probes) {
    if (probe.status == 200) {
      report.emplace("accepted_again_s", probe.due_s - stop_s);  // the first
      if (probe.latency_s() <= idle_latency_s) {
        report.emplace("as_before_s", probe.due_s - stop_s);
        break;
      }
    }
  }
  return report;
}

}  // namespace

absl::StatusOr<json::object> RunOverload(const LoadSetting& setting) {
  std::mt19937_64 random(setting.seed);
  const std::vector<std::string> bodies =
      RandomBodies(setting, setting.short_tokens, kBodyCount, random);
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<Bench> bench,
                      Bench::Start(setting, BacklogFlags(setting)));
  ZP_ASSIGN_OR_RETURN(const double capacity_per_s, bench->MeasureCapacity(bodies));
  const auto closed_loop_end = Clock::now();
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
      {"client_cpu_ms_per_request", 1e3 * client_cpu_s / static_cast<double>(requests.size())},
      {"recovery", ReportRecovery(load, probes, stop_s, Quantile(idle_latencies, 1))},
      {"passes", std::move(passes)}};
}

absl::StatusOr<json::object> RunCold(const LoadSetting& setting) {
  std::mt19937_64 random(setting.seed);
  const std::vector<std::string> bodies =
      RandomBodies(setting, setting.short_tokens, kBodyCount, random);
  double capacity_per_s = 0;
  {
    ZP_ASSIGN_OR_RETURN(const std::unique_ptr<Bench> warm, Bench::Start(setting, {}));
    ZP_ASSIGN_OR_RETURN(capacity_per_s, warm->MeasureCapacity(bodies));
  }
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<Bench> bench,
                      Bench::Start(setting, BacklogFlags(setting)));
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

namespace {

struct Arrival {
  double at_s = 0;
  bool is_long = false;
};

std::vector<Arrival> RandomArrivals(const LoadSetting& setting,
                                    double per_s,
                                    std::mt19937_64& random) {
  std::vector<Arrival> arrivals;
  for (const double time : PoissonTimes(per_s, setting.seconds, random)) {
    arrivals.push_back({.at_s = time, .is_long = random() % setting.long_every == 0});
  }
  return arrivals;
}

// Every request has another prompt.
absl::StatusOr<json::object> RunArrivals(Bench& bench,
                                         const LoadSetting& setting,
                                         const std::vector<Arrival>& arrivals,
                                         std::mt19937_64& random) {
  std::vector<std::string> bodies;
  bodies.reserve(arrivals.size());
  std::vector<TimedRequest> requests;
  for (const Arrival& arrival : arrivals) {
    bodies.push_back(
        RandomBody(setting, arrival.is_long ? setting.long_tokens : setting.short_tokens, random));
    requests.push_back({.at_s = arrival.at_s, .body = &bodies.back()});
  }
  ZP_RETURN_IF_ERROR(bench.TakePasses().status());
  ZP_ASSIGN_OR_RETURN(const std::vector<TimedAnswer> answers, bench.client().SendAt(requests));
  std::vector<double> short_s;
  std::vector<double> long_s;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (answers[i].status != 200) {
      return absl::InternalError(fmt::format("{}: {}", answers[i].status, answers[i].body));
    }
    (arrivals[i].is_long ? long_s : short_s).push_back(answers[i].latency_s());
  }
  ZP_ASSIGN_OR_RETURN(json::object passes, bench.TakePasses());
  return json::object{{"short", ReportLatency(short_s)},
                      {"long", ReportLatency(long_s)},
                      {"passes", std::move(passes)}};
}

double P99Of(const json::object& run) { return run.at("short").at("p99_ms").to_number<double>(); }

}  // namespace

absl::StatusOr<json::object> RunMixed(const LoadSetting& setting, bool has_prefix_cache) {
  std::mt19937_64 random(setting.seed);
  ZP_ASSIGN_OR_RETURN(
      const std::unique_ptr<Bench> bench,
      Bench::Start(setting, {"--prefix-cache", has_prefix_cache ? setting.prefix_cache : "0"}));
  ZP_ASSIGN_OR_RETURN(
      const double short_per_s,
      bench->MeasureCapacity(RandomBodies(setting, setting.short_tokens, kBodyCount, random)));
  ZP_ASSIGN_OR_RETURN(
      const std::vector<TimedAnswer> alone,
      bench->client().KeepInFlight(
          RandomBodies(setting, setting.long_tokens, 32, random), 1, setting.seconds / 4));
  const double long_s = Median(LatenciesOf(alone));
  const double long_share = 1.0 / setting.long_every;
  const double per_s = setting.load / (long_share * long_s + (1 - long_share) / short_per_s);

  const std::vector<Arrival> arrivals = RandomArrivals(setting, per_s, random);
  std::vector<Arrival> short_arrivals;
  std::ranges::copy_if(arrivals, std::back_inserter(short_arrivals), [](const Arrival& arrival) {
    return !arrival.is_long;
  });
  LoadSetting no_long = setting;
  no_long.long_every = INT32_MAX;
  const std::vector<Arrival> same_load =
      RandomArrivals(no_long, setting.load * short_per_s, random);
  ZP_ASSIGN_OR_RETURN(json::object with_long, RunArrivals(*bench, setting, arrivals, random));
  ZP_ASSIGN_OR_RETURN(json::object without, RunArrivals(*bench, setting, short_arrivals, random));
  ZP_ASSIGN_OR_RETURN(json::object alike, RunArrivals(*bench, setting, same_load, random));
  const double p99 = P99Of(with_long);
  return json::object{{"case", "mixed"},
                      {"prefix_cache", has_prefix_cache},
                      {"short_per_s", short_per_s},
                      {"long_s", long_s},
                      {"offered_per_s", per_s},
                      {"p99_over_without", p99 / P99Of(without)},
                      {"p99_over_same_load", p99 / P99Of(alike)},
                      {"with_long", std::move(with_long)},
                      {"without", std::move(without)},
                      {"same_load_all_short", std::move(alike)}};
}

}  // namespace zp::apps
