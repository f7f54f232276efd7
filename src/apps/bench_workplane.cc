#include "apps/bench_workplane.h"

#include <sys/resource.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "apps/command.h"
#include "base/status.h"
#include "boost/json.hpp"
#include "cluster/host_address.h"
#include "fmt/format.h"
#include "workplane/remote_host.h"
#include "workplane/work_server.h"

namespace zp::apps {
namespace {

namespace json = boost::json;

constexpr char kToken[] = "bench workplane's own token";

struct WorkplaneOptions {
  int64_t works = 100'000;
  int64_t tokens = 256;
  int64_t in_flight = 256;
  bool json = false;
};

// Answers one logit a work, all that have come at once, from a thread of its own: what is measured
// is the way there and back.
class IdleRank final : public protocol::WorkSink {
 public:
  IdleRank() : thread_([this] { Serve(); }) {}
  ~IdleRank() override {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

  absl::Status Submit(protocol::Work /*work*/, std::stop_token /*cancel*/, Done done) override {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(done));
    }
    changed_.notify_one();
    return absl::OkStatus();
  }

 private:
  void Serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return is_stopping_ || !queue_.empty(); });
      if (queue_.empty()) {
        return;
      }
      std::deque<Done> batch = std::exchange(queue_, {});
      lock.unlock();
      for (const Done& done : batch) {
        protocol::WorkResult result;
        result.sequences.emplace_back().rows.emplace_back().column_logits = {1};
        done(std::move(result));
      }
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Done> queue_;
  bool is_stopping_ = false;
  std::thread thread_;
};

struct Measured {
  double works_per_s = 0;
  double cpu_us_per_work = 0;  // of the whole process: both ends and the rank
};

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class WorkplaneBench {
 public:
  explicit WorkplaneBench(const WorkplaneOptions& options) : options_(options) {
    protocol::Sequence& sequence = work_.sequences.emplace_back();
    sequence.tokens.resize(options_.tokens, 1000);
    sequence.rows.emplace_back().position = static_cast<int32_t>(options_.tokens) - 1;
    sequence.rows[0].columns = {7};
  }

  absl::Status Run() {
    IdleRank rank;
    workplane::ReportBoard board(1);
    ZP_ASSIGN_OR_RETURN(const auto server,
                        workplane::WorkServer::Start({.join_token = kToken}, {&rank}, board));
    std::mutex mutex;
    std::condition_variable changed;
    bool is_up = false;
    workplane::RemoteHostOptions host_options;
    host_options.join_token = kToken;
    const auto host = workplane::RemoteHost::Create(
        std::move(host_options),
        {.on_up =
             [&](int32_t, int32_t) {
               const std::lock_guard lock(mutex);
               is_up = true;
               changed.notify_one();
             },
         .on_down = [](int32_t, const absl::Status&) {},
         .on_report = [](int32_t, int32_t, const protocol::RankReport&) {}});
    host->SetAddress(cluster::TargetOf("127.0.0.1", server->port()));
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return is_up; });
    }
    for (protocol::WorkSink* sink : {static_cast<protocol::WorkSink*>(&rank), &host->rank(0)}) {
      ZP_RETURN_IF_ERROR(Measure(*sink, options_.in_flight, options_.works / 10).status());
    }
    ZP_ASSIGN_OR_RETURN(const Measured direct, Measure(rank, options_.in_flight, options_.works));
    ZP_ASSIGN_OR_RETURN(const Measured stream,
                        Measure(host->rank(0), options_.in_flight, options_.works));
    ZP_ASSIGN_OR_RETURN(const Measured alone, Measure(host->rank(0), 1, options_.works / 10));
    host->Stop();
    Print(direct, stream, alone);
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<Measured> Measure(protocol::WorkSink& sink, int64_t in_flight, int64_t works) {
    std::mutex mutex;
    std::condition_variable changed;
    int64_t out = 0;
    absl::Status failure;
    const double cpu_begin = CpuSeconds();
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < works; ++i) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return out < in_flight; });
        ++out;
      }
      const absl::Status status =
          sink.Submit(work_, {}, [&](const absl::StatusOr<protocol::WorkResult>& result) {
            const std::lock_guard lock(mutex);
            failure.Update(result.status());
            --out;
            changed.notify_one();
          });
      if (!status.ok()) {
        const std::lock_guard lock(mutex);
        failure.Update(status);
        --out;
      }
    }
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return out == 0; });
    ZP_RETURN_IF_ERROR(failure);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    const auto count = static_cast<double>(works);
    return Measured{.works_per_s = count / seconds.count(),
                    .cpu_us_per_work = 1e6 * (CpuSeconds() - cpu_begin) / count};
  }

  void Print(const Measured& direct, const Measured& stream, const Measured& alone) const {
    const json::object line = {{"bench", "workplane"},
                               {"tokens", options_.tokens},
                               {"in_flight", options_.in_flight},
                               {"works", options_.works},
                               {"direct_works_per_s", direct.works_per_s},
                               {"direct_cpu_us_per_work", direct.cpu_us_per_work},
                               {"stream_works_per_s", stream.works_per_s},
                               {"stream_cpu_us_per_work", stream.cpu_us_per_work},
                               {"one_in_flight_us", 1e6 / alone.works_per_s},
                               {"one_in_flight_cpu_us", alone.cpu_us_per_work}};
    if (options_.json) {
      fmt::print("{}\n", json::serialize(line));
      return;
    }
    for (const auto& [key, value] : line) {
      fmt::print("  {:<24} {}\n", std::string(key), json::serialize(value));
    }
  }

  const WorkplaneOptions options_;
  protocol::Work work_;
};

}  // namespace

void AddBenchWorkplaneCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "workplane",
      "Works a second and CPU a work, to a rank at once and over a stream on loopback");
  const auto options = std::make_shared<WorkplaneOptions>();
  command->add_option("--works", options->works, "That are timed")
      ->check(CLI::Range(int64_t{10}, int64_t{100'000'000}))
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "Of each work")
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000}))
      ->capture_default_str();
  command->add_option("--in-flight", options->in_flight, "Works without answer at any time")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON line");
  command->callback([options] { ExitOnError(WorkplaneBench(*options).Run()); });
}

}  // namespace zp::apps
