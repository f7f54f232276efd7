#include "gateway/service.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/synchronization/mutex.h"
#include "base/logging.h"
#include "base/metrics.h"
#include "base/thread_name.h"
#include "boost/asio/post.hpp"
#include "boost/asio/thread_pool.hpp"
#include "boost/json.hpp"
#include "fmt/format.h"
#include "gateway/errors.h"
#include "gateway/json_fields.h"
#include "gateway/json_text.h"
#include "gateway/request_metrics.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

constexpr char kVersion[] = "0.1.0";
constexpr size_t kMaxSaltChars = 1024;
constexpr char kTimeoutHeader[] = "X-Request-Timeout-Ms";
constexpr int64_t kMaxTimeoutMs = 86'400'000;  // a day

constexpr Range kAnyInteger = {std::numeric_limits<int64_t>::min(),
                               std::numeric_limits<int64_t>::max()};

struct PostRoute {
  std::string_view path;
  Endpoint endpoint;
  bool needs_pass = true;
};

constexpr PostRoute kPostRoutes[] = {
    {"/v1/score", &PrepareScore},
    {"/v1/classify", &PrepareClassify},
    {"/classify", &PrepareClassify},
    {"/v1/completions", &PrepareCompletions},
    {"/v1/loglikelihood", &PrepareLoglikelihood},
    {"/v1/embeddings", &PrepareEmbeddings},
    {"/tokenize", &PrepareTokenize, /*needs_pass=*/false},
    {"/detokenize", &PrepareDetokenize, /*needs_pass=*/false},
};

constexpr std::string_view kGetPaths[] = {
    "/health", "/ready", "/version", "/metrics", "/v1/models", "/tokenizer_info"};

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

Response JsonResponse(const json::object& body) { return {.body = WriteJson(body)}; }

const PostRoute* FindPostRoute(std::string_view path) {
  const auto* found = std::ranges::find(kPostRoutes, path, &PostRoute::path);
  return found == std::end(kPostRoutes) ? nullptr : found;
}

bool IsGetPath(std::string_view path) {
  return std::find(std::begin(kGetPaths), std::end(kGetPaths), path) != std::end(kGetPaths);
}

// Clients that were written for another server find out here what this one has.
Response UnknownPath(const std::string& path) {
  std::string known;
  for (const PostRoute& route : kPostRoutes) {
    known += fmt::format("{}{}", known.empty() ? "" : ", ", route.path);
  }
  return ErrorResponse(
      absl::NotFoundError(fmt::format("no such path: {}; POST goes to {}", path, known)));
}

Response WrongMethod(const Request& request, std::string_view allowed) {
  Response response = ErrorResponse(
      405,
      "method_not_allowed",
      fmt::format("{} does not take {}; use {}", request.path, request.method, allowed));
  response.headers.emplace_back("Allow", allowed);
  return response;
}

json::object ModelsJson(const ServedModel& model, int64_t created_seconds) {
  return {{"object", "list"},
          {"data",
           {{{"id", model.name()},
             {"object", "model"},
             {"created", created_seconds},
             {"owned_by", "zeroprefill"},
             {"root", model.name()},
             {"parent", nullptr},
             {"max_model_len", model.spec().max_position_count}}}}};
}

json::object TokenizerInfoJson(const ServedModel& model) {
  json::object info = {{"tokenizer_class", "byte_level_bpe"},
                       {"vocab_size", model.tokenizer().vocab_count()}};
  for (const auto& [key, text] : model.tokenizer_info()) {
    info[key] = text.empty() ? json::value(nullptr) : json::value(text);
  }
  return info;
}

absl::StatusOr<Prepared> Prepare(Endpoint endpoint,
                                 const std::string& body,
                                 const RequestContext& context,
                                 bool allow_priority) {
  ZP_ASSIGN_OR_RETURN(const json::value value, ParseJson(body));
  if (!value.is_object()) {
    return absl::InvalidArgumentError("the body must be a JSON object");
  }
  const json::object& object = value.get_object();
  Fields fields(object);
  const std::string_view cache_salt = fields.ShortString("cache_salt", kMaxSaltChars);
  const int64_t priority = fields.Integer("priority", kAnyInteger, 0);
  if (priority != 0 && !allow_priority) {
    fields.Fail("priority", "must be 0: this server does not let requests overtake others");
  }
  ZP_RETURN_IF_ERROR(fields.status());
  ZP_ASSIGN_OR_RETURN(Prepared prepared, endpoint(object, context));
  prepared.work.cache_salt = cache_salt;
  prepared.work.priority = priority;
  return prepared;
}

