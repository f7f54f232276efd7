// Words that this thread encoded lately, and their tokens.
//
// One table a thread, shared by all its tokenizers: no locks, bounded, and an entry is one cache
// line. A new word simply replaces the old one of its slot: text repeats its common words so often
// that nothing cleverer paid (docs/decisions/0002-tokenizer.md).
//
// Thread safety: Local() gives the calling thread's own.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "spec/model_spec.h"

namespace zp::text {

class WordCache {
 public:
  static constexpr size_t kMaxWordBytes = 26;
  static constexpr size_t kMaxTokens = 8;

  static WordCache& Local() {
    static thread_local WordCache cache;
    return cache;
  }

  struct alignas(64) Entry {
    std::array<spec::TokenId, kMaxTokens> tokens = {};
    uint32_t owner = 0;  // the tokenizer; 0 for an empty slot
    uint8_t token_count = 0;
    uint8_t word_bytes = 0;
    std::array<char, kMaxWordBytes> word = {};

    bool Holds(uint32_t of_owner, std::string_view text) const {
      return owner == of_owner && word_bytes == text.size() &&
             std::memcmp(word.data(), text.data(), text.size()) == 0;
    }
  };
  static_assert(sizeof(Entry) == 64);

  // The only slot where `word` can be. REQUIRES: 1 <= word.size() <= kMaxWordBytes.
  Entry& SlotOf(uint32_t owner, std::string_view word) {
    return entries_[Hash(owner, word) >> (64 - kEntryBits)];
  }

 private:
  static constexpr int kEntryBits = 15;  // 2 MiB a thread

  static uint64_t Mix(uint64_t a, uint64_t b) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }

  static uint64_t Hash(uint32_t owner, std::string_view word) {
    constexpr uint64_t kOdd = 0x9e3779b97f4a7c15u;
    uint64_t hash = owner + word.size() * kOdd;
    while (word.size() > sizeof(uint64_t)) {
      uint64_t chunk = 0;
      std::memcpy(&chunk, word.data(), sizeof(chunk));
      hash = Mix(hash ^ chunk, kOdd);
      word.remove_prefix(sizeof(chunk));
    }
    return Mix(hash ^ Tail(word), kOdd) * kOdd;
  }

  // 1 to 8 bytes as one number, without a loop: overlapping reads.
  static uint64_t Tail(std::string_view word) {
    const char* data = word.data();
    const size_t size = word.size();
    if (size >= 4) {
      uint32_t first = 0;
      uint32_t last = 0;
      std::memcpy(&first, data, sizeof(first));
      std::memcpy(&last, data + size - sizeof(last), sizeof(last));
      return uint64_t{first} << 32 | last;
    }
    const auto byte = [data](size_t i) { return uint64_t{static_cast<uint8_t>(data[i])}; };
    return byte(0) << 16 | byte(size / 2) << 8 | byte(size - 1);
  }

  std::vector<Entry> entries_ = std::vector<Entry>(size_t{1} << kEntryBits);
};

}  // namespace zp::text
