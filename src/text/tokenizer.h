// Text to tokens and back, by a Hugging Face `tokenizer.json`, token for token as the `tokenizers`
// library does it.
//
// Thread safety: immutable after loading; every method may be called from many threads at once.
// Errors: a broken file is InvalidArgument, one that asks for what we lack is Unimplemented, and
// both name the file and the part. Encode itself cannot fail: any bytes are accepted, and every
// maximal part of a broken UTF-8 sequence counts as U+FFFD (as Python's decode(..., "replace")).
//
// "truncation" and "padding" of the file are left aside: lengths are the caller's business.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "spec/model_spec.h"

namespace zp::text {

using spec::TokenId;

class Tokenizer {
 public:
  // Reads `path` (a tokenizer.json).
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  // The same from memory; `name` stands in error messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view json,
                                                          std::string_view name);
  ~Tokenizer();

  // add_special_tokens: apply the post-processor's template (BOS and the like).
  std::vector<TokenId> Encode(std::string_view text, bool add_special_tokens) const;

  // Bytes of the tokens, glued together. Ids outside the vocabulary give nothing.
  std::string Decode(const std::vector<TokenId>& tokens, bool skip_special_tokens) const;
  // The bytes of one token as they stand in text (not valid UTF-8 by themselves where a token
  // splits a character).
  std::string TokenBytes(TokenId token) const;

  int64_t vocab_count() const;  // highest id + 1
  // The id of a token by its literal content ("<|im_end|>"), or -1.
  TokenId FindToken(std::string_view content) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace zp::text
