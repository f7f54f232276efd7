#include "gateway/json_text.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "boost/json.hpp"
#include "fmt/format.h"

namespace zp::gateway {
namespace {

namespace json = boost::json;

constexpr size_t kMaxDepth = 32;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

void WriteString(std::string_view text, std::string& out) {
  out.push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (c == '\n') {
      out.append("\\n");
    } else if (static_cast<unsigned char>(c) < 0x20) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<int>(c));
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

void WriteDouble(double number, std::string& out) {
  if (!std::isfinite(number)) {
    out.append("null");
    return;
  }
  const size_t start = out.size();
  fmt::format_to(std::back_inserter(out), "{}", number);
  if (out.find_first_of(".e", start) == std::string::npos) {
    out.append(".0");  // 1 would be read back as an integer
  }
}

void WriteValue(const json::value& value, std::string& out);

void WriteArray(const json::array& array, std::string& out) {
  out.push_back('[');
  for (const json::value& element : array) {
    if (&element != array.data()) {
      out.push_back(',');
    }
    WriteValue(element, out);
  }
  out.push_back(']');
}

void WriteObject(const json::object& object, std::string& out) {
  out.push_back('{');
  bool is_first = true;
  for (const json::key_value_pair& pair : object) {
    if (!is_first) {
      out.push_back(',');
    }
    is_first = false;
    WriteString({pair.key().data(), pair.key().size()}, out);
    out.push_back(':');
    WriteValue(pair.value(), out);
  }
  out.push_back('}');
}

// Our own answers and depth-limited input: the recursion is at most a few levels deep.
void WriteValue(const json::value& value, std::string& out) {
  switch (value.kind()) {
    case json::kind::null:
      out.append("null");
      break;
    case json::kind::bool_:
      out.append(value.get_bool() ? "true" : "false");
      break;
    case json::kind::int64:
      fmt::format_to(std::back_inserter(out), "{}", value.get_int64());
      break;
    case json::kind::uint64:
      fmt::format_to(std::back_inserter(out), "{}", value.get_uint64());
      break;
    case json::kind::double_:
      WriteDouble(value.get_double(), out);
      break;
    case json::kind::string:
      WriteString({value.get_string().data(), value.get_string().size()}, out);
      break;
    case json::kind::array:
      WriteArray(value.get_array(), out);
      break;
    case json::kind::object:
      WriteObject(value.get_object(), out);
      break;
  }
}

// The length a lead byte promises and the range its second byte must lie in; 0 for no lead byte.
struct Utf8Lead {
  int byte_count = 0;
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
};

Utf8Lead ReadLead(unsigned char lead) {
  if (lead < 0x80) {
    return {.byte_count = 1};
  }
  if (lead >= 0xC2 && lead <= 0xDF) {
    return {.byte_count = 2};
  }
  if (lead >= 0xE0 && lead <= 0xEF) {
    return {.byte_count = 3,
            .second_min = static_cast<unsigned char>(lead == 0xE0 ? 0xA0 : 0x80),
            .second_max = static_cast<unsigned char>(lead == 0xED ? 0x9F : 0xBF)};
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    return {.byte_count = 4,
            .second_min = static_cast<unsigned char>(lead == 0xF0 ? 0x90 : 0x80),
            .second_max = static_cast<unsigned char>(lead == 0xF4 ? 0x8F : 0xBF)};
  }
  return {};
}

// The bytes at the start of `bytes` that belong together, and whether they are a whole character.
struct Utf8Piece {
  size_t byte_count = 1;
  bool is_character = false;
};

Utf8Piece ReadPiece(std::string_view bytes) {
  const Utf8Lead lead = ReadLead(static_cast<unsigned char>(bytes[0]));
  for (int i = 1; i < lead.byte_count; ++i) {
    const auto byte =
        static_cast<unsigned char>(static_cast<size_t>(i) < bytes.size() ? bytes[i] : 0);
    const unsigned char min = i == 1 ? lead.second_min : 0x80;
    const unsigned char max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) {
      return {.byte_count = static_cast<size_t>(i)};
    }
  }
  return {.byte_count = static_cast<size_t>(std::max(lead.byte_count, 1)),
          .is_character = lead.byte_count > 0};
}

// Where the first bytes are that are no character; the size of `bytes` if there are none.
size_t FindBrokenUtf8(std::string_view bytes) {
  size_t place = 0;
  while (place < bytes.size()) {
    const Utf8Piece piece = ReadPiece(bytes.substr(place));
    if (!piece.is_character) {
      break;
    }
    place += piece.byte_count;
  }
  return place;
}

}  // namespace

absl::StatusOr<json::value> ParseJson(std::string_view text) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    return absl::InvalidArgumentError("the JSON is empty");
  }
  json::parse_options options;
  options.max_depth = kMaxDepth;
  json::parser parser({}, options);
  boost::system::error_code error;
  const size_t read_bytes = parser.write_some(text.data(), text.size(), error);
  if (error == json::error::too_deep) {
    return absl::InvalidArgumentError(
        fmt::format("the JSON is nested deeper than {} levels at byte {}", kMaxDepth, read_bytes));
  }
  if (error) {
    if (const size_t broken = FindBrokenUtf8(text); broken < text.size()) {
      return absl::InvalidArgumentError(
          fmt::format("the JSON is broken at byte {}: what is there is not UTF-8", broken));
    }
    return absl::InvalidArgumentError(
        fmt::format("the JSON is broken at byte {}: {}", read_bytes, error.message()));
  }
  const size_t rest = text.find_first_not_of(" \t\r\n", read_bytes);
  if (rest != std::string_view::npos) {
    return absl::InvalidArgumentError(
        fmt::format("there is more text after the JSON, at byte {}", rest));
  }
  return parser.release();
}

std::string WriteJson(const json::value& value) {
  std::string out;
  WriteValue(value, out);
  return out;
}

std::string ToValidUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const Utf8Piece piece = ReadPiece(bytes);
    out.append(piece.is_character ? bytes.substr(0, piece.byte_count) : kReplacement);
    bytes.remove_prefix(piece.byte_count);
  }
  return out;
}

int64_t CountCharacters(std::string_view bytes) {
  int64_t count = 0;
  for (const char byte : bytes) {
    count += (static_cast<unsigned char>(byte) & 0xC0) != 0x80 ? 1 : 0;
  }
  return count;
}

}  // namespace zp::gateway
