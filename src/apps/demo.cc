#include "apps/demo.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "apps/command.h"
#include "apps/demo_client.h"
#include "apps/demo_sample.h"
#include "base/status.h"
#include "base/units.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

using Clock = std::chrono::steady_clock;

struct DemoOptions {
  std::string url = "http://127.0.0.1:8000";
  std::string model = "models/zeroprefill-mini";
  int connections = 64;
  int shown_per_task = 2;
};

// The server's counters that tell what the sample cost.
struct ServerCounters {
  double flops = 0;
  double pass_seconds = 0;
  double passes = 0;
  double distinct_tokens = 0;
  double peak_flops_per_s = 0;
};

struct Run {
  std::vector<SampleText> sample;
  Reference reference;
  SampleCost cost;
  ServerCounters spent;
  double seconds = 0;
};

// The sum over the lines `name value` and `name{labels} value` of a metrics page, one for each
// rank; 0 where there is none.
double MetricValue(const std::string& page, const std::string& name) {
  double sum = 0;
  for (size_t line = page.find("\n" + name); line != std::string::npos;
       line = page.find("\n" + name, line + 1)) {
    const size_t after_name = line + 1 + name.size();
    const size_t after_labels =
        page[after_name] == '{' ? page.find('}', after_name) + 1 : after_name;
    if (page[after_labels] == ' ') {
      sum += std::strtod(page.c_str() + after_labels, nullptr);
    }
  }
  return sum;
}

absl::StatusOr<ServerCounters> ReadCounters(const ServerAddress& address) {
  ZP_ASSIGN_OR_RETURN(const HttpAnswer answer, Get(address, "/metrics"));
  const std::string page = "\n" + answer.body;
  return ServerCounters{.flops = MetricValue(page, "zeroprefill_flops_total"),
                        .pass_seconds = MetricValue(page, "zeroprefill_pass_seconds_sum"),
                        .passes = MetricValue(page, "zeroprefill_pass_seconds_count"),
                        .distinct_tokens = MetricValue(page, "zeroprefill_distinct_tokens_total"),
                        .peak_flops_per_s = MetricValue(page, "zeroprefill_peak_flops_per_second")};
}

ServerCounters Difference(const ServerCounters& before, const ServerCounters& after) {
  return {.flops = after.flops - before.flops,
          .pass_seconds = after.pass_seconds - before.pass_seconds,
          .passes = after.passes - before.passes,
          .distinct_tokens = after.distinct_tokens - before.distinct_tokens,
          .peak_flops_per_s = after.peak_flops_per_s};
}

absl::Status AskAll(const ServerAddress& address, const DemoOptions& options, Run& run) {
  std::vector<std::string> bodies;
  bodies.reserve(run.sample.size());
  for (const SampleText& text : run.sample) {
    bodies.push_back(ClassifyBody(text));
  }
  ZP_ASSIGN_OR_RETURN(const ServerCounters before, ReadCounters(address));
  const Clock::time_point start = Clock::now();
  ZP_ASSIGN_OR_RETURN(const std::vector<HttpAnswer> answers,
                      PostAll(address, "/v1/classify", bodies, options.connections));
  run.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  ZP_ASSIGN_OR_RETURN(const ServerCounters after, ReadCounters(address));
  run.spent = Difference(before, after);
  for (size_t i = 0; i < answers.size(); ++i) {
    if (answers[i].status != 200) {
      return absl::InternalError(
          fmt::format("the server answered {}: {}", answers[i].status, answers[i].body));
    }
    ZP_RETURN_IF_ERROR(ReadAnswer(answers[i].body, run.sample[i], run.cost));
  }
  return absl::OkStatus();
}

// The beginning of a text on one line, not cut within a character.
std::string Excerpt(const std::string& text, size_t max_bytes) {
  size_t end = std::min(text.size(), max_bytes);
  while (end < text.size() && (text[end] & 0xc0) == 0x80) {
    --end;
  }
  std::string excerpt = text.substr(0, end) + (end < text.size() ? "..." : "");
  std::replace(excerpt.begin(), excerpt.end(), '\n', ' ');
  return excerpt;
}

void PrintTexts(const std::vector<SampleText>& sample, int shown_per_task) {
  std::map<std::string, int> shown;
  for (const SampleText& text : sample) {
    if (shown[text.task]++ >= shown_per_task) {
      continue;
    }
    const bool is_right = text.answer == text.label;
    fmt::print("  \"{}\"\n    {}:{} ({:.1f} %){}\n",
               Excerpt(text.text, 100),
               text.task,
               text.answer,
               100 * text.probability,
               is_right ? "" : fmt::format(", but it is{}", text.label));
  }
}

