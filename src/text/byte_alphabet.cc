#include "text/byte_alphabet.h"

#include <array>

#include "text/unicode.h"

namespace zp::text {
namespace {

constexpr bool Prints(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

constexpr std::array<char32_t, 256> kChars = [] {
  std::array<char32_t, 256> chars = {};
  char32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) chars[byte] = Prints(byte) ? byte : next++;
  return chars;
}();

constexpr char32_t kCharLimit = 0x100 + 68;

constexpr std::array<int16_t, kCharLimit> kBytes = [] {
  std::array<int16_t, kCharLimit> bytes = {};
  for (int16_t& byte : bytes) byte = -1;
  for (int16_t byte = 0; byte < 256; ++byte) bytes[kChars[static_cast<size_t>(byte)]] = byte;
  return bytes;
}();

}  // namespace

char32_t CharOfByte(uint8_t byte) { return kChars[byte]; }

std::string SpellBytes(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const char byte : bytes) AppendUtf8(CharOfByte(static_cast<uint8_t>(byte)), text);
  return text;
}

std::optional<std::string> ReadSpelledBytes(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const DecodedChar c = DecodeValid(text.data() + i);
    if (c.value >= kCharLimit || kBytes[c.value] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kBytes[c.value]));
    i += static_cast<size_t>(c.byte_count);
  }
  return bytes;
}

}  // namespace zp::text
