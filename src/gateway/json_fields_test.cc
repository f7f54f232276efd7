#include "gateway/json_fields.h"

#include "boost/json.hpp"
#include "gtest/gtest.h"

namespace zp::gateway {
namespace {

boost::json::object Parse(const char* text) { return boost::json::parse(text).as_object(); }

std::string MessageOf(const Fields& fields) { return base::MessageOf(fields.status()); }

TEST(JsonFields, NullAndAbsentAreTheSame) {
  const boost::json::object object = Parse(R"({"a":null})");
  Fields fields(object);
  EXPECT_EQ(fields.Integer("a", {0, 10}, 7), 7);
  EXPECT_EQ(fields.Integer("b", {0, 10}, 8), 8);
  EXPECT_EQ(fields.String("a", "x"), "x");
  EXPECT_TRUE(fields.status().ok());
}

TEST(JsonFields, IntegersHaveRanges) {
  for (const char* text : {R"({"a":11})",
                           R"({"a":-1})",
                           R"({"a":2.5})",
                           R"({"a":1e300})",
                           R"({"a":1e999})",
                           R"({"a":99999999999999999999})",
                           R"({"a":"1"})",
                           R"({"a":true})"}) {
    const boost::json::object object = Parse(text);
    Fields fields(object);
    fields.Integer("a", {0, 10}, 0);
    EXPECT_EQ(MessageOf(fields), "a must be an integer from 0 to 10") << text;
  }
  const boost::json::object object = Parse(R"({"a":2.0})");
  Fields fields(object);
  EXPECT_EQ(fields.Integer("a", {0, 10}, 0), 2);
}

TEST(JsonFields, ShortStringsAreCountedInCharacters) {
  const boost::json::object object = Parse(R"({"a":"äöü","b":"abcd","c":"","d":null})");
  Fields fields(object);
  EXPECT_EQ(fields.ShortString("a", 3), "äöü");
  EXPECT_EQ(fields.ShortString("d", 3), "");
  EXPECT_EQ(fields.ShortString("e", 3), "");
  EXPECT_TRUE(fields.status().ok());
  fields.ShortString("b", 3);
  EXPECT_EQ(MessageOf(fields), "b must have 1 to 3 characters");
  Fields others(object);
  others.ShortString("c", 3);
  EXPECT_EQ(MessageOf(others), "c must have 1 to 3 characters");
}

TEST(JsonFields, TheFirstProblemStays) {
  const boost::json::object object = Parse(R"({"a":"x","b":1})");
  Fields fields(object);
  fields.Bool("a", false);
  fields.String("b", "");
  EXPECT_EQ(MessageOf(fields), "a must be true or false");
}

TEST(JsonFields, PromptsTakeFourShapes) {
  const boost::json::object object =
      Parse(R"({"a":"x","b":["x","y"],"c":[1,2],"d":[[1],[2,3]],"e":["x",[1]]})");
  Fields fields(object);
  EXPECT_EQ(fields.Prompts("a", 2, 10).size(), 1u);
  EXPECT_EQ(fields.Prompts("b", 2, 10).size(), 2u);
  EXPECT_EQ(fields.Prompts("c", 1, 10).at(0).tokens, (scoring::Tokens{1, 2}));
  EXPECT_EQ(fields.Prompts("d", 2, 10).at(1).tokens, (scoring::Tokens{2, 3}));
  EXPECT_EQ(fields.Prompts("e", 2, 10).at(1).field, "e[1]");
  EXPECT_TRUE(fields.status().ok()) << MessageOf(fields);
}

TEST(JsonFields, BadTokensAreNamed) {
  const boost::json::object object = Parse(R"({"a":[[1],[2,10]]})");
  Fields fields(object);
  fields.Prompts("a", 2, 10);
  EXPECT_EQ(MessageOf(fields), "a[1][1] must be a token id from 0 to 9");
}

TEST(JsonFields, TooManyElementsAreRefused) {
  const boost::json::object object = Parse(R"({"a":["x","y","z"]})");
  Fields fields(object);
  fields.Strings("a", 2);
  EXPECT_EQ(MessageOf(fields), "a has 3 elements; the limit is 2");
}

TEST(JsonFields, NeutralValuesOfUnsupportedFieldsAreFine) {
  const boost::json::object object =
      Parse(R"({"a":null,"b":false,"c":0,"d":1,"e":{},"f":[],"g":"","bad":2})");
  Fields fields(object);
  for (const char* field : {"a", "b", "c", "d", "e", "f", "g", "absent"}) {
    fields.Unsupported(field, "no", 1);
  }
  EXPECT_TRUE(fields.status().ok()) << MessageOf(fields);
  fields.Unsupported("bad", "no", 1);
  EXPECT_EQ(MessageOf(fields), "bad is not supported: no");
}

TEST(JsonFields, AliasesAreOneField) {
  const boost::json::object object = Parse(R"({"inputs":"x"})");
  Fields fields(object);
  EXPECT_EQ(fields.OneOf({"input", "inputs"}), "inputs");
  EXPECT_EQ(fields.OneOf({"a", "b"}), "a");
  EXPECT_EQ(MessageOf(fields), "a is required (or b)");
}

}  // namespace
}  // namespace zp::gateway
