// Token for token what Hugging Face `tokenizers` gave: testdata/goldens.json, written by
// tools/make_tokenizer_goldens.py.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "boost/json/parse.hpp"
#include "boost/json/value_to.hpp"
#include "fmt/format.h"
#include "gtest/gtest.h"
#include "text/tokenizer.h"

namespace zp::text {
namespace {

std::string FromEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A tokenizer.json, unpacked by xz where its name says so; empty when it is not to be had.
std::string ReadTokenizer(const std::string& path) {
  if (!std::filesystem::exists(path)) return "";
  if (!path.ends_with(".xz")) return ReadFile(path);
  const auto close = [](std::FILE* pipe) { pclose(pipe); };
  const std::unique_ptr<std::FILE, decltype(close)> pipe(
      popen(fmt::format("xz -dc '{}'", path).c_str(), "r"), close);
  std::string json;
  std::vector<char> block(1 << 16);
  while (const size_t bytes = fread(block.data(), 1, block.size(), pipe.get())) {
    json.append(block.data(), bytes);
  }
  return json;
}

std::string TextOf(const boost::json::value& value) {
  if (value.is_string()) return boost::json::value_to<std::string>(value);
  const auto hex = boost::json::value_to<std::string>(value.at("hex"));
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

class TokenizerGoldens : public testing::Test {
 protected:
  const std::string source_dir_ = FromEnvironment("ZP_SOURCE_DIR");
  const boost::json::value document_ =
      boost::json::parse(ReadFile(source_dir_ + "/src/text/testdata/goldens.json"));

  std::string PathOf(const std::string& name) const {
    constexpr std::string_view kShared = "shared/";
    if (!name.starts_with(kShared)) return source_dir_ + "/" + name;
    return FromEnvironment("ZP_SHARED_DIR") + "/" + name.substr(kShared.size());
  }

  // Compares all texts with one golden; false when its tokenizer is absent.
  bool Check(const boost::json::value& golden) const {
    const auto name = boost::json::value_to<std::string>(golden.at("tokenizer"));
    const std::string json = ReadTokenizer(PathOf(name));
    if (json.empty()) return false;
    const auto tokenizer = Tokenizer::Parse(json, name);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    if (!tokenizer.ok()) return true;
    const auto& texts = document_.at("texts").as_array();
    const auto& ids = golden.at("ids").as_array();
    EXPECT_EQ(texts.size(), ids.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ((*tokenizer)->Encode(TextOf(texts[i]), true),
                boost::json::value_to<std::vector<TokenId>>(ids[i]))
          << name << ", text " << i << ": " << TextOf(texts[i]);
    }
    return true;
  }
};

TEST_F(TokenizerGoldens, EveryTokenizerOfOursGivesTheTokensOfHuggingFace) {
  int checked = 0;
  for (const auto& golden : document_.at("goldens").as_array()) {
    const auto name = boost::json::value_to<std::string>(golden.at("tokenizer"));
    if (!name.starts_with("shared/") && Check(golden)) ++checked;
  }
  EXPECT_GE(checked, 2) << "the two of testdata are always there";
}

TEST_F(TokenizerGoldens, TheTokenizersOfKnownFamiliesGiveTheTokensOfHuggingFace) {
  int checked = 0;
  for (const auto& golden : document_.at("goldens").as_array()) {
    const auto name = boost::json::value_to<std::string>(golden.at("tokenizer"));
    if (name.starts_with("shared/") && Check(golden)) ++checked;
  }
  if (checked == 0) GTEST_SKIP() << "no tokenizers in ZP_SHARED_DIR (or no xz to unpack them)";
}

}  // namespace
}  // namespace zp::text
