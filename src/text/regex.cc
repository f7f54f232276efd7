#include "text/regex.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/status.h"
#include "fmt/format.h"
#include "text/regex_parser.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

constexpr size_t kMaxInstructions = 1 << 16;
constexpr size_t kMaxClasses = 1024;  // 8 MiB of tables

// Whether `node` can match without consuming anything.
bool IsNullable(const RegexNode& node) {
  const auto nullable = [](const auto& child) { return IsNullable(*child); };
  switch (node.kind) {
    case RegexNode::Kind::kChars:
      return false;
    case RegexNode::Kind::kSequence:
    case RegexNode::Kind::kAtomic:
      return std::all_of(node.children.begin(), node.children.end(), nullable);
    case RegexNode::Kind::kAlternation:
      return std::any_of(node.children.begin(), node.children.end(), nullable);
    case RegexNode::Kind::kRepeat:
      return node.min == 0 || IsNullable(*node.children[0]);
    case RegexNode::Kind::kLookAhead:
    case RegexNode::Kind::kLookBehind:
    case RegexNode::Kind::kAnchor:
      return true;
  }
  return true;
}

// Marks the bytes that a non-empty match of `node` can start with; bytes above 0x7f are not told
// apart.
void CollectFirstBytes(const RegexNode& node, std::array<bool, 256>& bytes) {
  switch (node.kind) {
    case RegexNode::Kind::kChars:
      for (uint32_t byte = 0; byte < 256; ++byte) {
        bytes[byte] = bytes[byte] || byte >= 0x80 || node.set.Contains(byte);
      }
      return;
    case RegexNode::Kind::kSequence:
      for (const auto& child : node.children) {
        CollectFirstBytes(*child, bytes);
        if (!IsNullable(*child)) return;
      }
      return;
    case RegexNode::Kind::kAlternation:
    case RegexNode::Kind::kAtomic:
    case RegexNode::Kind::kRepeat:
      for (const auto& child : node.children) CollectFirstBytes(*child, bytes);
      return;
    case RegexNode::Kind::kLookAhead:
    case RegexNode::Kind::kLookBehind:
    case RegexNode::Kind::kAnchor:
      return;
  }
}

}  // namespace

// Turns the syntax tree into a program.
class RegexCompiler {
 public:
  absl::StatusOr<Regex> Compile(const RegexNode& root) {
    const bool split = root.kind == RegexNode::Kind::kAlternation && root.children.size() <= 64;
    if (split) {
      for (const auto& branch : root.children) ZP_RETURN_IF_ERROR(AddBranch(*branch));
    } else {
      ZP_RETURN_IF_ERROR(AddBranch(root));
    }
    return std::move(regex_);
  }

 private:
  using Op = Regex::Op;
  using Instruction = Regex::Instruction;

  absl::Status AddBranch(const RegexNode& branch) {
    const uint64_t bit = uint64_t{1} << regex_.branch_starts_.size();
    std::array<bool, 256> first = {};
    CollectFirstBytes(branch, first);
    const bool nullable = IsNullable(branch);
    if (nullable) regex_.nullable_branches_ |= bit;
    for (size_t byte = 0; byte < first.size(); ++byte) {
      if (nullable || first[byte]) regex_.branches_of_byte_[byte] |= bit;
    }
    regex_.branch_starts_.push_back(Here());
    ZP_RETURN_IF_ERROR(Emit(branch));
    Add({.op = Op::kEnd});
    return absl::OkStatus();
  }

  uint32_t Here() const { return static_cast<uint32_t>(regex_.program_.size()); }
  uint32_t Add(const Instruction& instruction) {
    regex_.program_.push_back(instruction);
    return Here() - 1;
  }
  void PointHere(uint32_t instruction) { regex_.program_[instruction].target = Here(); }

  absl::StatusOr<uint32_t> ClassIndex(const CharSet& set) {
    const auto same = [&set](const CharClass& other) { return other.set() == set; };
    const auto found = std::find_if(regex_.classes_.begin(), regex_.classes_.end(), same);
    if (found == regex_.classes_.end()) {
      if (regex_.classes_.size() >= kMaxClasses) return TooLarge();
      regex_.classes_.emplace_back(set);
      return static_cast<uint32_t>(regex_.classes_.size() - 1);
    }
    return static_cast<uint32_t>(found - regex_.classes_.begin());
  }

  static absl::Status TooLarge() {
    return absl::InvalidArgumentError(fmt::format(
        "regex: needs more than {} steps or {} classes", kMaxInstructions, kMaxClasses));
  }

