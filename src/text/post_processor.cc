#include "text/post_processor.h"

#include <string>

#include "base/status.h"
#include "boost/json/array.hpp"
#include "fmt/format.h"

namespace zp::text {
namespace {

constexpr size_t kMaxFrameTokens = 1024;

absl::StatusOr<TokenId> TokenOf(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const int64_t id, part.Int());
  if (id < 0 || id >= kMaxVocabCount) return part.Invalid(fmt::format("{} is no token id", id));
  return static_cast<TokenId>(id);
}

// The id in ["[CLS]", 101].
absl::StatusOr<TokenId> PairToken(const JsonPart& part, std::string_view key) {
  ZP_ASSIGN_OR_RETURN(const std::vector<JsonPart> pair, part.Elements(key));
  if (pair.size() != 2) return part.Invalid(fmt::format("\"{}\" must be [\"token\", id]", key));
  return TokenOf(pair[1]);
}

}  // namespace

absl::StatusOr<PostProcessor> PostProcessor::Parse(const JsonPart& part) {
  PostProcessor processor;
  ZP_RETURN_IF_ERROR(processor.Append(part));
  return processor;
}

absl::Status PostProcessor::Append(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const std::string type, part.Type());
  if (type == "ByteLevel") return absl::OkStatus();
  if (type == "TemplateProcessing") return AppendTemplate(part);
  if (type == "BertProcessing" || type == "RobertaProcessing") return AppendPair(part);
  if (type == "Sequence") {
    ZP_ASSIGN_OR_RETURN(const std::vector<JsonPart> parts, part.Elements("processors"));
    for (const JsonPart& element : parts) ZP_RETURN_IF_ERROR(Append(element));
    return absl::OkStatus();
  }
  return part.Unsupported(fmt::format("post-processor \"{}\"", type));
}

absl::Status PostProcessor::AppendPair(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const TokenId cls, PairToken(part, "cls"));
  ZP_ASSIGN_OR_RETURN(const TokenId sep, PairToken(part, "sep"));
  before.insert(before.begin(), cls);
  after.push_back(sep);
  return absl::OkStatus();
}

absl::Status PostProcessor::AppendTemplate(const JsonPart& part) {
  ZP_ASSIGN_OR_RETURN(const std::vector<JsonPart> pieces, part.Elements("single"));
  std::vector<TokenId> leading;
  bool sequence_seen = false;
  for (const JsonPart& piece : pieces) {
    if (const auto sequence = piece.Find("Sequence")) {
      ZP_ASSIGN_OR_RETURN(const std::string id, sequence->GetString("id"));
      if (sequence_seen || id != "A") return piece.Unsupported("anything but one Sequence A");
      sequence_seen = true;
      continue;
    }
    ZP_ASSIGN_OR_RETURN(const JsonPart special, piece.Get("SpecialToken"));
    ZP_ASSIGN_OR_RETURN(const std::string name, special.GetString("id"));
    ZP_ASSIGN_OR_RETURN(const JsonPart known, part.Get("special_tokens"));
    ZP_ASSIGN_OR_RETURN(const JsonPart token, known.Get(name));
    ZP_ASSIGN_OR_RETURN(const std::vector<JsonPart> ids, token.Elements("ids"));
    for (const JsonPart& id : ids) {
      ZP_ASSIGN_OR_RETURN(const TokenId value, TokenOf(id));
      (sequence_seen ? after : leading).push_back(value);
    }
  }
  if (!sequence_seen) return part.Unsupported("a template without Sequence A");
  before.insert(before.begin(), leading.begin(), leading.end());
  if (before.size() + after.size() > kMaxFrameTokens) {
    return part.Invalid(fmt::format("adds more than {} tokens", kMaxFrameTokens));
  }
  return absl::OkStatus();
}

}  // namespace zp::text
