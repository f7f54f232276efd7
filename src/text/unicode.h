// UTF-8 and the few Unicode facts that tokenizers ask for, at the versions that Hugging Face
// `tokenizers` uses: general categories of Unicode 16 (its regex engine).
//
// Thread safety: pure functions; the table behind CategoryOf is built once, on first use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace zp::text {

inline constexpr char32_t kCodePointCount = 0x110000;

// utf8proc's numbers for the general categories: Lu = 1, Ll = 2, ... Co = 29, Cn = 0.
using Category = uint8_t;
using CategoryMask = uint32_t;

Category CategoryOf(char32_t code_point);

// "L" -> Lu|Ll|Lt|Lm|Lo, "Lu" -> Lu; nothing for a name that is not a general category.
std::optional<CategoryMask> CategoriesNamed(std::string_view name);

// White_Space.
bool IsWhiteSpace(char32_t code_point);
// \w of Rust's regex crate, which decides about `single_word` tokens.
bool IsWordCharacter(char32_t code_point);

struct DecodedChar {
  char32_t value;
  int byte_count;
};

// REQUIRES: valid UTF-8 at `at`.
inline DecodedChar DecodeValid(const char* at) {
  const auto byte = [at](int i) { return static_cast<char32_t>(static_cast<uint8_t>(at[i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xe0) return {(lead & 0x1f) << 6 | (byte(1) & 0x3f), 2};
  if (lead < 0xf0) {
    return {(lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f), 3};
  }
  return {(lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f),
          4};
}

// REQUIRES: valid UTF-8 that ends at `end`, and at least one character before it.
inline DecodedChar DecodeBefore(const char* end) {
  const char* at = end - 1;
  while ((static_cast<uint8_t>(*at) & 0xc0) == 0x80) --at;
  return DecodeValid(at);
}

void AppendUtf8(char32_t code_point, std::string& text);

// Offset of the first byte that is not valid UTF-8, or text.size().
size_t ValidPrefixBytes(std::string_view text);

// Every maximal part of a broken sequence becomes U+FFFD, as Python's decode("utf-8", "replace").
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace zp::text
