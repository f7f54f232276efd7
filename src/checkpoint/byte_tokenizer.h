// A minimal tokenizer.json for models without text of their own: one token for each byte.
#pragma once

#include <cstdint>
#include <string>

namespace zp::checkpoint {

constexpr int32_t kByteTokens = 256;

// Byte-level BPE without merges. Token b is byte b; where the vocabulary has room, the next token
// is "<|endoftext|>" (special) and the rest are fillers that no text contains.
// REQUIRES: vocab_count >= kByteTokens.
std::string ByteTokenizerJson(int32_t vocab_count);
std::string ByteTokenizerConfigJson(int32_t vocab_count);

}  // namespace zp::checkpoint
