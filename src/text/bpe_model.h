// Byte-pair encoding of one word: the "model" of a tokenizer.json.
//
// Vocabulary and merges in both formats, ignore_merges, unk_token, fuse_unk, byte_fallback,
// continuing_subword_prefix, end_of_word_suffix. Model types other than BPE, and dropout, are
// Unimplemented. Thread safety: immutable after Parse.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "text/json_part.h"
#include "text/merge_table.h"
#include "text/vocabulary.h"
#include "text/word_cache.h"

namespace zp::text {

class BpeModel {
 public:
  // byte_level: words are bytes, which the vocabulary spells in ByteLevel's alphabet.
  static absl::StatusOr<BpeModel> Parse(const JsonPart& part, bool byte_level);

  // Appends the tokens of `word`. REQUIRES: valid UTF-8, not empty; cache is the calling thread's.
  // Time grows as n log n with the word's length.
  void Encode(std::string_view word, WordCache& cache, std::vector<TokenId>& out) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  BpeModel(Vocabulary vocabulary, MergeTable merges)
      : vocabulary_(std::move(vocabulary)), merges_(std::move(merges)) {}

  absl::Status ParseOptions(const JsonPart& part);
  void PrepareByteLevel();

  TokenId WholeWord(std::string_view word) const;
  void EncodeUncached(std::string_view word, std::vector<TokenId>& out) const;
  void AppendCharTokens(std::string_view word, std::vector<TokenId>& symbols) const;
  bool AppendFallbackBytes(std::string_view text, std::vector<TokenId>& symbols) const;

  Vocabulary vocabulary_;
  MergeTable merges_;
  uint32_t cache_owner_ = 0;
  bool byte_level_ = false;
  bool ignore_merges_ = false;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  TokenId unknown_token_ = kNoToken;
  std::string continuing_prefix_;
  std::string end_of_word_suffix_;

  // Byte level: the token of every byte, unless one is missing.
  std::optional<std::array<TokenId, 256>> byte_tokens_;
  std::array<TokenId, 256> fallback_tokens_ = {};  // "<0x00>" ... "<0xFF>"
};

}  // namespace zp::text
