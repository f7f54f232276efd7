#include "text/regex_parser.h"

#include <charconv>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "base/status.h"
#include "fmt/format.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

using Kind = RegexNode::Kind;
using NodePtr = std::unique_ptr<RegexNode>;

constexpr int kMaxDepth = 64;
constexpr uint32_t kMaxRepeat = 1000;
constexpr uint32_t kNoMaximum = std::numeric_limits<uint32_t>::max();

CharItem Categories(std::string_view names) {
  CharItem item;
  while (!names.empty()) {
    const size_t comma = names.find(',');
    item.categories |= CategoriesNamed(names.substr(0, comma)).value_or(0);
    names = comma == std::string_view::npos ? "" : names.substr(comma + 1);
  }
  return item;
}

CharItem WhiteSpaceItem() {
  CharItem item = Categories("Z");
  item.ranges = {{0x09, 0x0d}, {0x85, 0x85}};
  return item;
}

// What the class escapes mean in Oniguruma; nothing for a letter that is none.
std::optional<CharItem> EscapedItem(char letter) {
  switch (letter) {
    case 's':
      return WhiteSpaceItem();
    case 'd':
      return Categories("Nd");
    case 'w':
      return Categories("L,M,N,Pc");
    case 'h':
      return CharItem{0, {{'0', '9'}, {'A', 'F'}, {'a', 'f'}}, false};
    default:
      return std::nullopt;
  }
}

// Scripts that tokenizers name, as ranges of Unicode 16.
std::optional<CharItem> ScriptNamed(std::string_view name) {
  if (name == "Han") {
    return CharItem{0,
                    {{0x2e80, 0x2e99},   {0x2e9b, 0x2ef3},   {0x2f00, 0x2fd5},   {0x3005, 0x3005},
                     {0x3007, 0x3007},   {0x3021, 0x3029},   {0x3038, 0x303b},   {0x3400, 0x4dbf},
                     {0x4e00, 0x9fff},   {0xf900, 0xfa6d},   {0xfa70, 0xfad9},   {0x16fe2, 0x16fe3},
                     {0x16ff0, 0x16ff1}, {0x20000, 0x2a6df}, {0x2a700, 0x2b739}, {0x2b740, 0x2b81d},
                     {0x2b820, 0x2cea1}, {0x2ceb0, 0x2ebe0}, {0x2ebf0, 0x2ee5d}, {0x2f800, 0x2fa1d},
                     {0x30000, 0x3134a}, {0x31350, 0x323af}},
                    false};
  }
  return std::nullopt;
}

std::optional<char32_t> ControlEscape(char letter) {
  switch (letter) {
    case 'n':
      return 0x0a;
    case 'r':
      return 0x0d;
    case 't':
      return 0x09;
    case 'f':
      return 0x0c;
    case 'v':
      return 0x0b;
    case 'a':
      return 0x07;
    case 'e':
      return 0x1b;
    default:
      return std::nullopt;
  }
}

bool IsAsciiLetterOrDigit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

