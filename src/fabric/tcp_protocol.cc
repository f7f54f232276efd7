#include "fabric/tcp_protocol.h"

#include <charconv>
#include <sstream>

#include "fmt/format.h"
#include "fmt/ranges.h"

namespace zp::fabric::tcp {

std::string Advertisement::ToString() const {
  return fmt::format("tcp {} {} {:02x}", host, port, fmt::join(key, ""));
}

absl::StatusOr<Advertisement> Advertisement::Parse(const std::string& text) {
  std::istringstream words(text);
  std::string transport, key;
  Advertisement result;
  words >> transport >> result.host >> result.port >> key;
  bool is_good = !words.fail() && transport == "tcp" && key.size() == 2 * result.key.size();
  for (size_t i = 0; is_good && i < result.key.size(); ++i) {
    const char* digits = key.data() + 2 * i;
    is_good = std::from_chars(digits, digits + 2, result.key[i], 16).ptr == digits + 2;
  }
  if (!is_good) {
    return absl::InvalidArgumentError("not the advertisement of a memory server over TCP");
  }
  return result;
}

}  // namespace zp::fabric::tcp
