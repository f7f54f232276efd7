#include "text/pre_tokenizer.h"

#include <optional>
#include <string>
#include <utility>

#include "base/status.h"
#include "fmt/format.h"
#include "text/regex.h"
#include "text/split_pattern.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// What becomes of the matches of a pattern.
enum class Behavior { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };

std::optional<Behavior> BehaviorNamed(std::string_view name) {
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Contiguous") return Behavior::kContiguous;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  return std::nullopt;
}

// Contiguous and MergedWithPrevious: a piece that joins the one before it.
class PieceJoiner {
 public:
  PieceJoiner(Behavior behavior, absl::FunctionRef<void(std::string_view)> sink)
      : contiguous_(behavior == Behavior::kContiguous), sink_(sink) {}
  ~PieceJoiner() { sink_(pending_); }
  PieceJoiner(const PieceJoiner&) = delete;
  PieceJoiner& operator=(const PieceJoiner&) = delete;

  void Add(std::string_view piece, bool is_match) {
    const bool joins =
        contiguous_ ? is_match == previous_is_match_ : is_match && !previous_is_match_;
    previous_is_match_ = is_match;
    if (joins && !pending_.empty()) {
      pending_ = {pending_.data(), pending_.size() + piece.size()};
      return;
    }
    sink_(pending_);
    pending_ = piece;
  }

 private:
  const bool contiguous_;
  const absl::FunctionRef<void(std::string_view)> sink_;
  std::string_view pending_;
  bool previous_is_match_ = false;
};

class SplitStep : public PreTokenizerStep {
 public:
  SplitStep(Regex pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void Split(std::string_view piece, bool at_start, PieceSink sink) const override {
    const char* const begin = piece.data();
    const auto pass = [&](std::string_view part) {
      if (!part.empty()) sink(part, at_start && part.data() == begin);
    };
    switch (behavior_) {
      case Behavior::kIsolated:
        pattern_.ForEachPiece(piece, [&](std::string_view part, bool) { pass(part); });
        return;
      case Behavior::kRemoved:
        pattern_.ForEachPiece(piece, [&](std::string_view part, bool is_match) {
          if (is_match == invert_) pass(part);
        });
        return;
      case Behavior::kContiguous:
      case Behavior::kMergedWithPrevious: {
        PieceJoiner joiner(behavior_, pass);
        pattern_.ForEachPiece(piece, [&](std::string_view part, bool is_match) {
          joiner.Add(part, is_match != invert_);
        });
        return;
      }
      case Behavior::kMergedWithNext:
        MergeWithNext(piece, pass);
        return;
    }
  }

 private:
  // A match joins what follows it, unless that is a match too: decided from the back.
  void MergeWithNext(std::string_view piece, absl::FunctionRef<void(std::string_view)> pass) const {
    std::vector<std::pair<std::string_view, bool>> parts;
    pattern_.ForEachPiece(piece, [&](std::string_view part, bool is_match) {
      parts.emplace_back(part, is_match != invert_);
    });
    std::vector<std::string_view> merged;
    bool previous_is_match = false;
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      if (part->second && !previous_is_match && !merged.empty()) {
        merged.back() = {part->first.data(), part->first.size() + merged.back().size()};
      } else {
        merged.push_back(part->first);
      }
      previous_is_match = part->second;
    }
    for (auto part = merged.rbegin(); part != merged.rend(); ++part) pass(*part);
  }

  Regex pattern_;
  Behavior behavior_;
  bool invert_;
};

// ByteLevel's add_prefix_space.
class PrefixSpaceStep : public PreTokenizerStep {
 public:
  void Split(std::string_view piece, bool at_start, PieceSink sink) const override {
    if (piece.front() == ' ') {
      sink(piece, at_start);
    } else {
      sink(fmt::format(" {}", piece), at_start);
    }
  }
};

// Spaces become the replacement; a word begins with one.
class MetaspaceStep : public PreTokenizerStep {
 public:
  enum class PrependScheme { kAlways, kFirst, kNever };
  MetaspaceStep(std::string replacement, PrependScheme scheme)
      : replacement_(std::move(replacement)), scheme_(scheme) {}