class RegexParser {
 public:
  explicit RegexParser(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<NodePtr> Parse() {
    ZP_ASSIGN_OR_RETURN(NodePtr node, Alternation(0));
    if (!AtEnd()) return Invalid("unmatched )");
    return node;
  }

 private:
  bool AtEnd() const { return at_ >= pattern_.size(); }
  char Peek() const { return AtEnd() ? '\0' : pattern_[at_]; }
  bool Take(std::string_view expected) {
    if (pattern_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }
  char32_t TakeChar() {
    const DecodedChar c = DecodeValid(pattern_.data() + at_);
    at_ += static_cast<size_t>(c.byte_count);
    return c.value;
  }
  absl::Status Invalid(std::string_view what) const {
    return absl::InvalidArgumentError(fmt::format("regex: {} at offset {}", what, at_));
  }
  absl::Status Unsupported(std::string_view what) const {
    return absl::UnimplementedError(
        fmt::format("regex: {} is not supported (offset {})", what, at_));
  }

  NodePtr NewNode(Kind kind) const {
    auto node = std::make_unique<RegexNode>();
    node->kind = kind;
    return node;
  }
  NodePtr Chars(CharSet set) const {
    NodePtr node = NewNode(Kind::kChars);
    set.ignore_case = ignore_case_;
    node->set = std::move(set);
    return node;
  }
  NodePtr AnchorNode(RegexNode::Anchor anchor) const {
    NodePtr node = NewNode(Kind::kAnchor);
    node->anchor = anchor;
    return node;
  }

  absl::StatusOr<NodePtr> Alternation(int depth) {
    if (depth > kMaxDepth) return Invalid(fmt::format("groups deeper than {}", kMaxDepth));
    NodePtr node = NewNode(Kind::kAlternation);
    do {
      ZP_ASSIGN_OR_RETURN(NodePtr branch, Sequence(depth));
      node->children.push_back(std::move(branch));
    } while (Take("|"));
    return node;
  }

  absl::StatusOr<NodePtr> Sequence(int depth) {
    NodePtr node = NewNode(Kind::kSequence);
    while (!AtEnd() && Peek() != '|' && Peek() != ')') {
      ZP_ASSIGN_OR_RETURN(NodePtr atom, Atom(depth));
      ZP_ASSIGN_OR_RETURN(NodePtr repeated, Repeats(std::move(atom)));
      node->children.push_back(std::move(repeated));
    }
    return node;
  }

  absl::StatusOr<NodePtr> Repeats(NodePtr atom) {
    for (;;) {
      const size_t before = at_;
      ZP_ASSIGN_OR_RETURN(const auto bounds, Bounds());
      if (!bounds) return atom;
      const bool braces = pattern_[before] == '{';
      NodePtr node = NewNode(Kind::kRepeat);
      node->min = bounds->first;
      node->max = bounds->second;
      if (Take("?")) {
        if (braces && node->min == node->max) return Unsupported("{n}?");
        node->mode = RegexNode::Mode::kLazy;
      } else if (Peek() == '+') {
        // In Ruby's syntax X{n,m}+ repeats X{n,m}; nobody means that.
        if (braces) return Unsupported("a + after {n,m}");
        ++at_;
        node->mode = RegexNode::Mode::kPossessive;
      }
      node->children.push_back(std::move(atom));
      atom = std::move(node);
    }
  }

  using RepeatBounds = std::optional<std::pair<uint32_t, uint32_t>>;

  absl::StatusOr<RepeatBounds> Bounds() {
    if (Take("*")) return RepeatBounds({0, kNoMaximum});
    if (Take("+")) return RepeatBounds({1, kNoMaximum});
    if (Take("?")) return RepeatBounds({0, 1});
    if (Peek() != '{') return RepeatBounds();
    const size_t close = pattern_.find('}', at_);
    const std::string_view inner =
        close == std::string_view::npos ? "" : pattern_.substr(at_ + 1, close - at_ - 1);
    const size_t comma = inner.find(',');
    const std::optional<uint32_t> first = Number(inner.substr(0, comma));
    const std::optional<uint32_t> second =
        comma == std::string_view::npos ? first : Number(inner.substr(comma + 1));
    if (!first || !second || (*first == kNoMaximum && *second == kNoMaximum)) {
      return Unsupported("a { that opens no repeat");
    }
    at_ = close + 1;
    const uint32_t min = *first == kNoMaximum ? 0 : *first;
    if (min > kMaxRepeat || (*second != kNoMaximum && (*second > kMaxRepeat || *second < min))) {
      return Invalid(fmt::format("a repeat count out of order or above {}", kMaxRepeat));
    }
    return RepeatBounds({min, *second});
  }

  // An empty text gives kNoMaximum.
  static std::optional<uint32_t> Number(std::string_view text) {
    if (text.empty()) return kNoMaximum;
    uint32_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
  }

  absl::StatusOr<NodePtr> Atom(int depth) {
    if (Take("(")) return Group(depth);
    if (Take("[")) {
      ZP_ASSIGN_OR_RETURN(CharSet set, Class());
      return Chars(std::move(set));
    }
    if (Take("\\")) return Escape();
    if (Take(".")) return Chars({{CharItem{0, {{'\n', '\n'}}, false}}, !dot_matches_newline_});
    if (Take("^")) return AnchorNode(RegexNode::Anchor::kLineStart);
    if (Take("$")) return AnchorNode(RegexNode::Anchor::kLineEnd);
    if (Peek() == '*' || Peek() == '+' || Peek() == '?') return Invalid("nothing to repeat");
    return Chars(CharSet::Of(TakeChar()));
  }

  absl::StatusOr<NodePtr> Group(int depth) {
    const std::pair<bool, bool> outer_flags = {ignore_case_, dot_matches_newline_};
    NodePtr node = NewNode(Kind::kSequence);
    bool look_behind = false;
    if (Take("?=") || Take("?!")) {
      node->kind = Kind::kLookAhead;
      node->negated = pattern_[at_ - 1] == '!';
    } else if (Take("?<=") || Take("?<!")) {
      look_behind = true;
      node->negated = pattern_[at_ - 1] == '!';
    } else if (Take("?>")) {
      node->kind = Kind::kAtomic;
    } else if (Take("?<")) {
      const size_t close = pattern_.find('>', at_);
      if (close == std::string_view::npos) return Invalid("unfinished group name");
      at_ = close + 1;
    } else if (Take("?")) {
      ZP_RETURN_IF_ERROR(GroupFlags());
    }
    ZP_ASSIGN_OR_RETURN(NodePtr inner, Alternation(depth + 1));
    std::tie(ignore_case_, dot_matches_newline_) = outer_flags;
    if (!Take(")")) return Invalid("missing )");
    if (look_behind) return LookBehind(std::move(inner), node->negated);
    node->children.push_back(std::move(inner));
    return node;
  }

  // After "(?": "i:" and the like.
  absl::Status GroupFlags() {
    bool on = true;
    for (; !AtEnd() && Peek() != ':'; ++at_) {
      if (Peek() == '-') {
        on = false;
      } else if (Peek() == 'i') {
        ignore_case_ = on;
      } else if (Peek() == 'm') {
        dot_matches_newline_ = on;
      } else {
        return Unsupported(fmt::format("(?{}", Peek()));
      }
    }
    if (!Take(":")) return Invalid("unfinished group");
    return absl::OkStatus();
  }

  absl::StatusOr<NodePtr> LookBehind(NodePtr inner, bool negated) {
    // One character only: Alternation(Sequence(Chars)).
    const RegexNode* only = inner.get();
    while (only->kind != Kind::kChars) {
      if (only->children.size() != 1 ||
          (only->kind != Kind::kAlternation && only->kind != Kind::kSequence)) {
        return Unsupported("a look-behind of more than one character");
      }
      only = only->children[0].get();
    }
    NodePtr node = Chars(only->set);
    node->kind = Kind::kLookBehind;
    node->set.ignore_case = only->set.ignore_case;
    node->negated = negated;
    return node;
  }

  // After a backslash, outside a class.
  absl::StatusOr<NodePtr> Escape() {
    using Anchor = RegexNode::Anchor;
    if (Take("b")) return AnchorNode(Anchor::kWordEdge);
    if (Take("B")) return AnchorNode(Anchor::kWordInner);
    if (Take("A")) return AnchorNode(Anchor::kTextStart);
    if (Take("z")) return AnchorNode(Anchor::kTextEnd);
    ZP_ASSIGN_OR_RETURN(std::optional<CharItem> item, ItemEscape());
    if (item) return Chars({{*std::move(item)}, false});
    ZP_ASSIGN_OR_RETURN(const char32_t c, CharEscape());
    return Chars(CharSet::Of(c));
  }

  // \s, \D, \p{..}, ...: nothing if what follows the backslash is none of these.
  absl::StatusOr<std::optional<CharItem>> ItemEscape() {
    const char letter = Peek();
    if (letter == 'p' || letter == 'P') {
      ++at_;
      return Property(letter == 'P');
    }
    std::optional<CharItem> item = EscapedItem(static_cast<char>(letter | 0x20));
    if (!item || !IsAsciiLetterOrDigit(letter)) return std::optional<CharItem>();
    ++at_;
    item->negated = (letter & 0x20) == 0;
    return item;
  }

  absl::StatusOr<std::optional<CharItem>> Property(bool negated) {
    const size_t close = pattern_.find('}', at_);
    if (!Take("{") || close == std::string_view::npos) return Invalid("\\p without {name}");
    if (Take("^")) negated = !negated;
    const std::string_view name = pattern_.substr(at_, close - at_);
    CharItem item;
    if (const auto categories = CategoriesNamed(name)) {
      item.categories = *categories;
    } else if (auto script = ScriptNamed(name)) {
      item = *std::move(script);
    } else {
      return Unsupported(fmt::format("\\p{{{}}}", name));
    }
    at_ = close + 1;
    item.negated = negated;
    return std::optional<CharItem>(std::move(item));
  }

  // A single character after a backslash.
  absl::StatusOr<char32_t> CharEscape() {
    if (AtEnd()) return Invalid("a backslash at the end");
    if (const auto control = ControlEscape(Peek())) {
      ++at_;
      return *control;
    }
    if (Take("x{")) return Hex(1, 8, true);
    if (Take("x")) return Hex(1, 2, false);
    if (Take("u")) return Hex(4, 4, false);
    if (IsAsciiLetterOrDigit(Peek())) return Unsupported(fmt::format("\\{}", Peek()));
    return TakeChar();
  }

  absl::StatusOr<char32_t> Hex(size_t min_digits, size_t max_digits, bool braced) {
    uint32_t value = 0;
    const char* begin = pattern_.data() + at_;
    const char* end = begin + std::min(max_digits, pattern_.size() - at_);
    const auto result = std::from_chars(begin, end, value, 16);
    const auto digits = static_cast<size_t>(result.ptr - begin);
    at_ += digits;
    const bool surrogate = value >= 0xd800 && value < 0xe000;
    if (digits < min_digits || value >= kCodePointCount || surrogate || (braced && !Take("}"))) {
      return Invalid("not a character code");
    }
    return static_cast<char32_t>(value);
  }

  // After "[".
  absl::StatusOr<CharSet> Class() {
    CharSet set;
    set.negated = Take("^");
    CharItem plain;  // single characters, ranges and positive escapes
    bool first = true;
    while (first || Peek() != ']') {
      if (AtEnd()) return Invalid("missing ]");
      if (Peek() == '[') return Unsupported("a class inside a class");
      if (Take("&&")) return Unsupported("&& in a class");
      first = false;
      ZP_RETURN_IF_ERROR(ClassMember(plain, set.items));
    }
    ++at_;
    if (plain.categories != 0 || !plain.ranges.empty()) set.items.push_back(std::move(plain));
    return set;
  }

  absl::Status ClassMember(CharItem& plain, std::vector<CharItem>& items) {
    char32_t low = 0;
    if (Take("\\")) {
      ZP_ASSIGN_OR_RETURN(std::optional<CharItem> item, ItemEscape());
      if (item) {
        if (item->negated) {
          items.push_back(*std::move(item));
        } else {
          plain.categories |= item->categories;
          plain.ranges.insert(plain.ranges.end(), item->ranges.begin(), item->ranges.end());
        }
        return absl::OkStatus();
      }
      ZP_ASSIGN_OR_RETURN(low, ClassCharEscape());
    } else {
      low = TakeChar();
    }
    char32_t high = low;
    const bool range = Peek() == '-' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] != ']';
    if (range) {
      ++at_;
      if (Take("\\")) {
        ZP_ASSIGN_OR_RETURN(high, ClassCharEscape());
      } else {
        high = TakeChar();
      }
      if (high < low) return Invalid("a range out of order");
    }
    plain.ranges.emplace_back(low, high);
    return absl::OkStatus();
  }

  absl::StatusOr<char32_t> ClassCharEscape() {
    if (Take("b")) return char32_t{0x08};
    return CharEscape();
  }

  std::string_view pattern_;
  size_t at_ = 0;
  bool ignore_case_ = false;
  bool dot_matches_newline_ = false;
};

}  // namespace

CharSet WordCharacters() { return {{Categories("L,M,N,Pc")}, false, false}; }

absl::StatusOr<NodePtr> ParseRegex(std::string_view pattern) {
  if (ValidPrefixBytes(pattern) != pattern.size()) {
    return absl::InvalidArgumentError("regex: not valid UTF-8");
  }
  return RegexParser(pattern).Parse();
}

}  // namespace zp::text
