// The "added_tokens" of a tokenizer.json: found in text before anything else is done to it.
//
// Thread safety: immutable after Parse.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "text/json_part.h"
#include "text/normalizer.h"
#include "text/vocabulary.h"

namespace zp::text {

struct AddedToken {
  TokenId id = kNoToken;
  std::string content;
  bool special = false;      // left out by Decode on request
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space after it along
  bool normalized = false;   // looked for in the normalised text
};

// Finds the longest of some tokens at the leftmost place: a trie.
class TokenFinder {
 public:
  // Tokens are found by `text`; `index` comes back with the match.
  void Add(std::string_view text, int index);

  struct Match {
    size_t begin = 0;
    size_t end = 0;
    int index = -1;  // -1: nothing found
  };
  // The first match at or after `from`.
  Match Find(std::string_view text, size_t from) const;

 private:
  std::array<bool, 256> starts_ = {};  // bytes that a token begins with
  // (node, byte) -> node; the root is node 0.
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  std::vector<int> index_of_node_ = {-1};
};

class AddedTokens {
 public:
  AddedTokens() = default;
  // Ids follow from the vocabulary as in `tokenizers`: a token that the vocabulary has keeps its id
  // there, others count on from its end.
  static absl::StatusOr<AddedTokens> Parse(const JsonPart& tokenizer,
                                           const Vocabulary& vocabulary,
                                           const Normalizer* normalizer);

  // Splits `text` at the tokens that are looked for in raw, or in normalised, text. `visit` gets
  // every part in order: a token, or (token null) the text between.
  using PartVisitor = absl::FunctionRef<void(std::string_view part, const AddedToken* token)>;
  void SplitRaw(std::string_view text, PartVisitor visit) const { Split(raw_, text, visit); }
  void SplitNormalized(std::string_view text, PartVisitor visit) const {
    Split(normalized_, text, visit);
  }

  const AddedToken* Find(std::string_view content) const;
  const AddedToken* Find(TokenId id) const;
  int64_t id_limit() const { return id_limit_; }  // highest id + 1

 private:
  void Add(AddedToken token);
  void Split(const TokenFinder& finder, std::string_view text, PartVisitor visit) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<std::string, int> by_content_;
  absl::flat_hash_map<TokenId, int> by_id_;
  TokenFinder raw_;
  TokenFinder normalized_;
  int64_t id_limit_ = 0;
};

}  // namespace zp::text
