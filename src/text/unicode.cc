#include "text/unicode.h"

#include <utf8proc.h>

#include <array>
#include <cstring>
#include <vector>

#include "text/unicode_additions.h"

namespace zp::text {
namespace {

constexpr std::array<std::string_view, 30> kCategoryNames = {
    "Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps",
    "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};

std::vector<Category> BuildCategoryTable() {
  std::vector<Category> table(kCodePointCount);
  for (char32_t c = 0; c < kCodePointCount; ++c) {
    table[c] = static_cast<Category>(utf8proc_category(static_cast<utf8proc_int32_t>(c)));
  }
  for (const CategoryRun& run : kCategoryAdditions) {
    for (char32_t c = run.first; c <= run.last; ++c) table[c] = run.category;
  }
  return table;
}

bool IsContinuation(uint8_t byte) { return (byte & 0xc0) == 0x80; }

// Bytes of the sequence at `at`: positive when it is valid; otherwise minus the number of bytes
// that one U+FFFD stands for (Unicode 16, 3.9, "substitution of maximal subparts").
int SequenceBytes(const uint8_t* at, size_t available) {
  const uint8_t lead = at[0];
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return -1;
  const int wanted = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  uint8_t low = 0x80;
  uint8_t high = 0xbf;
  if (lead == 0xe0) low = 0xa0;   // overlong
  if (lead == 0xed) high = 0x9f;  // surrogates
  if (lead == 0xf0) low = 0x90;   // overlong
  if (lead == 0xf4) high = 0x8f;  // above U+10FFFF
  if (available < 2 || at[1] < low || at[1] > high) return -1;
  for (int i = 2; i < wanted; ++i) {
    if (available <= static_cast<size_t>(i) || !IsContinuation(at[i])) return -i;
  }
  return wanted;
}

}  // namespace

Category CategoryOf(char32_t code_point) {
  static const std::vector<Category>& table = *new std::vector<Category>(BuildCategoryTable());
  return code_point < kCodePointCount ? table[code_point] : Category{0};
}

std::optional<CategoryMask> CategoriesNamed(std::string_view name) {
  CategoryMask mask = 0;
  for (size_t i = 0; i < kCategoryNames.size(); ++i) {
    const std::string_view category = kCategoryNames[i];
    if (name == category || (name.size() == 1 && name[0] == category[0])) mask |= 1u << i;
  }
  if (mask == 0) return std::nullopt;
  return mask;
}

bool IsWhiteSpace(char32_t code_point) {
  static const CategoryMask separators = *CategoriesNamed("Z");
  if (code_point < 0x80) return code_point == ' ' || (code_point >= 0x09 && code_point <= 0x0d);
  return code_point == 0x85 || (separators >> CategoryOf(code_point) & 1) != 0;
}

bool IsWordCharacter(char32_t code_point) {
  static const CategoryMask words = *CategoriesNamed("L") | *CategoriesNamed("M") |
                                    *CategoriesNamed("Nd") | *CategoriesNamed("Nl") |
                                    *CategoriesNamed("Pc");
  if ((words >> CategoryOf(code_point) & 1) != 0) return true;
  const bool circled_letter = (code_point >= 0x24b6 && code_point <= 0x24e9) ||
                              (code_point >= 0x1f130 && code_point <= 0x1f149) ||
                              (code_point >= 0x1f150 && code_point <= 0x1f169) ||
                              (code_point >= 0x1f170 && code_point <= 0x1f189);
  const bool joiner = code_point == 0x200c || code_point == 0x200d;
  return circled_letter || joiner;
}

void AppendUtf8(char32_t code_point, std::string& text) {
  if (code_point < 0x80) {
    text.push_back(static_cast<char>(code_point));
    return;
  }
  if (code_point < 0x800) {
    text.push_back(static_cast<char>(0xc0 | code_point >> 6));
  } else {
    if (code_point < 0x10000) {
      text.push_back(static_cast<char>(0xe0 | code_point >> 12));
    } else {
      text.push_back(static_cast<char>(0xf0 | code_point >> 18));
      text.push_back(static_cast<char>(0x80 | (code_point >> 12 & 0x3f)));
    }
    text.push_back(static_cast<char>(0x80 | (code_point >> 6 & 0x3f)));
  }
  text.push_back(static_cast<char>(0x80 | (code_point & 0x3f)));
}

size_t ValidPrefixBytes(std::string_view text) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  size_t at = 0;
  while (at < text.size()) {
    if (text.size() - at >= sizeof(uint64_t)) {
      uint64_t word = 0;
      std::memcpy(&word, bytes + at, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        at += sizeof(word);
        continue;
      }
    }
    const int byte_count = SequenceBytes(bytes + at, text.size() - at);
    if (byte_count < 0) return at;
    at += static_cast<size_t>(byte_count);
  }
  return at;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string result;
  result.reserve(text.size() + 16);
  while (!text.empty()) {
    const size_t valid = ValidPrefixBytes(text);
    result.append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) break;
    result.append("\xef\xbf\xbd");
    text.remove_prefix(static_cast<size_t>(
        -SequenceBytes(reinterpret_cast<const uint8_t*>(text.data()), text.size())));
  }
  return result;
}

}  // namespace zp::text
