// Answers requests: finds the endpoint, turns the body into work, hands it to the WorkSink and
// turns the result into JSON. Knows nothing of sockets, so HTTP, batch files and tests all use it.
//
// Thread safety: Handle from any thread; it returns at once. Parsing, tokenizing and writing run on
// a small pool of its own, never on the caller's thread or the sink's. A request for which there is
// no room, whatever it asks, is refused on the caller's thread, unread.
// Ownership: model and sink are lent. The destructor waits until every request has its answer, so
// the sink must still be at work then.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>

#include "gateway/endpoints.h"
#include "gateway/message.h"
#include "gateway/served_model.h"
#include "protocol/work.h"

namespace zp::gateway {

struct ServiceOptions {
  int thread_count = 2;  // for parsing and tokenizing
  // Whether `priority` is heeded. Who may set it can starve all who do not, so it is refused where
  // clients are not of one mind.
  bool allow_priority = false;
};

class Service {
 public:
  Service(const ServedModel& model, protocol::WorkSink& sink, const ServiceOptions& options);
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  // A Handler: see message.h.
  void Handle(Request request, std::stop_token cancel, std::function<void(Response)> done);

  // From now on /ready says 503 and POST requests are refused with 503.
  void StartDraining();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace zp::gateway
