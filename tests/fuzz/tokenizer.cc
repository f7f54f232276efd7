// Three ways into the tokenizer, told apart by the first byte: a whole tokenizer.json, the regular
// expression of one and a text to split by it, and a text for the tokenizer in models/.
//
// Needs ZP_SOURCE_DIR, the repository.
#include "text/tokenizer.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace zp::text {
namespace {

constexpr std::string_view kText = "A 12 b\xC3\xA9\n\n  <|end|> don't \xE4\xBD\xA0\xE5\xA5\xBD";

void ReadTokenizer(std::string_view json) {
  const auto tokenizer = Tokenizer::Parse(json, "fuzz");
  if (!tokenizer.ok()) {
    return;
  }
  const std::vector<TokenId> tokens = (*tokenizer)->Encode(kText, true);
  for (const TokenId token : tokens) {
    ZP_CHECK(0 <= token && token < (*tokenizer)->vocab_count()) << token;
  }
  (*tokenizer)->Decode(tokens, true);
}

// `input`: a pattern, a zero byte, a text. The pieces must cover the text.
void SplitByRegex(std::string_view input) {
  const std::string_view pattern = input.substr(0, input.find('\0'));
  std::string text(input.substr(std::min(input.size(), pattern.size() + 1)));
  if (ValidPrefixBytes(pattern) != pattern.size()) {
    return;
  }
  const auto regex = Regex::Compile(pattern);
  if (!regex.ok()) {
    return;
  }
  text = ReplaceInvalidUtf8(text);
  size_t covered = 0;
  regex->ForEachPiece(text, [&](std::string_view piece, bool) {
    ZP_CHECK(piece.data() == text.data() + covered) << covered;
    covered += piece.size();
  });
  ZP_CHECK(covered == text.size()) << covered;
}

std::unique_ptr<Tokenizer> LoadTokenizer() {
  const char* source_dir = std::getenv("ZP_SOURCE_DIR");
  ZP_CHECK(source_dir != nullptr) << "set ZP_SOURCE_DIR to the repository";
  auto tokenizer =
      Tokenizer::Load(std::string(source_dir) + "/models/zeroprefill-mini/tokenizer.json");
  ZP_CHECK(tokenizer.ok()) << base::MessageOf(tokenizer.status());
  return *std::move(tokenizer);
}

// It spells every byte and normalizes to NFC: text that came out of it goes through it unchanged.
void EncodeText(std::string_view input) {
  static const std::unique_ptr<Tokenizer> tokenizer = LoadTokenizer();
  const std::string text = tokenizer->Decode(tokenizer->Encode(input, false), false);
  ZP_CHECK(tokenizer->Decode(tokenizer->Encode(text, false), false) == text);
}

}  // namespace
}  // namespace zp::text

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) {
    return 0;
  }
  const std::string_view input(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 3) {
    case 0:
      zp::text::ReadTokenizer(input);
      break;
    case 1:
      zp::text::SplitByRegex(input);
      break;
    default:
      zp::text::EncodeText(input);
  }
  return 0;
}
