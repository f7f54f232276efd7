// The "post_processor" of a tokenizer.json: the tokens that frame an encoded text.
//
// TemplateProcessing (its "single" template), BertProcessing, RobertaProcessing, ByteLevel (which
// moves offsets only) and Sequence; any other is Unimplemented. Thread safety: immutable after
// Parse.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "text/json_part.h"
#include "text/vocabulary.h"

namespace zp::text {

struct PostProcessor {
  static absl::StatusOr<PostProcessor> Parse(const JsonPart& part);

  std::vector<TokenId> before;
  std::vector<TokenId> after;

 private:
  absl::Status Append(const JsonPart& part);
  absl::Status AppendTemplate(const JsonPart& part);
  absl::Status AppendPair(const JsonPart& part);
};

}  // namespace zp::text
