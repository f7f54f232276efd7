// ByteLevel's alphabet: a printable character for every byte (GPT-2). Bytes that print in Latin-1
// stand for themselves; the 68 others are the characters from U+0100 on, in order.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace zp::text {

char32_t CharOfByte(uint8_t byte);
std::string SpellBytes(std::string_view bytes);
// Nothing if a character is not of the alphabet. REQUIRES: valid UTF-8.
std::optional<std::string> ReadSpelledBytes(std::string_view text);

}  // namespace zp::text
