#include "apps/serve.h"

#include <semaphore.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "apps/command.h"
#include "apps/local_model.h"
#include "base/logging.h"
#include "base/metrics.h"
#include "base/thread_pool.h"
#include "fmt/format.h"
#include "gateway/http_server.h"
#include "ops/cpu/cpu_kernels.h"

namespace zp::apps {
namespace {

struct ServeOptions {
  LocalModelOptions model;
  gateway::HttpOptions http;
  double drain_seconds = 30;
  std::string log_level = "info";
};

// Waits for SIGTERM or SIGINT. While there is none of these, signals act as they always do, so a
// model that loads for a minute can be interrupted; so does the second signal.
class EndSignal {
 public:
  EndSignal() {
    sem_init(&Semaphore(), /*pshared=*/0, /*value=*/0);
    struct sigaction action = {};
    action.sa_handler = [](int) { sem_post(&Semaphore()); };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);
  }

  void Wait() {
    while (sem_wait(&Semaphore()) != 0) {  // a debugger's signal ends the wait early
    }
  }

 private:
  static sem_t& Semaphore() {
    static sem_t semaphore;
    return semaphore;
  }
};

// What the share of the peak is counted against: this machine's, measured with the same threads.
void PublishPeak(const LocalModelOptions& options) {
  const int threads =
      options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  const absl::StatusOr<spec::DType> dtype = ParseDType(options.dtype);
  base::ThreadPool pool(threads);
  base::GetGauge("zeroprefill_peak_flops_per_second", "Measured when the server started")
      .Set(ops::cpu::MeasurePeakFlops(*dtype, pool));
}

constexpr std::chrono::seconds kRefusalTime{2};  // to write what is said to those still open

// The requests in flight get their answers, new ones are refused. Those that are still open at the
// deadline are told so; the process does not wait for the passes that they may be in, which nothing
// can stop.
void End(gateway::HttpServer& server, LocalModel& model, double drain_seconds) {
  base::log::info("ending: waiting up to {:.0f} s for requests in flight", drain_seconds);
  model.service().StartDraining();
  const auto deadline = std::chrono::milliseconds(static_cast<int64_t>(1e3 * drain_seconds));
  const auto end = std::chrono::steady_clock::now() + deadline;
  model.DrainWorks(std::chrono::steady_clock::now());  // tells other hosts to bring no more
  if (const size_t open_requests = server.Drain(deadline); open_requests > 0) {
    base::log::warn("{} requests are refused: the time to end is over", open_requests);
    model.RefuseWorks();
    if (const size_t unanswered = server.Drain(kRefusalTime); unanswered > 0) {
      base::log::warn("{} requests are left without an answer", unanswered);
    }
    std::_Exit(0);
  }
  if (!model.DrainWorks(end)) {
    base::log::warn("works of other hosts are left without an answer");
    std::_Exit(0);
  }
}

absl::Status Serve(const ServeOptions& options) {
  base::SetLogLevel(options.log_level);
  RaiseDescriptorLimit();
  ZP_RETURN_IF_ERROR(gateway::HttpServer::CheckAddress(options.http));
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<LocalModel> model, LocalModel::Load(options.model));
  PublishPeak(options.model);
  EndSignal end_signal;
  ZP_ASSIGN_OR_RETURN(
      const std::unique_ptr<gateway::HttpServer> server,
      gateway::HttpServer::Start(options.http,
                                 [&model](gateway::Request request,
                                          std::stop_token cancel,
                                          std::function<void(gateway::Response)> done) {
                                   model->service().Handle(
                                       std::move(request), std::move(cancel), std::move(done));
                                 }));
  fmt::print("ready: http://{}:{} serves {}\n",
             options.http.host,
             server->port(),
             model->served_model().name());
  std::fflush(stdout);
  end_signal.Wait();
  End(*server, *model, options.drain_seconds);
  return absl::OkStatus();
}

// What both roles of a serving process have.
void AddServingFlags(CLI::App& command, ServeOptions& options) {
  AddLocalModelFlags(command, options.model);
  options.model.max_backlog_seconds = 120;
  command
      .add_option("--max-backlog-seconds",
                  options.model.max_backlog_seconds,
                  "While so many seconds of work wait, requests get 429")
      ->check(IsPositive())
      ->capture_default_str();
  command.add_option("--host", options.http.host, "Address to listen on")->capture_default_str();
  command.add_option("--port", options.http.port, "0 picks a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command
      .add_option("--max-queue-tokens",
                  options.model.scheduler.max_queue_tokens,
                  "While so many tokens wait, requests get 429")
      ->check(IsPositive())
      ->capture_default_str();
  command
      .add_option_function<int64_t>(
          "--max-hold-ms",
          [&options](int64_t milliseconds) {
            options.model.scheduler.max_hold = std::chrono::milliseconds(milliseconds);
          },
          "How long a batch that does not hide its gathers may wait for company (default: 0)")
      ->check(CLI::Range(0, 60'000));
  command
      .add_option(
          "--ahead-tokens",
          options.model.scheduler.ahead_tokens,
          "With --prefix-cache: of a long beginning, how much a pass computes (at least T*)")
      ->check(CLI::Range(16, 1 << 20))
      ->capture_default_str();
  command.add_flag("--allow-priority",
                   options.model.service.allow_priority,
                   "Heed `priority` in requests; who may set it can starve the others");
  command.add_option("--max-connections", options.http.max_connections, "Beyond, clients get 503")
      ->check(IsPositive())
      ->capture_default_str();
  command.add_option("--max-body-bytes", options.http.max_body_bytes, "Beyond, requests get 413")
      ->check(IsPositive())
      ->capture_default_str();
  command
      .add_option("--drain-seconds",
                  options.drain_seconds,
                  "After SIGTERM, how long requests in flight may take")
      ->check(IsWithin(0, 86'400))
      ->capture_default_str();
  command.add_option("--log-level", options.log_level, "trace, debug, info, warn or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
}

}  // namespace

void AddServeCommand(CLI::App& app) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand("serve", "Answer requests over HTTP");
  AddServingFlags(*command, *options);
  AddFounderFlags(*command, options->model.cluster);
  command->callback([options] { ExitOnError(Serve(*options)); });
}

void AddWorkerCommand(CLI::App& app) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand(
      "worker", "Answer requests over HTTP as one of the hosts that share a model's experts");
  AddServingFlags(*command, *options);
  AddWorkerFlags(*command, options->model.cluster);
  command->callback([options] { ExitOnError(Serve(*options)); });
}

}  // namespace zp::apps
