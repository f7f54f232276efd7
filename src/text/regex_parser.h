// The syntax tree of a regex; the first half of Regex::Compile.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "text/char_class.h"

namespace zp::text {

struct RegexNode {
  enum class Kind {
    kChars,        // one character of `set`
    kSequence,     // children one after the other
    kAlternation,  // the first child that matches
    kRepeat,       // children[0], min to max times
    kLookAhead,    // children[0] matches here (or not)
    kLookBehind,   // a character of `set` stands before (or not)
    kAtomic,       // children[0] without backtracking into it
    kAnchor,
  };
  enum class Mode { kGreedy, kLazy, kPossessive };
  enum class Anchor { kTextStart, kTextEnd, kLineStart, kLineEnd, kWordEdge, kWordInner };

  Kind kind = Kind::kSequence;
  CharSet set;
  std::vector<std::unique_ptr<RegexNode>> children;
  uint32_t min = 1;
  uint32_t max = 1;
  Mode mode = Mode::kGreedy;
  Anchor anchor = Anchor::kTextStart;
  bool negated = false;
};

// InvalidArgument or Unimplemented, with the offset in the pattern.
absl::StatusOr<std::unique_ptr<RegexNode>> ParseRegex(std::string_view pattern);

// The set of \w.
CharSet WordCharacters();

}  // namespace zp::text