struct TaskTally {
  int texts = 0;
  int right = 0;
  int as_reference = 0;  // the same answer as transformers', right or wrong
};

std::map<std::string, TaskTally> TallyByTask(const Run& run) {
  std::map<std::string, TaskTally> by_task;
  for (const SampleText& text : run.sample) {
    TaskTally& tally = by_task[text.task];
    const auto reference = run.reference.answers.find(text.id);
    tally.texts += 1;
    tally.right += text.answer == text.label ? 1 : 0;
    tally.as_reference +=
        reference != run.reference.answers.end() && reference->second == text.answer ? 1 : 0;
  }
  return by_task;
}

void PrintAccuracy(const Run& run) {
  fmt::print("\n  {:<10}{:>7}{:>10}  |{:>20}{:>28}\n",
             "task",
             "texts",
             "accuracy",
             "transformers agrees",
             "its accuracy, all held out");
  for (const auto& [task, tally] : TallyByTask(run)) {
    const auto accuracy = run.reference.accuracies.find(task);
    const bool has_reference = accuracy != run.reference.accuracies.end();
    fmt::print("  {:<10}{:>7}{:>10.3f}  |{:>20}{:>28}\n",
               task,
               tally.texts,
               static_cast<double>(tally.right) / tally.texts,
               has_reference ? fmt::format("{} of {}", tally.as_reference, tally.texts) : "",
               has_reference ? fmt::format("{:.3f}", accuracy->second) : "");
  }
}

void PrintCost(const Run& run, int connections) {
  const auto requests = static_cast<double>(run.sample.size());
  const auto prompt_tokens = static_cast<double>(run.cost.prompt_tokens);
  const ServerCounters& spent = run.spent;
  fmt::print("\n  {} requests over {} connections in {:.2f} s: {:.0f} requests/s, {} tokens/s\n",
             run.sample.size(),
             connections,
             run.seconds,
             requests / run.seconds,
             base::FormatCount(prompt_tokens / run.seconds));
  if (spent.pass_seconds > 0) {
    fmt::print("  {:.0f} passes of {:.0f} tokens on average, {:.2f} s of compute: {}FLOP/s",
               spent.passes,
               static_cast<double>(run.cost.computed_tokens) / spent.passes,
               spent.pass_seconds,
               base::FormatCount(spent.flops / spent.pass_seconds));
    if (spent.peak_flops_per_s > 0) {
      fmt::print(", {:.1f} % of the bf16 peak",
                 100 * spent.flops / spent.pass_seconds / spent.peak_flops_per_s);
    }
    fmt::print("\n");
  }
  if (spent.distinct_tokens > 0) {
    fmt::print("  redundancy {:.3f}: {} tokens computed, {:.0f} distinct in their passes\n",
               static_cast<double>(run.cost.computed_tokens) / spent.distinct_tokens,
               run.cost.computed_tokens,
               spent.distinct_tokens);
  }
}

void PrintNext(const DemoOptions& options, const ServerAddress& address) {
  fmt::print(
      "\nAsk it yourself:\n"
      "  build/release/zeroprefill serve --model {} --port {} &  # unless it still runs\n"
      "  curl -s {}/v1/classify -H 'Content-Type: application/json' \\\n"
      "    -d '{{\"task\": \"language\", \"input\": [\"Wo ist der Bahnhof?\"]}}'\n",
      options.model,
      address.port,
      options.url);
}

absl::Status RunDemo(const DemoOptions& options) {
  ZP_ASSIGN_OR_RETURN(const ServerAddress address, ParseUrl(options.url));
  Run run;
  ZP_ASSIGN_OR_RETURN(run.sample, ReadSample(options.model));
  ZP_ASSIGN_OR_RETURN(run.reference, ReadReference(options.model));
  fmt::print("{} held-out texts of {} go to {}; some of them and the answers:\n\n",
             run.sample.size(),
             options.model,
             options.url);
  ZP_RETURN_IF_ERROR(AskAll(address, options, run));
  PrintTexts(run.sample, options.shown_per_task);
  PrintAccuracy(run);
  PrintCost(run, options.connections);
  PrintNext(options, address);
  return absl::OkStatus();
}

}  // namespace

void AddDemoCommand(CLI::App& app) {
  auto options = std::make_shared<DemoOptions>();
  CLI::App* demo = app.add_subcommand("demo", "Show a running server at work on held-out texts");
  demo->add_option("--url", options->url, "Where the server listens")->capture_default_str();
  demo->add_option("--model", options->model, "Model directory with heldout_sample.jsonl")
      ->capture_default_str();
  demo->add_option("--connections", options->connections, "Requests in flight at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  demo->callback([options] { ExitOnError(RunDemo(*options)); });
}

}  // namespace zp::apps