  absl::Status Emit(const RegexNode& node) {
    if (regex_.program_.size() > kMaxInstructions) return TooLarge();
    switch (node.kind) {
      case RegexNode::Kind::kChars:
        return EmitClassRepeat(node.set, 1, 1, RegexNode::Mode::kPossessive);
      case RegexNode::Kind::kSequence:
        for (const auto& child : node.children) ZP_RETURN_IF_ERROR(Emit(*child));
        return absl::OkStatus();
      case RegexNode::Kind::kAlternation:
        return EmitAlternation(node);
      case RegexNode::Kind::kRepeat:
        return EmitRepeat(node);
      case RegexNode::Kind::kLookAhead:
        return EmitSubProgram({.op = Op::kLookAhead, .negated = node.negated}, *node.children[0]);
      case RegexNode::Kind::kAtomic:
        return EmitSubProgram({.op = Op::kAtomic}, *node.children[0]);
      case RegexNode::Kind::kLookBehind: {
        ZP_ASSIGN_OR_RETURN(const uint32_t index, ClassIndex(node.set));
        Add({.op = Op::kLookBehind, .negated = node.negated, .class_index = index});
        return absl::OkStatus();
      }
      case RegexNode::Kind::kAnchor:
        return EmitAnchor(node.anchor);
    }
    return absl::OkStatus();
  }

  absl::Status EmitAnchor(RegexNode::Anchor anchor) {
    ZP_ASSIGN_OR_RETURN(const uint32_t words, ClassIndex(WordCharacters()));
    Add({.op = Op::kAssert,
         .anchor = static_cast<Regex::Anchor>(static_cast<int>(anchor)),
         .class_index = words});
    return absl::OkStatus();
  }

  absl::Status EmitSubProgram(const Instruction& head, const RegexNode& body) {
    const uint32_t at = Add(head);
    ZP_RETURN_IF_ERROR(Emit(body));
    Add({.op = Op::kEnd});
    PointHere(at);
    return absl::OkStatus();
  }

  absl::Status EmitAlternation(const RegexNode& node) {
    std::vector<uint32_t> jumps;
    for (size_t i = 0; i < node.children.size(); ++i) {
      const bool last = i + 1 == node.children.size();
      const uint32_t split = last ? 0 : Add({.op = Op::kSplit});
      ZP_RETURN_IF_ERROR(Emit(*node.children[i]));
      if (last) break;
      jumps.push_back(Add({.op = Op::kJump}));
      PointHere(split);
    }
    for (const uint32_t jump : jumps) PointHere(jump);
    return absl::OkStatus();
  }

  absl::Status EmitClassRepeat(const CharSet& set,
                               uint32_t min,
                               uint32_t max,
                               RegexNode::Mode mode) {
    ZP_ASSIGN_OR_RETURN(const uint32_t index, ClassIndex(set));
    Add({.op = Op::kRepeat,
         .mode = static_cast<Regex::Mode>(static_cast<int>(mode)),
         .class_index = index,
         .min = min,
         .max = max});
    return absl::OkStatus();
  }

  absl::Status EmitRepeat(const RegexNode& node) {
    const RegexNode& body = *node.children[0];
    if (body.kind == RegexNode::Kind::kChars) {
      return EmitClassRepeat(body.set, node.min, node.max, node.mode);
    }
    if (IsNullable(body)) {
      return absl::UnimplementedError(
          "regex: a repeat of something that may match nothing is not supported");
    }
    if (node.mode == RegexNode::Mode::kPossessive) {
      const uint32_t at = Add({.op = Op::kAtomic});
      ZP_RETURN_IF_ERROR(EmitGroupRepeat(body, node, Op::kSplit));
      Add({.op = Op::kEnd});
      PointHere(at);
      return absl::OkStatus();
    }
    return EmitGroupRepeat(
        body, node, node.mode == RegexNode::Mode::kLazy ? Op::kSplitLazy : Op::kSplit);
  }

  absl::Status EmitGroupRepeat(const RegexNode& body, const RegexNode& repeat, Op split_op) {
    for (uint32_t i = 0; i < repeat.min; ++i) ZP_RETURN_IF_ERROR(Emit(body));
    if (repeat.max == Regex::kNoMaximum) {
      const uint32_t split = Add({.op = split_op});
      ZP_RETURN_IF_ERROR(Emit(body));
      Add({.op = Op::kJump, .target = split});
      PointHere(split);
      return absl::OkStatus();
    }
    std::vector<uint32_t> splits;
    for (uint32_t i = repeat.min; i < repeat.max; ++i) {
      splits.push_back(Add({.op = split_op}));
      ZP_RETURN_IF_ERROR(Emit(body));
    }
    for (const uint32_t split : splits) PointHere(split);
    return absl::OkStatus();
  }

