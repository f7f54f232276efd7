#include "text/char_class.h"

#include <utf8proc.h>

#include <algorithm>

namespace zp::text {
namespace {

char32_t Lower(char32_t c) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}
char32_t Upper(char32_t c) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)));
}

bool AnyContains(const std::vector<CharItem>& items, char32_t c) {
  return std::any_of(
      items.begin(), items.end(), [c](const CharItem& item) { return item.Contains(c); });
}

}  // namespace

bool CharItem::Contains(char32_t c) const {
  bool found = (categories >> CategoryOf(c) & 1) != 0;
  for (const auto& [first, last] : ranges) found = found || (c >= first && c <= last);
  return found != negated;
}

bool CharSet::Contains(char32_t c) const {
  bool found = AnyContains(items, c);
  if (ignore_case && !found) {
    found = AnyContains(items, Lower(c)) || AnyContains(items, Upper(c)) ||
            AnyContains(items, Lower(Upper(c))) || AnyContains(items, Upper(Lower(c)));
  }
  return found != negated;
}

CharClass::CharClass(CharSet set) : set_(std::move(set)), bits_(kTableCount / 64) {
  for (char32_t c = 0; c < kTableCount; ++c) {
    if (set_.Contains(c)) bits_[c >> 6] |= uint64_t{1} << (c & 63);
  }
}

}  // namespace zp::text
