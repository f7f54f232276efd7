#include "text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "fmt/format.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

constexpr size_t kMaxAddedTokens = 1 << 20;

uint64_t EdgeKey(uint32_t node, char byte) {
  return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
}

bool TouchesWord(std::string_view text, const TokenFinder::Match& match) {
  const bool before =
      match.begin > 0 && IsWordCharacter(DecodeBefore(text.data() + match.begin).value);
  const bool after =
      match.end < text.size() && IsWordCharacter(DecodeValid(text.data() + match.end).value);
  return before || after;
}

size_t WithoutSpaceBefore(std::string_view text, size_t end) {
  while (end > 0) {
    const DecodedChar c = DecodeBefore(text.data() + end);
    if (!IsWhiteSpace(c.value)) break;
    end -= static_cast<size_t>(c.byte_count);
  }
  return end;
}

size_t WithoutSpaceAfter(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const DecodedChar c = DecodeValid(text.data() + begin);
    if (!IsWhiteSpace(c.value)) break;
    begin += static_cast<size_t>(c.byte_count);
  }
  return begin;
}

absl::StatusOr<AddedToken> ParseToken(const JsonPart& part) {
  AddedToken token;
  ZP_ASSIGN_OR_RETURN(const int64_t id, part.GetInt("id"));
  if (id < 0 || id >= kMaxVocabCount) {
    return part.Invalid(fmt::format("id {} is not from 0 to {}", id, kMaxVocabCount - 1));
  }
  ZP_ASSIGN_OR_RETURN(token.content, part.GetString("content"));
  ZP_ASSIGN_OR_RETURN(token.special, part.GetBool("special"));
  ZP_ASSIGN_OR_RETURN(token.single_word, part.GetBool("single_word"));
  ZP_ASSIGN_OR_RETURN(token.lstrip, part.GetBool("lstrip"));
  ZP_ASSIGN_OR_RETURN(token.rstrip, part.GetBool("rstrip"));
  ZP_ASSIGN_OR_RETURN(token.normalized, part.GetBool("normalized"));
  return token;
}

}  // namespace

void TokenFinder::Add(std::string_view text, int index) {
  if (text.empty()) return;
  starts_[static_cast<uint8_t>(text.front())] = true;
  uint32_t node = 0;
  for (const char byte : text) {
    const auto next = static_cast<uint32_t>(index_of_node_.size());
    const auto [edge, is_new] = edges_.emplace(EdgeKey(node, byte), next);
    if (is_new) index_of_node_.push_back(-1);
    node = edge->second;
  }
  index_of_node_[node] = index;
}

TokenFinder::Match TokenFinder::Find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<uint8_t>(text[begin])]) continue;
    Match longest;
    uint32_t node = 0;
    for (size_t at = begin; at < text.size(); ++at) {
      const auto edge = edges_.find(EdgeKey(node, text[at]));
      if (edge == edges_.end()) break;
      node = edge->second;
      if (index_of_node_[node] >= 0) longest = {begin, at + 1, index_of_node_[node]};
    }
    if (longest.index >= 0) return longest;
  }
  return {};
}

absl::StatusOr<AddedTokens> AddedTokens::Parse(const JsonPart& tokenizer,
                                               const Vocabulary& vocabulary,
                                               const Normalizer* normalizer) {
  AddedTokens added;
  if (!tokenizer.Find("added_tokens")) return added;
  ZP_ASSIGN_OR_RETURN(const std::vector<JsonPart> parts, tokenizer.Elements("added_tokens"));
  if (parts.size() > kMaxAddedTokens) {
    return tokenizer.Invalid(
        fmt::format("{} added tokens, the limit is {}", parts.size(), kMaxAddedTokens));
  }
  int64_t next_id = vocabulary.token_count();
  for (const JsonPart& part : parts) {
    ZP_ASSIGN_OR_RETURN(AddedToken token, ParseToken(part));
    if (token.content.empty()) continue;
    const AddedToken* earlier = added.Find(token.content);
    token.id = earlier != nullptr ? earlier->id : vocabulary.Find(token.content);
    if (token.id == kNoToken) token.id = static_cast<TokenId>(next_id++);
    added.Add(std::move(token));
  }
  for (const auto& [id, index] : added.by_id_) {
    const AddedToken& token = added.tokens_[static_cast<size_t>(index)];
    if (!token.normalized) {
      added.raw_.Add(token.content, index);
      continue;
    }
    const auto normal = normalizer == nullptr ? std::nullopt : normalizer->Normalize(token.content);
    added.normalized_.Add(normal ? *normal : token.content, index);
  }
  return added;
}

void AddedTokens::Add(AddedToken token) {
  const auto index = static_cast<int>(tokens_.size());
  by_content_[token.content] = index;
  by_id_[token.id] = index;
  id_limit_ = std::max(id_limit_, int64_t{token.id} + 1);
  tokens_.push_back(std::move(token));
}

void AddedTokens::Split(const TokenFinder& finder, std::string_view text, PartVisitor visit) const {
  size_t covered = 0;  // everything before has been visited
  for (TokenFinder::Match match = finder.Find(text, 0); match.index >= 0;
       match = finder.Find(text, match.end)) {
    const AddedToken& token = tokens_[static_cast<size_t>(match.index)];
    if (token.single_word && TouchesWord(text, match)) continue;
    size_t begin = match.begin;
    size_t end = match.end;
    if (token.lstrip) begin = std::max(WithoutSpaceBefore(text, begin), covered);
    if (token.rstrip) end = WithoutSpaceAfter(text, end);
    if (covered < begin) visit(text.substr(covered, begin - covered), nullptr);
    visit(text.substr(begin, end - std::min(begin, end)), &token);
    covered = end;
  }
  if (covered < text.size()) visit(text.substr(covered), nullptr);
}

const AddedToken* AddedTokens::Find(std::string_view content) const {
  const auto found = by_content_.find(std::string(content));
  return found == by_content_.end() ? nullptr : &tokens_[static_cast<size_t>(found->second)];
}

const AddedToken* AddedTokens::Find(TokenId id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[static_cast<size_t>(found->second)];
}

}  // namespace zp::text
