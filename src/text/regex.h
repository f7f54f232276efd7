// Regular expressions as tokenizer.json writes them: Oniguruma's (Ruby) syntax, Unicode 16.
//
// Why our own: the answer must equal Oniguruma's on every character, and Debian's PCRE2 knows an
// older Unicode and means other things by \s, \w and \h (docs/decisions/0002-tokenizer.md). PCRE2
// judges it in regex_test.cc.
//
// Backtracking, leftmost-first. Understood: literals, escapes, classes, \p{general category or
// Han/Hiragana/Katakana/...}, groups, (?i:), alternation, greedy, lazy and possessive repeats,
// look-ahead, look-behind of one character, atomic groups, anchors. Everything else is
// Unimplemented at Compile.
//
// Thread safety: immutable after Compile; matching may run on many threads at once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "text/char_class.h"

namespace zp::text {

class Regex {
 public:
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  // Matches `text` itself. REQUIRES: valid UTF-8.
  static absl::StatusOr<Regex> Literal(std::string_view text);

  // Calls `visit` for the pieces of `subject` in order: matches, and what lies between them.
  // Together they cover it. REQUIRES: valid UTF-8.
  //
  // Work is bounded by kStepsPerByte * size (plus a constant): a pattern that backtracks beyond
  // that finds no more matches.
  using PieceVisitor = absl::FunctionRef<void(std::string_view piece, bool is_match)>;
  void ForEachPiece(std::string_view subject, PieceVisitor visit) const;

 private:
  friend class RegexCompiler;
  friend class RegexMatcher;

  enum class Op : uint8_t {
    kRepeat,      // class_index, min, max, mode: a run of characters of one class
    kSplit,       // go on at the next instruction; if that fails at `target`
    kSplitLazy,   // the other way round
    kJump,        // to target
    kLookAhead,   // the program up to its kEnd must match here (or not: negated); on to target
    kLookBehind,  // the character before belongs to class_index (or not: negated)
    kAtomic,      // matches the program up to its kEnd and never reconsiders; on to target
    kAssert,      // a place: anchor
    kEnd,
  };
  enum class Mode : uint8_t { kGreedy, kLazy, kPossessive };
  enum class Anchor : uint8_t { kTextStart, kTextEnd, kLineStart, kLineEnd, kWordEdge, kWordInner };

  static constexpr uint32_t kNoMaximum = std::numeric_limits<uint32_t>::max();
  static constexpr int64_t kStepsPerByte = 256;

  struct Instruction {
    Op op = Op::kEnd;
    Mode mode = Mode::kGreedy;
    Anchor anchor = Anchor::kTextStart;
    bool negated = false;
    uint32_t target = 0;
    uint32_t class_index = 0;
    uint32_t min = 1;
    uint32_t max = 1;
  };

  std::vector<Instruction> program_;
  std::vector<CharClass> classes_;
  // The branches of the outermost alternation (at most 64), and for each first byte the branches
  // that can match there, one bit each. A branch that can match nothing stands at every byte.
  std::vector<uint32_t> branch_starts_;
  std::array<uint64_t, 256> branches_of_byte_ = {};
  uint64_t nullable_branches_ = 0;  // what can match at the end of the text
};

}  // namespace zp::text
