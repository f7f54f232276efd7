// Request traces from files, in the forms in which others publish them; also packed by xz.
//
//   Azure LLM inference traces   CSV: TIMESTAMP,ContextTokens,GeneratedTokens. Lengths alone are
//                                known, so nothing is shared
//   Mooncake traces              JSON lines: timestamp (ms), input_length, hash_ids (names of
//                                512-token blocks): equal names are equal tokens
//   evaluation requests          JSON lines as request_lines.h reads them; a request a second
//
// Thread safety: free function.
#pragma once

#include <string>

#include "base/status.h"
#include "planner/trace.h"
#include "text/tokenizer.h"

namespace zp::apps {

// The form is told by the first line. `tokenizer` is needed for evaluation requests alone and may
// be null. Errors: InvalidArgument names file and line; NotFound.
absl::StatusOr<planner::Trace> ReadTrace(const std::string& name,
                                         const std::string& path,
                                         const text::Tokenizer* tokenizer);

}  // namespace zp::apps
