// The "decoder" of a tokenizer.json: the bytes that a token stands for.
//
// ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace and Sequence; any other is
// Unimplemented. Unlike `tokenizers` it gives bytes, not text: what is not valid UTF-8 is left to
// the caller. Thread safety: immutable after Parse.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "text/json_part.h"

namespace zp::text {

// One element of the chain.
class DecoderStep {
 public:
  virtual ~DecoderStep() = default;
  virtual std::string Decode(std::string_view token, bool first) const = 0;
};

class Decoder {
 public:
  Decoder() = default;  // tokens stand for their own text
  static absl::StatusOr<Decoder> Parse(const JsonPart& part);

  // `content` as it stands in the vocabulary; `first`: the first token of the text.
  std::string TokenBytes(std::string_view content, bool first) const;
  // What is done to the whole text in the end.
  std::string Finish(std::string text) const;

 private:
  absl::Status Append(const JsonPart& part);
  static std::string Apply(const std::vector<std::unique_ptr<const DecoderStep>>& steps,
                           std::string text,
                           bool first);

  std::vector<std::unique_ptr<const DecoderStep>> token_steps_;
  std::vector<std::unique_ptr<const DecoderStep>> text_steps_;  // after a Fuse
  bool fused_ = false;
};

}  // namespace zp::text