// When the client stops waiting, if it said so.
absl::StatusOr<std::optional<Clock::time_point>> DeadlineOf(const Request& request,
                                                            Clock::time_point start) {
  if (request.timeout_ms.empty()) {
    return std::nullopt;
  }
  int64_t timeout_ms = 0;
  if (!absl::SimpleAtoi(request.timeout_ms, &timeout_ms) || timeout_ms < 1 ||
      timeout_ms > kMaxTimeoutMs) {
    return FieldError(kTimeoutHeader,
                      fmt::format("must be an integer from 1 to {}", kMaxTimeoutMs));
  }
  return start + std::chrono::milliseconds(timeout_ms);
}

}  // namespace

struct Service::State {
  // One request on its way; shared by the closures that carry it from thread to thread.
  struct Exchange {
    Request request;
    std::stop_token cancel;
    std::function<void(Response)> done;
    std::function<absl::StatusOr<json::object>(const protocol::WorkResult&)> read;
    Clock::time_point start = Clock::now();
    std::optional<Clock::time_point> deadline;
    bool is_counted = false;  // in open_gauge
  };
  using ExchangePtr = std::shared_ptr<Exchange>;

  State(const ServedModel& served_model,
        protocol::WorkSink& work_sink,
        const ServiceOptions& service_options)
      : options(service_options),
        model(served_model),
        sink(work_sink),
        pool(service_options.thread_count) {
    for (const PostRoute& route : kPostRoutes) {
      metrics_of.try_emplace(route.path, std::string(route.path));
    }
    for (const std::string_view path : kGetPaths) {
      metrics_of.try_emplace(path, std::string(path));
    }
  }

  void Route(const ExchangePtr& exchange);
  Response AnswerGet(const std::string& path) const;
  absl::Status CheckBeforeParsing(Exchange& exchange, const PostRoute& route);
  void Start(const ExchangePtr& exchange, Endpoint endpoint);
  void Finish(const ExchangePtr& exchange, const absl::StatusOr<protocol::WorkResult>& result);
  void Reply(const ExchangePtr& exchange, Response response);
  void Count(const Exchange& exchange, const Response& response);

  // Runs `step` on the pool. What a library throws ends this request and nothing else.
  template <typename Step>
  void Post(const ExchangePtr& exchange, Step step) {
    boost::asio::post(pool, [this, exchange, step = std::move(step)]() mutable {
      [[maybe_unused]] thread_local const bool is_named = base::NameThisThread("gateway");
      try {
        step();
      } catch (const std::exception& error) {
        Reply(exchange, ErrorResponse(absl::InternalError(error.what())));
      }
    });
  }

  const ServiceOptions options;
  const ServedModel& model;
  protocol::WorkSink& sink;
  const int64_t created_seconds = UnixSeconds();
  std::atomic<uint64_t> next_request = 1;
  std::atomic<bool> is_draining = false;
  absl::Mutex mutex;
  int64_t open_requests ABSL_GUARDED_BY(mutex) = 0;
  base::Gauge& open_gauge =
      base::GetGauge("zeroprefill_requests_open",
                     "Requests that wait for their answer, those about the server not among them");
  std::map<std::string_view, RequestMetrics> metrics_of;  // by path; fixed
  RequestMetrics metrics_of_others{"other"};              // bounds the number of series
  boost::asio::thread_pool pool;                          // last: its threads use all of the above
};

void Service::State::Route(const ExchangePtr& exchange) {
  const Request& request = exchange->request;
  const PostRoute* route = FindPostRoute(request.path);
  if (route == nullptr && !IsGetPath(request.path)) {
    return Reply(exchange, UnknownPath(request.path));
  }
  const std::string_view allowed = route == nullptr ? "GET" : "POST";
  if (request.method != allowed) {
    return Reply(exchange, WrongMethod(request, allowed));
  }
  if (route == nullptr) {
    return Reply(exchange, AnswerGet(request.path));
  }
  if (const absl::Status status = CheckBeforeParsing(*exchange, *route); !status.ok()) {
    return Reply(exchange, ErrorResponse(status));
  }
  exchange->is_counted = true;
  open_gauge.Increment();
  Post(exchange, [this, exchange, route] { Start(exchange, route->endpoint); });
}

// A request for which there is no room, whatever it asks, costs no more than this: under overload
// most do, and the cores are those that compute.
absl::Status Service::State::CheckBeforeParsing(Exchange& exchange, const PostRoute& route) {
  if (is_draining) {
    return absl::UnavailableError("the server is shutting down");
  }
  ZP_ASSIGN_OR_RETURN(exchange.deadline, DeadlineOf(exchange.request, exchange.start));
  return route.needs_pass ? sink.CheckRoom(exchange.deadline) : absl::OkStatus();
}

