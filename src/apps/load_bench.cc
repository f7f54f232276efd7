#include "apps/load_bench.h"

#include <algorithm>
#include <utility>

#include "apps/load_report.h"
#include "fmt/format.h"
#include "fmt/ranges.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

constexpr char kPath[] = "/v1/completions";
constexpr double kWarmUpSeconds = 3;

}  // namespace

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

absl::StatusOr<std::unique_ptr<LoadBench>> LoadBench::Start(
    const LoadSetting& setting, const std::vector<std::string>& more_flags) {
  std::vector<std::string> flags = setting.serve_flags;
  flags.insert(flags.end(), more_flags.begin(), more_flags.end());
  auto bench = std::unique_ptr<LoadBench>(new LoadBench(setting));
  ZP_ASSIGN_OR_RETURN(bench->server_, LoadServer::Start(flags));
  ZP_ASSIGN_OR_RETURN(bench->client_, LoadClient::Create(bench->server_->address(), kPath));
  return bench;
}

absl::StatusOr<double> LoadBench::MeasureCapacity(const std::vector<std::string>& bodies) {
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

absl::StatusOr<GatewayWork> LoadBench::ReadGatewayWork() const {
  ZP_ASSIGN_OR_RETURN(MetricsPage page, server_->ReadMetrics());
  const auto count = [&](int status) {
    return page[fmt::format(
        R"(zeroprefill_requests_total{{handler="{}",status="{}"}})", kPath, status)];
  };
  return GatewayWork{
      .cpu_s = server_->GatewayCpuSeconds(), .answered = count(200), .refused = count(429)};
}

absl::StatusOr<json::object> LoadBench::TakePasses() {
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

}  // namespace zp::apps
