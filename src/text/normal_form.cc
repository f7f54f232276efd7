#include "text/normal_form.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "text/newer_than_unicode_9.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

bool IsNewer(char32_t c) {
  const auto* after = std::upper_bound(
      std::begin(kNewerThanUnicode9),
      std::end(kNewerThanUnicode9),
      c,
      [](char32_t value, const CodePointSpan& span) { return value < span.first; });
  return after != std::begin(kNewerThanUnicode9) && c <= (after - 1)->last;
}

int CombiningClass(char32_t c) {
  return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
}

int DecomposeOptions(NormalForm form) {
  const bool compat = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  return UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
}

bool Composes(NormalForm form) { return form == NormalForm::kNfc || form == NormalForm::kNfkc; }

// The longest full decomposition, U+FDFA, has 18 characters.
using Decomposition = std::array<utf8proc_int32_t, 32>;

int Decompose(char32_t c, NormalForm form, Decomposition& out) {
  int last_boundclass = UTF8PROC_BOUNDCLASS_START;
  const utf8proc_ssize_t count =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c),
                              out.data(),
                              static_cast<utf8proc_ssize_t>(out.size()),
                              static_cast<utf8proc_option_t>(DecomposeOptions(form)),
                              &last_boundclass);
  return static_cast<int>(count);
}

// One bit per code point: a starter that the form leaves alone and that never joins with what
// stands before it. Between two of them text is normalised on its own.
class StableStarters {
 public:
  explicit StableStarters(NormalForm form) : bits_(kCodePointCount / 64, ~uint64_t{0}) {
    for (char32_t c = 0; c < kCodePointCount; ++c) {
      if (c < 0xd800 || c > 0xdfff) Examine(c, form);
    }
  }
  bool Contains(char32_t c) const { return (bits_[c >> 6] >> (c & 63) & 1) != 0; }

 private:
  void Remove(char32_t c) { bits_[c >> 6] &= ~(uint64_t{1} << (c & 63)); }

  void Examine(char32_t c, NormalForm form) {
    if (IsNewer(c)) return;
    if (CombiningClass(c) != 0) Remove(c);
    Decomposition parts;
    const int count = Decompose(c, form, parts);
    if (count == 1 && parts[0] == static_cast<utf8proc_int32_t>(c)) return;
    if (!Composes(form)) {
      Remove(c);
      return;
    }
    // Whatever ends a decomposition may join with what stands before it.
    for (int i = 1; i < count; ++i) Remove(static_cast<char32_t>(parts[static_cast<size_t>(i)]));
    const utf8proc_ssize_t composed = utf8proc_normalize_utf32(
        parts.data(), count, static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    if (composed != 1 || parts[0] != static_cast<utf8proc_int32_t>(c)) Remove(c);
  }

  std::vector<uint64_t> bits_;
};

const StableStarters& StableStartersOf(NormalForm form) {
  static const StableStarters& nfc = *new StableStarters(NormalForm::kNfc);
  if (form == NormalForm::kNfc) return nfc;
  static const StableStarters& nfd = *new StableStarters(NormalForm::kNfd);
  static const StableStarters& nfkc = *new StableStarters(NormalForm::kNfkc);
  static const StableStarters& nfkd = *new StableStarters(NormalForm::kNfkd);
  if (form == NormalForm::kNfd) return nfd;
  return form == NormalForm::kNfkc ? nfkc : nfkd;
}

// Marks in the order of their classes; equal classes stay in order.
void SortMarks(std::vector<utf8proc_int32_t>& chars) {
  const auto class_of = [](utf8proc_int32_t c) { return CombiningClass(static_cast<char32_t>(c)); };
  const auto is_mark = [&](utf8proc_int32_t c) { return class_of(c) != 0; };
  for (auto at = chars.begin(); at != chars.end();) {
    const auto first = std::find_if(at, chars.end(), is_mark);
    const auto last = std::find_if_not(first, chars.end(), is_mark);
    std::stable_sort(first, last, [&](utf8proc_int32_t a, utf8proc_int32_t b) {
      return class_of(a) < class_of(b);
    });
    at = last;
  }
}

// `region` holds no newer character.
void AppendNormalized(std::string_view region, NormalForm form, std::string& out) {
  std::vector<utf8proc_int32_t> chars;
  chars.reserve(region.size());
  for (size_t i = 0; i < region.size();) {
    const DecodedChar c = DecodeValid(region.data() + i);
    Decomposition parts;
    const int count = Decompose(c.value, form, parts);
    chars.insert(chars.end(), parts.begin(), parts.begin() + count);
    i += static_cast<size_t>(c.byte_count);
  }
  SortMarks(chars);
  auto count = static_cast<utf8proc_ssize_t>(chars.size());
  if (Composes(form) && count > 0) {
    count = utf8proc_normalize_utf32(
        chars.data(), count, static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  }
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    AppendUtf8(static_cast<char32_t>(chars[static_cast<size_t>(i)]), out);
  }
}

// Offset of the first character that is not a stable starter, or text.size().
size_t StablePrefixBytes(std::string_view text, const StableStarters& stable) {
  size_t at = 0;
  while (at < text.size()) {
    const DecodedChar c = DecodeValid(text.data() + at);
    if (!stable.Contains(c.value)) break;
    at += static_cast<size_t>(c.byte_count);
  }
  return at;
}

}  // namespace

std::optional<std::string> Normalize(std::string_view text, NormalForm form) {
  const StableStarters& stable = StableStartersOf(form);
  size_t unstable = StablePrefixBytes(text, stable);
  if (unstable == text.size()) return std::nullopt;
  std::string result;
  result.reserve(text.size() + text.size() / 8);
  while (unstable < text.size()) {
    // What is not stable may join with the starter before it, unless that is a newer character.
    size_t first = unstable;
    if (first > 0) {
      const DecodedChar before = DecodeBefore(text.data() + first);
      if (!IsNewer(before.value)) first -= static_cast<size_t>(before.byte_count);
    }
    size_t last = unstable;
    while (last < text.size()) {
      const DecodedChar c = DecodeValid(text.data() + last);
      if (stable.Contains(c.value)) break;
      last += static_cast<size_t>(c.byte_count);
    }
    result.append(text.substr(0, first));
    AppendNormalized(text.substr(first, last - first), form, result);
    text.remove_prefix(last);
    unstable = StablePrefixBytes(text, stable);
  }
  result.append(text);
  return result;
}

}  // namespace zp::text