Response Service::State::AnswerGet(const std::string& path) const {
  if (path == "/health") {
    return {.content_type = "text/plain"};
  }
  if (path == "/ready") {
    return is_draining ? ErrorResponse(absl::UnavailableError("the server is shutting down"))
                       : Response{.content_type = "text/plain"};
  }
  if (path == "/version") {
    return JsonResponse({{"version", kVersion}});
  }
  if (path == "/metrics") {
    return {.content_type = "text/plain; version=0.0.4", .body = base::MetricsText()};
  }
  return JsonResponse(path == "/v1/models" ? ModelsJson(model, created_seconds)
                                           : TokenizerInfoJson(model));
}

void Service::State::Start(const ExchangePtr& exchange, Endpoint endpoint) {
  const RequestContext context{
      .model = model, .request_id = exchange->request.request_id, .created_seconds = UnixSeconds()};
  absl::StatusOr<Prepared> prepared =
      Prepare(endpoint, exchange->request.body, context, options.allow_priority);
  if (!prepared.ok()) {
    return Reply(exchange, ErrorResponse(prepared.status()));
  }
  exchange->request.body = std::string();  // large, and read
  exchange->read = std::move(prepared->read);
  prepared->work.deadline = exchange->deadline;
  if (prepared->work.sequences.empty()) {
    return Finish(exchange, protocol::WorkResult());
  }
  const absl::Status submitted = sink.Submit(
      std::move(prepared->work),
      exchange->cancel,
      [this, exchange](absl::StatusOr<protocol::WorkResult> result) {
        Post(exchange, [this, exchange, result = std::move(result)] { Finish(exchange, result); });
      });
  if (!submitted.ok()) {
    Reply(exchange, ErrorResponse(submitted));
  }
}

void Service::State::Finish(const ExchangePtr& exchange,
                            const absl::StatusOr<protocol::WorkResult>& result) {
  if (!result.ok()) {
    return Reply(exchange, ErrorResponse(result.status()));
  }
  const absl::StatusOr<json::object> answer = exchange->read(*result);
  if (!answer.ok()) {
    return Reply(exchange, ErrorResponse(answer.status()));
  }
  Response response = JsonResponse(*answer);
  if (!result->sequences.empty()) {
    response.usage = result->usage;
  }
  Reply(exchange, std::move(response));
}

void Service::State::Reply(const ExchangePtr& exchange, Response response) {
  response.headers.emplace_back("X-Request-Id", exchange->request.request_id);
  Count(*exchange, response);
  exchange->done(std::move(response));
  if (exchange->is_counted) {
    open_gauge.Decrement();
  }
  const absl::MutexLock lock(&mutex);
  --open_requests;
}

void Service::State::Count(const Exchange& exchange, const Response& response) {
  const Request& request = exchange.request;
  const double seconds = std::chrono::duration<double>(Clock::now() - exchange.start).count();
  const auto metrics = metrics_of.find(request.path);
  (metrics == metrics_of.end() ? metrics_of_others : metrics->second)
      .Count(response.status, seconds);
  const auto level = response.status >= 500 ? base::log::level::warn : base::log::level::debug;
  base::log::log(level,
                 "{} {} {} {} {:.1f} ms{}{}",
                 request.request_id,
                 request.method,
                 request.path,
                 response.status,
                 1e3 * seconds,
                 response.status >= 500 ? " " : "",
                 response.status >= 500 ? response.body : "");
}

Service::Service(const ServedModel& model, protocol::WorkSink& sink, const ServiceOptions& options)
    : state_(std::make_unique<State>(model, sink, options)) {}

Service::~Service() {
  {
    const absl::MutexLock lock(&state_->mutex);
    state_->mutex.Await(absl::Condition(
        +[](int64_t* open_requests) { return *open_requests == 0; }, &state_->open_requests));
  }
  state_->pool.join();
}

void Service::Handle(Request request, std::stop_token cancel, std::function<void(Response)> done) {
  {
    const absl::MutexLock lock(&state_->mutex);
    ++state_->open_requests;
  }
  if (request.request_id.empty()) {
    request.request_id = fmt::format("{:x}-{}", state_->created_seconds, state_->next_request++);
  }
  auto exchange = std::make_shared<State::Exchange>();
  exchange->request = std::move(request);
  exchange->cancel = std::move(cancel);
  exchange->done = std::move(done);
  state_->Route(exchange);
}

void Service::StartDraining() { state_->is_draining = true; }

}  // namespace zp::gateway
