#include "text/bpe_model.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/status.h"
#include "boost/json/array.hpp"
#include "fmt/format.h"
#include "text/bpe_merge.h"
#include "text/byte_alphabet.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

std::string_view View(const boost::json::value& string) {
  const auto& text = string.get_string();
  return {text.data(), text.size()};
}

using MergePair = std::pair<std::string_view, std::string_view>;

// "left right" or ["left", "right"].
std::optional<MergePair> ReadMerge(const boost::json::value& value) {
  if (value.is_string()) {
    const std::string_view text = View(value);
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      return std::nullopt;
    }
    return MergePair(text.substr(0, space), text.substr(space + 1));
  }
  const boost::json::array* pair = value.if_array();
  if (pair == nullptr || pair->size() != 2 || !(*pair)[0].is_string() || !(*pair)[1].is_string()) {
    return std::nullopt;
  }
  return MergePair(View((*pair)[0]), View((*pair)[1]));
}

bool IsVersionLine(const boost::json::value& value) {
  constexpr std::string_view kVersion = "#version";
  return value.is_string() && View(value).substr(0, kVersion.size()) == kVersion;
}

absl::StatusOr<MergeTable> ParseMerges(const JsonPart& part,
                                       const Vocabulary& vocabulary,
                                       size_t prefix_bytes) {
  const boost::json::array* lines = part.value().if_array();
  if (lines == nullptr) return part.Invalid("must be an array");
  MergeTable merges(lines->size());
  uint32_t rank = 0;
  std::string content;
  for (size_t i = 0; i < lines->size(); ++i) {
    const boost::json::value& line = (*lines)[i];
    if (IsVersionLine(line)) continue;
    const auto invalid = [&](std::string_view what) {
      return part.Invalid(fmt::format("[{}] {}", i, what));
    };
    const std::optional<MergePair> pair = ReadMerge(line);
    if (!pair) return invalid("must be \"left right\" or [\"left\", \"right\"]");
    const auto& [left, right] = *pair;
    if (right.size() < prefix_bytes) return invalid("is shorter than continuing_subword_prefix");
    content.assign(left).append(right.substr(prefix_bytes));
    const TokenId left_token = vocabulary.Find(left);
    const TokenId right_token = vocabulary.Find(right);
    const TokenId merged_token = vocabulary.Find(content);
    if (left_token == kNoToken || right_token == kNoToken || merged_token == kNoToken) {
      return invalid(
          fmt::format("merges \"{}\" and \"{}\": not all are in the vocabulary", left, right));
    }
    merges.Set(left_token, right_token, {rank++, merged_token});
  }
  return merges;
}

uint32_t NextCacheOwner() {
  static std::atomic<uint32_t> last_owner{0};
  return ++last_owner;
}

absl::StatusOr<std::string> StringOrEmpty(const JsonPart& part, std::string_view key) {
  const std::optional<JsonPart> member = part.Find(key);
  if (!member) return std::string();
  return member->String();
}

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Parse(const JsonPart& part, bool byte_level) {
  // Old files leave the type out.
  if (part.Find("type")) {
    ZP_ASSIGN_OR_RETURN(const std::string type, part.Type());
    if (type != "BPE") return part.Unsupported(fmt::format("model \"{}\"", type));
  }
  ZP_ASSIGN_OR_RETURN(const JsonPart vocab_part, part.Get("vocab"));
  ZP_ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::Parse(vocab_part));
  ZP_ASSIGN_OR_RETURN(const JsonPart merges_part, part.Get("merges"));
  ZP_ASSIGN_OR_RETURN(const std::string prefix, StringOrEmpty(part, "continuing_subword_prefix"));
  ZP_ASSIGN_OR_RETURN(MergeTable merges, ParseMerges(merges_part, vocabulary, prefix.size()));
  BpeModel model(std::move(vocabulary), std::move(merges));
  model.continuing_prefix_ = prefix;
  model.byte_level_ = byte_level;
  model.cache_owner_ = NextCacheOwner();
  ZP_RETURN_IF_ERROR(model.ParseOptions(part));
  if (byte_level) model.PrepareByteLevel();
  return model;
}