  void Split(std::string_view piece, bool at_start, PieceSink sink) const override {
    std::string text;
    text.reserve(piece.size() * 2);
    for (const char c : piece) {
      if (c == ' ') {
        text.append(replacement_);
      } else {
        text.push_back(c);
      }
    }
    const bool prepends =
        scheme_ == PrependScheme::kAlways || (scheme_ == PrependScheme::kFirst && at_start);
    const bool begins = std::string_view(text).substr(0, replacement_.size()) == replacement_;
    if (prepends && !begins) text.insert(0, replacement_);
    sink(text, at_start);
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
};

std::unique_ptr<SplitStep> StepOf(std::string_view pattern, Behavior behavior) {
  return std::make_unique<SplitStep>(*Regex::Compile(pattern), behavior, false);
}

absl::StatusOr<Behavior> ParseBehavior(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const std::string name, part.GetString("behavior"));
  const std::optional<Behavior> behavior = BehaviorNamed(name);
  if (!behavior) return part.Unsupported(fmt::format("behavior \"{}\"", name));
  return *behavior;
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(const JsonPart& part) {
  PreTokenizer pre_tokenizer;
  ZP_RETURN_IF_ERROR(pre_tokenizer.Append(part));
  return pre_tokenizer;
}

absl::Status PreTokenizer::Append(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const std::string type, part.Type());
  if (byte_level_) return part.Unsupported("a step after ByteLevel");
  if (type == "Sequence") {
    ZP_ASSIGN_OR_RETURN(const std::vector<JsonPart> steps, part.Elements("pretokenizers"));
    for (const JsonPart& step : steps) ZP_RETURN_IF_ERROR(Append(step));
    return absl::OkStatus();
  }
  if (type == "ByteLevel") return AppendByteLevel(part);
  if (type == "Split") return AppendSplit(part);
  if (type == "Metaspace") return AppendMetaspace(part);
  if (type == "Digits") {
    ZP_ASSIGN_OR_RETURN(const bool individual, part.GetBool("individual_digits"));
    steps_.push_back(StepOf(R"(\p{N})", individual ? Behavior::kIsolated : Behavior::kContiguous));
    return absl::OkStatus();
  }
  if (type == "Punctuation") {
    Behavior behavior = Behavior::kIsolated;
    if (part.Find("behavior")) {
      ZP_ASSIGN_OR_RETURN(behavior, ParseBehavior(part));
    }
    steps_.push_back(StepOf(R"([!-/:-@\[-`{-~\p{P}])", behavior));
    return absl::OkStatus();
  }
  if (type == "WhitespaceSplit") {
    steps_.push_back(StepOf(R"(\s)", Behavior::kRemoved));
    return absl::OkStatus();
  }
  return part.Unsupported(fmt::format("pre-tokenizer \"{}\"", type));
}

absl::Status PreTokenizer::AppendByteLevel(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const bool add_prefix_space, part.GetBool("add_prefix_space"));
  ZP_ASSIGN_OR_RETURN(const bool use_regex, part.GetBool("use_regex", true));
  if (add_prefix_space) steps_.push_back(std::make_unique<PrefixSpaceStep>());
  if (use_regex) steps_.push_back(StepOf(kByteLevelPattern, Behavior::kIsolated));
  byte_level_ = true;
  return absl::OkStatus();
}

absl::Status PreTokenizer::AppendSplit(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(Regex pattern, ParsePattern(part));
  ZP_ASSIGN_OR_RETURN(const Behavior behavior, ParseBehavior(part));
  ZP_ASSIGN_OR_RETURN(const bool invert, part.GetBool("invert"));
  steps_.push_back(std::make_unique<SplitStep>(std::move(pattern), behavior, invert));
  return absl::OkStatus();
}

absl::Status PreTokenizer::AppendMetaspace(const JsonPart& part) {
  using Scheme = MetaspaceStep::PrependScheme;
  ZP_ASSIGN_OR_RETURN(const std::string replacement, part.GetString("replacement"));
  ZP_ASSIGN_OR_RETURN(const bool add_prefix_space, part.GetBool("add_prefix_space", true));
  ZP_ASSIGN_OR_RETURN(const bool split, part.GetBool("split", true));
  std::string name = add_prefix_space ? "always" : "never";
  if (part.Find("prepend_scheme")) {
    ZP_ASSIGN_OR_RETURN(name, part.GetString("prepend_scheme"));
  }
  if (name != "always" && name != "first" && name != "never") {
    return part.Invalid(fmt::format("unknown prepend_scheme \"{}\"", name));
  }
  const Scheme scheme = name == "always"  ? Scheme::kAlways
                        : name == "first" ? Scheme::kFirst
                                          : Scheme::kNever;
  if (replacement.empty() ||
      static_cast<size_t>(DecodeValid(replacement.data()).byte_count) != replacement.size()) {
    return part.Invalid("replacement must be one character");
  }
  steps_.push_back(std::make_unique<MetaspaceStep>(replacement, scheme));
  if (split) {
    ZP_ASSIGN_OR_RETURN(Regex pattern, Regex::Literal(replacement));
    steps_.push_back(
        std::make_unique<SplitStep>(std::move(pattern), Behavior::kMergedWithNext, false));
  }
  return absl::OkStatus();
}

void PreTokenizer::Run(size_t step,
                       std::string_view piece,
                       bool at_start,
                       WordVisitor visit) const {
  if (step == steps_.size()) {
    visit(piece);
    return;
  }
  steps_[step]->Split(piece, at_start, [&](std::string_view part, bool part_at_start) {
    Run(step + 1, part, part_at_start, visit);
  });
}

}  // namespace zp::text