  Regex regex_;
};

// One walk over one subject.
class RegexMatcher {
 public:
  RegexMatcher(const Regex& regex, std::string_view subject)
      : regex_(regex),
        begin_(subject.data()),
        end_(subject.data() + subject.size()),
        steps_left_(Regex::kStepsPerByte * static_cast<int64_t>(subject.size()) + 100000) {}

  // The end of the match that starts at `at`, or null.
  const char* MatchAt(const char* at) {
    uint64_t branches = at == end_ ? regex_.nullable_branches_
                                   : regex_.branches_of_byte_[static_cast<uint8_t>(*at)];
    if (steps_left_ < 0) return nullptr;
    while (branches != 0) {
      const int branch = __builtin_ctzll(branches);
      branches &= branches - 1;
      const char* match_end = Run(regex_.branch_starts_[static_cast<size_t>(branch)], at);
      if (match_end != nullptr) return match_end;
    }
    return nullptr;
  }

 private:
  using Op = Regex::Op;
  using Mode = Regex::Mode;
  using Instruction = Regex::Instruction;

  // A place to go on from when the present road ends.
  struct Choice {
    enum class Kind : uint8_t { kElsewhere, kOneLess, kOneMore } kind;
    uint32_t pc;
    const char* at;
    const char* least = nullptr;  // kOneLess: where the run has only `min` characters
    uint32_t count = 0;           // kOneMore: characters in the run so far
  };

  // Shared by the matchers of a thread: a walk leaves it as it found it.
  static std::vector<Choice>& Choices() {
    static thread_local std::vector<Choice> choices;
    return choices;
  }

  const char* Run(uint32_t pc, const char* at) {
    const size_t base = choices_.size();
    for (;;) {
      const Instruction& instruction = regex_.program_[pc];
      bool go_on = true;
      switch (instruction.op) {
        case Op::kRepeat:
          go_on = RepeatClass(instruction, pc, at);
          ++pc;
          break;
        case Op::kSplit:
          choices_.push_back({Choice::Kind::kElsewhere, instruction.target, at});
          ++pc;
          break;
        case Op::kSplitLazy:
          choices_.push_back({Choice::Kind::kElsewhere, pc + 1, at});
          pc = instruction.target;
          break;
        case Op::kJump:
          pc = instruction.target;
          break;
        case Op::kLookAhead:
          go_on = (Run(pc + 1, at) != nullptr) != instruction.negated;
          pc = instruction.target;
          break;
        case Op::kLookBehind:
          go_on = FollowsClass(instruction.class_index, at) != instruction.negated;
          ++pc;
          break;
        case Op::kAtomic:
          if (const char* inner_end = Run(pc + 1, at); inner_end != nullptr) {
            at = inner_end;
          } else {
            go_on = false;
          }
          pc = instruction.target;
          break;
        case Op::kAssert:
          go_on = Holds(instruction, at);
          ++pc;
          break;
        case Op::kEnd:
          choices_.resize(base);
          return at;
      }
      if (!go_on && !TakeChoice(base, pc, at)) return nullptr;
    }
  }

  // Goes back to the latest choice above `base`.
  bool TakeChoice(size_t base, uint32_t& pc, const char*& at) {
    if (--steps_left_ < 0) choices_.resize(base);
    if (choices_.size() == base) return false;
    Choice& choice = choices_.back();
    pc = choice.pc;
    at = choice.at;
    switch (choice.kind) {
      case Choice::Kind::kElsewhere:
        choices_.pop_back();
        return true;
      case Choice::Kind::kOneLess:
        do --at;
        while ((static_cast<uint8_t>(*at) & 0xc0) == 0x80);
        choice.at = at;
        if (at == choice.least) choices_.pop_back();
        return true;
      case Choice::Kind::kOneMore:
        return TakeOneMore(base, pc, at);
    }
    return false;
  }

  bool TakeOneMore(size_t base, uint32_t& pc, const char*& at) {
    Choice& choice = choices_.back();
    const Instruction& repeat = regex_.program_[choice.pc - 1];
    const char* next = Consume(regex_.classes_[repeat.class_index], at, 1);
    if (next == at) {
      choices_.pop_back();
      return TakeChoice(base, pc, at);
    }
    at = next;
    choice.at = next;
    if (++choice.count == repeat.max) choices_.pop_back();
    return true;
  }

