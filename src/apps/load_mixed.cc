#include <algorithm>
#include <iterator>
#include <memory>
#include <random>
#include <utility>

#include "apps/bench_prompts.h"
#include "apps/load_bench.h"
#include "apps/load_cases.h"
#include "apps/load_report.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

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
absl::StatusOr<json::object> RunArrivals(LoadBench& bench,
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
      const std::unique_ptr<LoadBench> bench,
      LoadBench::Start(setting, {"--prefix-cache", has_prefix_cache ? setting.prefix_cache : "0"}));
  ZP_ASSIGN_OR_RETURN(
      const double short_per_s,
      bench->MeasureCapacity(RandomBodies(setting, setting.short_tokens, kLoadBodyCount, random)));
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
