#include "text/tokenizer.h"

#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "fmt/format.h"
#include "text/added_tokens.h"
#include "text/bpe_model.h"
#include "text/decoder.h"
#include "text/json_part.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"
#include "text/unicode.h"

namespace zp::text {

struct Tokenizer::Impl {
  std::unique_ptr<const Normalizer> normalizer;  // may be null
  AddedTokens added_tokens;
  PreTokenizer pre_tokenizer;
  BpeModel model;
  PostProcessor post_processor;
  Decoder decoder;

  static absl::StatusOr<Impl> Parse(const JsonPart& part);

  void EncodePiece(std::string_view piece,
                   bool at_start,
                   WordCache& cache,
                   std::vector<TokenId>& out) const;
  std::string BytesOf(TokenId token, bool first) const;
};

namespace {

// A bound on English text; more only means that the vector grows.
constexpr size_t kBytesPerToken = 4;

template <typename Stage>
absl::StatusOr<Stage> ParseOr(const JsonPart& tokenizer, std::string_view key, Stage absent) {
  const std::optional<JsonPart> part = tokenizer.Find(key);
  if (!part) return absent;
  return Stage::Parse(*part);
}

}  // namespace

absl::StatusOr<Tokenizer::Impl> Tokenizer::Impl::Parse(const JsonPart& part) {
  std::unique_ptr<const Normalizer> normalizer;
  if (const auto normalizer_part = part.Find("normalizer")) {
    ZP_ASSIGN_OR_RETURN(normalizer, Normalizer::Parse(*normalizer_part));
  }
  ZP_ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer, ParseOr(part, "pre_tokenizer", PreTokenizer()));
  ZP_ASSIGN_OR_RETURN(const JsonPart model_part, part.Get("model"));
  ZP_ASSIGN_OR_RETURN(BpeModel model, BpeModel::Parse(model_part, pre_tokenizer.byte_level()));
  ZP_ASSIGN_OR_RETURN(AddedTokens added_tokens,
                      AddedTokens::Parse(part, model.vocabulary(), normalizer.get()));
  ZP_ASSIGN_OR_RETURN(PostProcessor post_processor,
                      ParseOr(part, "post_processor", PostProcessor()));
  ZP_ASSIGN_OR_RETURN(Decoder decoder, ParseOr(part, "decoder", Decoder()));
  return Impl{std::move(normalizer),
              std::move(added_tokens),
              std::move(pre_tokenizer),
              std::move(model),
              std::move(post_processor),
              std::move(decoder)};
}

// `piece` holds no token that is looked for in raw text.
void Tokenizer::Impl::EncodePiece(std::string_view piece,
                                  bool at_start,
                                  WordCache& cache,
                                  std::vector<TokenId>& out) const {
  std::optional<std::string> normal;
  if (normalizer != nullptr) normal = normalizer->Normalize(piece);
  const std::string_view text = normal ? std::string_view(*normal) : piece;
  added_tokens.SplitNormalized(text, [&](std::string_view part, const AddedToken* token) {
    if (token != nullptr) {
      out.push_back(token->id);
      return;
    }
    const bool part_at_start = at_start && part.data() == text.data();
    pre_tokenizer.ForEachWord(
        part, part_at_start, [&](std::string_view word) { model.Encode(word, cache, out); });
  });
}

std::string Tokenizer::Impl::BytesOf(TokenId token, bool first) const {
  if (const AddedToken* added = added_tokens.Find(token)) return added->content;
  return decoder.TokenBytes(model.vocabulary().ContentOf(token), first);
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(fmt::format("{}: cannot be opened", path));
  const std::string json{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) return absl::DataLossError(fmt::format("{}: cannot be read", path));
  return Parse(json, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view json,
                                                            std::string_view name) {
  ZP_ASSIGN_OR_RETURN(const boost::json::value document, ParseJson(json, name));
  const JsonPart part(document, fmt::format("{}: tokenizer", name));
  if (!document.is_object()) return part.Invalid("must be an object");
  ZP_ASSIGN_OR_RETURN(Impl impl, Impl::Parse(part));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::make_unique<Impl>(std::move(impl))));
}

std::vector<TokenId> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  std::string repaired;
  if (ValidPrefixBytes(text) != text.size()) {
    repaired = ReplaceInvalidUtf8(text);
    text = repaired;
  }
  const PostProcessor& frame = impl_->post_processor;
  std::vector<TokenId> tokens;
  tokens.reserve(text.size() / kBytesPerToken + frame.before.size() + frame.after.size() + 8);
  if (add_special_tokens) tokens = frame.before;
  WordCache& cache = WordCache::Local();
  impl_->added_tokens.SplitRaw(text, [&](std::string_view part, const AddedToken* token) {
    if (token != nullptr) {
      tokens.push_back(token->id);
    } else {
      impl_->EncodePiece(part, part.data() == text.data(), cache, tokens);
    }
  });
  if (add_special_tokens) {
    tokens.insert(tokens.end(), frame.after.begin(), frame.after.end());
  }
  return tokens;
}

std::string Tokenizer::Decode(const std::vector<TokenId>& tokens, bool skip_special_tokens) const {
  std::string text;
  bool first = true;
  for (const TokenId token : tokens) {
    const AddedToken* added = impl_->added_tokens.Find(token);
    if (skip_special_tokens && added != nullptr && added->special) continue;
    text.append(impl_->BytesOf(token, first));
    first = false;
  }
  return impl_->decoder.Finish(std::move(text));
}

std::string Tokenizer::TokenBytes(TokenId token) const { return impl_->BytesOf(token, false); }

int64_t Tokenizer::vocab_count() const {
  return std::max(impl_->model.vocabulary().id_limit(), impl_->added_tokens.id_limit());
}

TokenId Tokenizer::FindToken(std::string_view content) const {
  if (const AddedToken* added = impl_->added_tokens.Find(content)) return added->id;
  return impl_->model.vocabulary().Find(content);
}

}  // namespace zp::text
