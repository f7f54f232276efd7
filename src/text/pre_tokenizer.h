// The "pre_tokenizer" of a tokenizer.json: cuts text into the words that the model encodes one by
// one.
//
// Split, Digits, Punctuation, WhitespaceSplit, Metaspace, ByteLevel and Sequence; any other is
// Unimplemented. ByteLevel's byte alphabet is not spelled out: words stay the bytes of the text,
// and byte_level() tells the model so. Thread safety: immutable after Parse.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "text/json_part.h"

namespace zp::text {

using WordVisitor = absl::FunctionRef<void(std::string_view word)>;
// `at_start`: the piece begins where the whole text begins.
using PieceSink = absl::FunctionRef<void(std::string_view piece, bool at_start)>;

// One element of the chain.
class PreTokenizerStep {
 public:
  virtual ~PreTokenizerStep() = default;
  // Calls `sink` for the parts of `piece` in order; they live until it returns. REQUIRES: valid
  // UTF-8, not empty.
  virtual void Split(std::string_view piece, bool at_start, PieceSink sink) const = 0;
};

class PreTokenizer {
 public:
  PreTokenizer() = default;  // every piece is one word
  static absl::StatusOr<PreTokenizer> Parse(const JsonPart& part);

  // REQUIRES: valid UTF-8.
  void ForEachWord(std::string_view piece, bool at_start, WordVisitor visit) const {
    if (!piece.empty()) Run(0, piece, at_start, visit);
  }
  // The model's vocabulary spells bytes in ByteLevel's alphabet.
  bool byte_level() const { return byte_level_; }

 private:
  absl::Status Append(const JsonPart& part);
  absl::Status AppendByteLevel(const JsonPart& part);
  absl::Status AppendMetaspace(const JsonPart& part);
  absl::Status AppendSplit(const JsonPart& part);
  void Run(size_t step, std::string_view piece, bool at_start, WordVisitor visit) const;

  std::vector<std::unique_ptr<const PreTokenizerStep>> steps_;
  bool byte_level_ = false;
};

}  // namespace zp::text
