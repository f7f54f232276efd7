#include "text/normalizer.h"

#include <utf8proc.h>

#include <utility>
#include <vector>

#include "base/status.h"
#include "fmt/format.h"
#include "text/normal_form.h"
#include "text/regex.h"
#include "text/split_pattern.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

using NormalizerPtr = std::unique_ptr<const Normalizer>;

class UnicodeForm : public Normalizer {
 public:
  explicit UnicodeForm(NormalForm form) : form_(form) {
    text::Normalize("\xcc\x81", form);  // builds the tables now rather than in the first request
  }
  std::optional<std::string> Normalize(std::string_view text) const override {
    return text::Normalize(text, form_);
  }

 private:
  NormalForm form_;
};

class Lowercase : public Normalizer {
 public:
  std::optional<std::string> Normalize(std::string_view text) const override {
    std::string result;
    result.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
      const DecodedChar c = DecodeValid(text.data() + i);
      i += static_cast<size_t>(c.byte_count);
      if (c.value == 0x130) {  // the only lower case of two characters
        result.append("i\xcc\x87");
      } else {
        AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.value))),
                   result);
      }
    }
    return result;
  }
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  std::optional<std::string> Normalize(std::string_view text) const override {
    if (text.empty()) return std::nullopt;
    return fmt::format("{}{}", prefix_, text);
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(Regex pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::optional<std::string> Normalize(std::string_view text) const override {
    std::string result;
    result.reserve(text.size());
    pattern_.ForEachPiece(text, [&](std::string_view piece, bool is_match) {
      result.append(is_match ? std::string_view(content_) : piece);
    });
    return result;
  }

 private:
  Regex pattern_;
  std::string content_;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  std::optional<std::string> Normalize(std::string_view text) const override {
    std::string_view rest = text;
    while (left_ && !rest.empty()) {
      const DecodedChar c = DecodeValid(rest.data());
      if (!IsWhiteSpace(c.value)) break;
      rest.remove_prefix(static_cast<size_t>(c.byte_count));
    }
    while (right_ && !rest.empty()) {
      const DecodedChar c = DecodeBefore(rest.data() + rest.size());
      if (!IsWhiteSpace(c.value)) break;
      rest.remove_suffix(static_cast<size_t>(c.byte_count));
    }
    if (rest.size() == text.size()) return std::nullopt;
    return std::string(rest);
  }

 private:
  bool left_;
  bool right_;
};

class StripAccents : public Normalizer {
 public:
  std::optional<std::string> Normalize(std::string_view text) const override {
    static const CategoryMask marks = *CategoriesNamed("M");
    std::string result;
    result.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
      const DecodedChar c = DecodeValid(text.data() + i);
      const auto byte_count = static_cast<size_t>(c.byte_count);
      if ((marks >> CategoryOf(c.value) & 1) == 0) result.append(text.substr(i, byte_count));
      i += byte_count;
    }
    return result;
  }
};

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<NormalizerPtr> steps) : steps_(std::move(steps)) {}
  std::optional<std::string> Normalize(std::string_view text) const override {
    std::optional<std::string> result;
    for (const NormalizerPtr& step : steps_) {
      std::optional<std::string> next = step->Normalize(result ? std::string_view(*result) : text);
      if (next) result = std::move(next);
    }
    return result;
  }

 private:
  std::vector<NormalizerPtr> steps_;
};

std::optional<NormalForm> NormalFormNamed(std::string_view name) {
  if (name == "NFC") return NormalForm::kNfc;
  if (name == "NFD") return NormalForm::kNfd;
  if (name == "NFKC") return NormalForm::kNfkc;
  if (name == "NFKD") return NormalForm::kNfkd;
  return std::nullopt;
}

absl::StatusOr<NormalizerPtr> ParseSequence(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const std::vector<JsonPart> elements, part.Elements("normalizers"));
  std::vector<NormalizerPtr> steps;
  for (const JsonPart& element : elements) {
    ZP_ASSIGN_OR_RETURN(NormalizerPtr step, Normalizer::Parse(element));
    steps.push_back(std::move(step));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

absl::StatusOr<NormalizerPtr> ParseReplace(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(Regex pattern, ParsePattern(part));
  ZP_ASSIGN_OR_RETURN(std::string content, part.GetString("content"));
  return std::make_unique<Replace>(std::move(pattern), std::move(content));
}

absl::StatusOr<NormalizerPtr> ParseStrip(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const bool left, part.GetBool("strip_left"));
  ZP_ASSIGN_OR_RETURN(const bool right, part.GetBool("strip_right"));
  return std::make_unique<Strip>(left, right);
}

}  // namespace

absl::StatusOr<NormalizerPtr> Normalizer::Parse(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const std::string type, part.Type());
  if (const auto form = NormalFormNamed(type)) return std::make_unique<UnicodeForm>(*form);
  if (type == "Sequence") return ParseSequence(part);
  if (type == "Replace") return ParseReplace(part);
  if (type == "Strip") return ParseStrip(part);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "StripAccents") return std::make_unique<StripAccents>();
  if (type == "Prepend") {
    ZP_ASSIGN_OR_RETURN(std::string prefix, part.GetString("prepend"));
    return std::make_unique<Prepend>(std::move(prefix));
  }
  return part.Unsupported(fmt::format("normalizer \"{}\"", type));
}

}  // namespace zp::text
