// Encodes a file of texts; the half of tools/compare_tokenizers.py and tools/bench_tokenizer.py
// that is written in C++.
//
//   text_encode TOKENIZER TEXTS TOKENS   writes the tokens of every text
//   text_encode TOKENIZER TEXTS          for every line on standard input encodes all texts once
//   and
//                                        prints "seconds token_count"
//
// TEXTS holds records of a 32-bit length and as many bytes; TOKENS of a 32-bit count and as many
// 32-bit ids. Both are little-endian.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "fmt/format.h"
#include "text/tokenizer.h"

namespace zp::text {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::string_view> SplitRecords(std::string_view records) {
  std::vector<std::string_view> texts;
  uint32_t size = 0;
  while (records.size() >= sizeof(size)) {
    std::memcpy(&size, records.data(), sizeof(size));
    texts.push_back(records.substr(sizeof(size), size));
    records.remove_prefix(sizeof(size) + texts.back().size());
  }
  return texts;
}

void WriteTokens(const Tokenizer& tokenizer,
                 const std::vector<std::string_view>& texts,
                 const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  for (const std::string_view text : texts) {
    const std::vector<TokenId> tokens = tokenizer.Encode(text, /*add_special_tokens=*/true);
    const auto count = static_cast<uint32_t>(tokens.size());
    file.write(reinterpret_cast<const char*>(&count), sizeof(count));
    file.write(reinterpret_cast<const char*>(tokens.data()),
               static_cast<std::streamsize>(tokens.size() * sizeof(TokenId)));
  }
}

void TimeOnRequest(const Tokenizer& tokenizer, const std::vector<std::string_view>& texts) {
  for (std::string line; std::getline(std::cin, line);) {
    const auto start = std::chrono::steady_clock::now();
    size_t token_count = 0;
    for (const std::string_view text : texts) token_count += tokenizer.Encode(text, true).size();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    fmt::print("{} {}\n", elapsed.count(), token_count);
    std::fflush(stdout);
  }
}

int Main(int argument_count, char** arguments) {
  if (argument_count != 3 && argument_count != 4) {
    fmt::print(stderr, "usage: text_encode TOKENIZER TEXTS [TOKENS]\n");
    return 2;
  }
  const auto tokenizer = Tokenizer::Load(arguments[1]);
  if (!tokenizer.ok()) {
    fmt::print(stderr, "{}\n", base::MessageOf(tokenizer.status()));
    return 1;
  }
  const std::string records = ReadFile(arguments[2]);
  const std::vector<std::string_view> texts = SplitRecords(records);
  if (argument_count == 4) {
    WriteTokens(**tokenizer, texts, arguments[3]);
  } else {
    TimeOnRequest(**tokenizer, texts);
  }
  return 0;
}

}  // namespace
}  // namespace zp::text

int main(int argument_count, char** arguments) { return zp::text::Main(argument_count, arguments); }