  // Consumes a run of one class from `at`; false if it is too short.
  bool RepeatClass(const Instruction& repeat, uint32_t pc, const char*& at) {
    const CharClass& chars = regex_.classes_[repeat.class_index];
    for (uint32_t i = 0; i < repeat.min; ++i) {
      const char* next = Consume(chars, at, 1);
      if (next == at) return false;
      at = next;
    }
    if (repeat.max == repeat.min) return true;
    if (repeat.mode == Mode::kLazy) {
      choices_.push_back({Choice::Kind::kOneMore, pc + 1, at, nullptr, repeat.min});
      return true;
    }
    const char* const least = at;
    at = Consume(chars, at, repeat.max - repeat.min);
    steps_left_ -= at - least;
    const bool reconsider = repeat.mode == Mode::kGreedy && regex_.program_[pc + 1].op != Op::kEnd;
    if (reconsider && at != least) {
      choices_.push_back({Choice::Kind::kOneLess, pc + 1, at, least});
    }
    return true;
  }

  // The end of the run of `chars` at `at`, of at most `max` characters.
  const char* Consume(const CharClass& chars, const char* at, uint32_t max) const {
    for (uint32_t i = 0; i < max && at != end_; ++i) {
      const DecodedChar c = DecodeValid(at);
      if (!chars.Contains(c.value)) break;
      at += c.byte_count;
    }
    return at;
  }

  bool FollowsClass(uint32_t class_index, const char* at) const {
    return at != begin_ && regex_.classes_[class_index].Contains(DecodeBefore(at).value);
  }

  bool Holds(const Instruction& instruction, const char* at) const {
    const CharClass& words = regex_.classes_[instruction.class_index];
    switch (instruction.anchor) {
      case Regex::Anchor::kTextStart:
        return at == begin_;
      case Regex::Anchor::kTextEnd:
        return at == end_;
      case Regex::Anchor::kLineStart:
        return at == begin_ || (at != end_ && at[-1] == '\n');
      case Regex::Anchor::kLineEnd:
        return at == end_ || *at == '\n';
      case Regex::Anchor::kWordEdge:
      case Regex::Anchor::kWordInner: {
        const bool before = at != begin_ && words.Contains(DecodeBefore(at).value);
        const bool after = at != end_ && words.Contains(DecodeValid(at).value);
        return (before != after) == (instruction.anchor == Regex::Anchor::kWordEdge);
      }
    }
    return false;
  }

  const Regex& regex_;
  const char* const begin_;
  const char* const end_;
  int64_t steps_left_;
  std::vector<Choice>& choices_ = Choices();
};

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<RegexNode> root, ParseRegex(pattern));
  return RegexCompiler().Compile(*root);
}

absl::StatusOr<Regex> Regex::Literal(std::string_view text) {
  RegexNode root;
  while (!text.empty()) {
    const DecodedChar c = DecodeValid(text.data());
    text.remove_prefix(static_cast<size_t>(c.byte_count));
    auto child = std::make_unique<RegexNode>();
    child->kind = RegexNode::Kind::kChars;
    child->set = CharSet::Of(c.value);
    root.children.push_back(std::move(child));
  }
  return RegexCompiler().Compile(root);
}

void Regex::ForEachPiece(std::string_view subject, PieceVisitor visit) const {
  if (subject.empty()) return;
  RegexMatcher matcher(*this, subject);
  const char* const end = subject.data() + subject.size();
  const char* covered = subject.data();  // everything before has been visited
  const char* last_match_end = nullptr;  // an empty match may not follow a match
  for (const char* at = subject.data();;) {
    const char* match_end = matcher.MatchAt(at);
    if (match_end != nullptr && (match_end != at || match_end != last_match_end)) {
      if (covered != at) visit({covered, static_cast<size_t>(at - covered)}, false);
      visit({at, static_cast<size_t>(match_end - at)}, true);
      covered = match_end;
      last_match_end = match_end;
      if (match_end != at) {
        at = match_end;
        if (at == end && nullable_branches_ == 0) break;
        continue;
      }
    }
    if (at == end) break;
    at += DecodeValid(at).byte_count;
  }
  if (covered != end) visit({covered, static_cast<size_t>(end - covered)}, false);
}

}  // namespace zp::text
