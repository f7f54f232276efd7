// What a peer source and a memory server say to each other over TCP.
//
//   source -> server: Hello, then any number of Requests
//   server -> source: for each request, in order, a Reply and then its bytes
//
// There is no error message: a server that is asked for what it does not have closes the
// connection. Numbers are little-endian, as on every machine this runs on.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>

#include "base/status.h"

namespace zp::fabric::tcp {

static_assert(std::endian::native == std::endian::little);

// Drawn anew by each server: shows that the source has its advertisement, and that this server is
// the one that wrote it and not a later one on the same port.
using Key = std::array<uint8_t, 16>;

struct Hello {
  uint64_t magic = 0x314d454d4e41465aull;  // "ZFANMEM1"
  Key key = {};
};

struct Request {
  uint64_t sequence = 0;  // 0, 1, 2, ... on each connection
  uint64_t offset = 0;
  uint32_t object = 0;
  uint32_t bytes = 0;
};

struct Reply {
  uint64_t sequence = 0;  // of the request
  uint64_t bytes = 0;     // that follow; as many as were asked for
};

static_assert(sizeof(Hello) == 24 && sizeof(Request) == 24 && sizeof(Reply) == 16);

// The advertisement of a server: "tcp <host> <port> <key in hexadecimal>".
struct Advertisement {
  std::string host;
  uint16_t port = 0;
  Key key = {};

  std::string ToString() const;
  // Errors: InvalidArgument.
  static absl::StatusOr<Advertisement> Parse(const std::string& text);
};

}  // namespace zp::fabric::tcp
