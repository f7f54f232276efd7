#include "checkpoint/byte_tokenizer.h"

#include "base/check.h"
#include "boost/json/array.hpp"
#include "boost/json/object.hpp"
#include "boost/json/serialize.hpp"
#include "fmt/format.h"

namespace zp::checkpoint {
namespace {

namespace json = boost::json;

constexpr const char* kEndOfText = "<|endoftext|>";

// The printable character that stands for a byte in byte-level vocabularies: the byte itself where
// Latin-1 prints it, otherwise the next free character from U+0100 on.
char32_t CharacterOf(int byte) {
  const auto prints = [](int b) {
    return ('!' <= b && b <= '~') || (0xa1 <= b && b <= 0xac) || (0xae <= b && b <= 0xff);
  };
  if (prints(byte)) {
    return byte;
  }
  char32_t next = 0x100;
  for (int b = 0; b < byte; ++b) {
    next += prints(b) ? 0 : 1;
  }
  return next;
}

std::string Utf8(char32_t character) {  // below U+0800
  if (character < 0x80) {
    return {static_cast<char>(character)};
  }
  return {static_cast<char>(0xc0 | (character >> 6)), static_cast<char>(0x80 | (character & 0x3f))};
}

json::object Vocabulary(int32_t vocab_count) {
  json::object vocabulary;
  vocabulary.reserve(vocab_count);
  for (int byte = 0; byte < kByteTokens; ++byte) {
    vocabulary[Utf8(CharacterOf(byte))] = byte;
  }
  for (int32_t id = kByteTokens; id < vocab_count; ++id) {
    vocabulary[id == kByteTokens ? kEndOfText : fmt::format("<filler {}>", id)] = id;
  }
  return vocabulary;
}

json::object ByteLevel() {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", false},
          {"use_regex", false}};
}

}  // namespace

std::string ByteTokenizerJson(int32_t vocab_count) {
  ZP_CHECK(vocab_count >= kByteTokens) << vocab_count;
  json::array added_tokens;
  if (vocab_count > kByteTokens) {
    added_tokens.push_back(json::object{{"id", kByteTokens},
                                        {"content", kEndOfText},
                                        {"single_word", false},
                                        {"lstrip", false},
                                        {"rstrip", false},
                                        {"normalized", false},
                                        {"special", true}});
  }
  const json::object model = {{"type", "BPE"},
                              {"dropout", nullptr},
                              {"unk_token", nullptr},
                              {"continuing_subword_prefix", nullptr},
                              {"end_of_word_suffix", nullptr},
                              {"fuse_unk", false},
                              {"byte_fallback", false},
                              {"ignore_merges", false},
                              {"vocab", Vocabulary(vocab_count)},
                              {"merges", json::array()}};
  return json::serialize(json::object{{"version", "1.0"},
                                      {"truncation", nullptr},
                                      {"padding", nullptr},
                                      {"added_tokens", added_tokens},
                                      {"normalizer", nullptr},
                                      {"pre_tokenizer", ByteLevel()},
                                      {"post_processor", nullptr},
                                      {"decoder", ByteLevel()},
                                      {"model", model}});
}

std::string ByteTokenizerConfigJson(int32_t vocab_count) {
  json::object config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                         {"clean_up_tokenization_spaces", false}};
  if (vocab_count > kByteTokens) {
    config["eos_token"] = kEndOfText;
    config["pad_token"] = kEndOfText;
  }
  return json::serialize(config);
}

}  // namespace zp::checkpoint
