// The body of a request to each POST endpoint, with the gateway's fake model behind it: any bytes
// get one answer, which is JSON, and never an internal error.
//
// The first byte chooses the endpoint.
#include <cstddef>
#include <cstdint>
#include <future>
#include <string>
#include <utility>

#include "base/check.h"
#include "gateway/fake_model.h"

namespace zp::gateway {
namespace {

// The seeds begin with '1' for the first one.
constexpr const char* kPaths[] = {"/v1/score",
                                  "/v1/classify",
                                  "/v1/completions",
                                  "/v1/loglikelihood",
                                  "/v1/embeddings",
                                  "/tokenize",
                                  "/detokenize"};

void Ask(const std::string& path, std::string body) {
  static TestService test;
  std::promise<Response> promise;
  test.service.Handle({.method = "POST", .path = path, .body = std::move(body)},
                      {},
                      [&](Response response) { promise.set_value(std::move(response)); });
  const Response response = promise.get_future().get();
  ZP_CHECK(response.status == 200 || response.status == 400 || response.status == 404 ||
           response.status == 501)
      << response.status << " " << response.body;
  ZP_CHECK(ParseJson(response.body).ok()) << response.body;
}

}  // namespace
}  // namespace zp::gateway

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) {
    zp::gateway::Ask(zp::gateway::kPaths[data[0] % std::size(zp::gateway::kPaths)],
                     std::string(reinterpret_cast<const char*>(data + 1), size - 1));
  }
  return 0;
}
