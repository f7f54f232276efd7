// Sets of characters, as a regex describes them, with a fast test.
//
// Thread safety: CharClass is immutable after construction.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "text/unicode.h"

namespace zp::text {

using CodePointRange = std::pair<char32_t, char32_t>;  // both ends belong to it

// A union of categories and ranges, or everything but them.
struct CharItem {
  CategoryMask categories = 0;
  std::vector<CodePointRange> ranges;
  bool negated = false;

  bool Contains(char32_t c) const;
  bool operator==(const CharItem&) const = default;
};

// What stands between [ and ]: a union of items, or everything but them.
struct CharSet {
  std::vector<CharItem> items;
  bool negated = false;
  bool ignore_case = false;  // simple case folding: s, S and U+017F are one

  static CharSet Of(char32_t c) { return {{CharItem{0, {{c, c}}, false}}, false, false}; }
  bool Contains(char32_t c) const;
  bool operator==(const CharSet&) const = default;
};

// A CharSet with one bit per code point of the Basic Multilingual Plane (8 KiB): the test costs the
// same for every set there.
class CharClass {
 public:
  explicit CharClass(CharSet set);

  bool Contains(char32_t c) const {
    if (c < kTableCount) [[likely]] {
      return (bits_[c >> 6] >> (c & 63) & 1) != 0;
    }
    return set_.Contains(c);
  }
  const CharSet& set() const { return set_; }

 private:
  static constexpr char32_t kTableCount = 0x10000;
  CharSet set_;
  std::vector<uint64_t> bits_;
};

}  // namespace zp::text
