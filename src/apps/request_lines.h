// Files of evaluation requests as lm-evaluation-harness writes them: JSON lines with the strings
// "context" and "continuation", in {"request": {...}} or bare.
//
// Thread safety: free functions, no shared state.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "spec/model_spec.h"
#include "text/tokenizer.h"

namespace zp::apps {

struct RequestLine {
  std::string context;
  std::string continuation;

  // Each part by itself, one after the other.
  std::vector<spec::TokenId> Tokens(const text::Tokenizer& tokenizer) const;
};

absl::StatusOr<RequestLine> ParseRequestLine(const std::string& line);

// Gives every request of a file to `take`. `path` and errors: ForEachLine (file_lines.h).
absl::Status ForEachRequestLine(const std::string& path,
                                const std::function<absl::Status(RequestLine)>& take);

}  // namespace zp::apps
