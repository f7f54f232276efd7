#include "text/decoder.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "base/status.h"
#include "fmt/format.h"
#include "text/byte_alphabet.h"
#include "text/regex.h"
#include "text/split_pattern.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

class ByteLevelDecoder : public DecoderStep {
 public:
  std::string Decode(std::string_view token, bool /*first*/) const override {
    std::optional<std::string> bytes = ReadSpelledBytes(token);
    return bytes ? *std::move(bytes) : std::string(token);
  }
};

// "<0x0A>" is a line feed.
class ByteFallbackDecoder : public DecoderStep {
 public:
  std::string Decode(std::string_view token, bool /*first*/) const override {
    if (token.size() == 6 && token.substr(0, 3) == "<0x" && token[5] == '>') {
      uint8_t byte = 0;
      const char* const digits_end = token.data() + 5;
      const auto [end, error] = std::from_chars(token.data() + 3, digits_end, byte, 16);
      if (error == std::errc() && end == digits_end) return {static_cast<char>(byte)};
    }
    return std::string(token);
  }
};

class ReplaceDecoder : public DecoderStep {
 public:
  ReplaceDecoder(Regex pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::string Decode(std::string_view token, bool /*first*/) const override {
    // Token bytes need not be text any more; a pattern can only match text.
    if (ValidPrefixBytes(token) != token.size()) return std::string(token);
    std::string result;
    pattern_.ForEachPiece(token, [&](std::string_view piece, bool is_match) {
      result.append(is_match ? std::string_view(content_) : piece);
    });
    return result;
  }

 private:
  Regex pattern_;
  std::string content_;
};

// Takes up to `start` and `stop` copies of one character off the ends.
class StripDecoder : public DecoderStep {
 public:
  StripDecoder(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  std::string Decode(std::string_view token, bool /*first*/) const override {
    const size_t size = content_.size();
    for (int64_t i = 0; i < start_ && token.substr(0, size) == content_; ++i) {
      token.remove_prefix(size);
    }
    for (int64_t i = 0;
         i < stop_ && token.size() >= size && token.substr(token.size() - size) == content_;
         ++i) {
      token.remove_suffix(size);
    }
    return std::string(token);
  }

 private:
  std::string content_;
  int64_t start_;
  int64_t stop_;
};

class MetaspaceDecoder : public DecoderStep {
 public:
  MetaspaceDecoder(std::string replacement, bool prepends)
      : replacement_(std::move(replacement)), prepends_(prepends) {}
  std::string Decode(std::string_view token, bool first) const override {
    std::string result;
    const bool drop = first && prepends_;
    for (size_t i = 0; i < token.size();) {
      if (token.substr(i, replacement_.size()) == replacement_) {
        if (!drop) result.push_back(' ');
        i += replacement_.size();
      } else {
        result.push_back(token[i++]);
      }
    }
    return result;
  }

 private:
  std::string replacement_;
  bool prepends_;
};

absl::StatusOr<std::unique_ptr<const DecoderStep>> ParseStrip(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(std::string content, part.GetString("content"));
  ZP_ASSIGN_OR_RETURN(const int64_t start, part.GetInt("start"));
  ZP_ASSIGN_OR_RETURN(const int64_t stop, part.GetInt("stop"));
  if (content.empty()) return part.Invalid("content is empty");
  return std::make_unique<StripDecoder>(std::move(content), start, stop);
}

absl::StatusOr<std::unique_ptr<const DecoderStep>> ParseMetaspace(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(std::string replacement, part.GetString("replacement"));
  ZP_ASSIGN_OR_RETURN(bool prepends, part.GetBool("add_prefix_space", true));
  if (part.Find("prepend_scheme")) {
    ZP_ASSIGN_OR_RETURN(const std::string scheme, part.GetString("prepend_scheme"));
    prepends = scheme != "never";
  }
  if (replacement.empty()) return part.Invalid("replacement is empty");
  return std::make_unique<MetaspaceDecoder>(std::move(replacement), prepends);
}

absl::StatusOr<std::unique_ptr<const DecoderStep>> ParseStep(const JsonPart& part,
                                                             std::string_view type) {
  if (type == "ByteLevel") return std::make_unique<ByteLevelDecoder>();
  if (type == "ByteFallback") return std::make_unique<ByteFallbackDecoder>();
  if (type == "Strip") return ParseStrip(part);
  if (type == "Metaspace") return ParseMetaspace(part);
  if (type == "Replace") {
    ZP_ASSIGN_OR_RETURN(Regex pattern, ParsePattern(part));
    ZP_ASSIGN_OR_RETURN(std::string content, part.GetString("content"));
    return std::make_unique<ReplaceDecoder>(std::move(pattern), std::move(content));
  }
  return part.Unsupported(fmt::format("decoder \"{}\"", type));
}

}  // namespace

absl::StatusOr<Decoder> Decoder::Parse(const JsonPart& part) {
  Decoder decoder;
  ZP_RETURN_IF_ERROR(decoder.Append(part));
  return decoder;
}

absl::Status Decoder::Append(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const std::string type, part.Type());
  if (type == "Sequence") {
    ZP_ASSIGN_OR_RETURN(const std::vector<JsonPart> steps, part.Elements("decoders"));
    for (const JsonPart& step : steps) ZP_RETURN_IF_ERROR(Append(step));
    return absl::OkStatus();
  }
  if (type == "Fuse") {
    fused_ = true;
    return absl::OkStatus();
  }
  ZP_ASSIGN_OR_RETURN(std::unique_ptr<const DecoderStep> step, ParseStep(part, type));
  (fused_ ? text_steps_ : token_steps_).push_back(std::move(step));
  return absl::OkStatus();
}

std::string Decoder::Apply(const std::vector<std::unique_ptr<const DecoderStep>>& steps,
                           std::string text,
                           bool first) {
  for (const auto& step : steps) text = step->Decode(text, first);
  return text;
}

std::string Decoder::TokenBytes(std::string_view content, bool first) const {
  return Apply(token_steps_, std::string(content), first);
}

std::string Decoder::Finish(std::string text) const {
  return Apply(text_steps_, std::move(text), true);
}

}  // namespace zp::text