absl::Status BpeModel::ParseOptions(const JsonPart& part) {
  if (const auto dropout = part.Find("dropout")) {
    const boost::json::value& value = dropout->value();
    const bool zero = (value.is_double() && value.get_double() == 0.0) ||
                      (value.is_int64() && value.get_int64() == 0);
    if (!zero) return dropout->Unsupported("random tokenization");
  }
  ZP_ASSIGN_OR_RETURN(end_of_word_suffix_, StringOrEmpty(part, "end_of_word_suffix"));
  ZP_ASSIGN_OR_RETURN(ignore_merges_, part.GetBool("ignore_merges", false));
  ZP_ASSIGN_OR_RETURN(fuse_unknown_, part.GetBool("fuse_unk", false));
  ZP_ASSIGN_OR_RETURN(byte_fallback_, part.GetBool("byte_fallback", false));
  // A token that the vocabulary lacks counts as none: unknown characters are then left out.
  ZP_ASSIGN_OR_RETURN(const std::string unknown, StringOrEmpty(part, "unk_token"));
  unknown_token_ = unknown.empty() ? kNoToken : vocabulary_.Find(unknown);
  for (size_t byte = 0; byte < fallback_tokens_.size(); ++byte) {
    fallback_tokens_[byte] = vocabulary_.Find(fmt::format("<0x{:02X}>", byte));
  }
  return absl::OkStatus();
}

void BpeModel::PrepareByteLevel() {
  if (!continuing_prefix_.empty() || !end_of_word_suffix_.empty()) return;
  std::array<TokenId, 256> tokens;
  for (size_t byte = 0; byte < tokens.size(); ++byte) {
    std::string spelled;
    AppendUtf8(CharOfByte(static_cast<uint8_t>(byte)), spelled);
    tokens[byte] = vocabulary_.Find(spelled);
    if (tokens[byte] == kNoToken) return;
  }
  byte_tokens_ = tokens;
}

void BpeModel::Encode(std::string_view word, WordCache& cache, std::vector<TokenId>& out) const {
  if (word.size() > WordCache::kMaxWordBytes) {
    EncodeUncached(word, out);
    return;
  }
  WordCache::Entry& entry = cache.SlotOf(cache_owner_, word);
  if (entry.Holds(cache_owner_, word)) {
    out.insert(out.end(), entry.tokens.data(), entry.tokens.data() + entry.token_count);
    return;
  }
  const size_t first = out.size();
  EncodeUncached(word, out);
  const size_t token_count = out.size() - first;
  if (token_count > WordCache::kMaxTokens) return;
  entry.owner = cache_owner_;
  entry.token_count = static_cast<uint8_t>(token_count);
  entry.word_bytes = static_cast<uint8_t>(word.size());
  std::copy(word.begin(), word.end(), entry.word.begin());
  std::copy(out.begin() + static_cast<std::ptrdiff_t>(first), out.end(), entry.tokens.begin());
}

TokenId BpeModel::WholeWord(std::string_view word) const {
  return byte_level_ ? vocabulary_.Find(SpellBytes(word)) : vocabulary_.Find(word);
}

void BpeModel::EncodeUncached(std::string_view word, std::vector<TokenId>& out) const {
  if (ignore_merges_) {
    if (const TokenId token = WholeWord(word); token != kNoToken) {
      out.push_back(token);
      return;
    }
  }
  const size_t first = out.size();
  if (byte_tokens_) {
    for (const char byte : word) out.push_back((*byte_tokens_)[static_cast<uint8_t>(byte)]);
  } else if (byte_level_) {
    AppendCharTokens(SpellBytes(word), out);
  } else {
    AppendCharTokens(word, out);
  }
  MergeSymbols(merges_, first, out);
}

void BpeModel::AppendCharTokens(std::string_view word, std::vector<TokenId>& symbols) const {
  bool unknown_pending = false;  // an unknown token that later unknown characters may join
  const auto flush = [&] {
    if (unknown_pending) symbols.push_back(unknown_token_);
    unknown_pending = false;
  };
  std::string text;
  for (size_t i = 0; i < word.size();) {
    const auto byte_count = static_cast<size_t>(DecodeValid(word.data() + i).byte_count);
    text.clear();
    if (i > 0) text.append(continuing_prefix_);
    text.append(word.substr(i, byte_count));
    i += byte_count;
    if (i == word.size()) text.append(end_of_word_suffix_);
    if (const TokenId token = vocabulary_.Find(text); token != kNoToken) {
      flush();
      symbols.push_back(token);
      continue;
    }
    if (byte_fallback_ && AppendFallbackBytes(text, symbols)) continue;
    if (unknown_token_ == kNoToken) continue;
    if (!fuse_unknown_) flush();
    unknown_pending = true;
  }
  flush();
}

bool BpeModel::AppendFallbackBytes(std::string_view text, std::vector<TokenId>& symbols) const {
  const auto token_of = [this](char byte) { return fallback_tokens_[static_cast<uint8_t>(byte)]; };
  const auto missing = [&](char byte) { return token_of(byte) == kNoToken; };
  if (std::any_of(text.begin(), text.end(), missing)) return false;
  for (const char byte : text) symbols.push_back(token_of(byte));
  return true;
}

}  // namespace zp::text
