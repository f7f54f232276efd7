// The {"Regex": ...} or {"String": ...} that normalizers and pre-tokenizers carry.
#pragma once

#include "absl/status/statusor.h"
#include "text/json_part.h"
#include "text/regex.h"

namespace zp::text {

// Reads the member "pattern" of `part`.
absl::StatusOr<Regex> ParsePattern(const JsonPart& part);

}  // namespace zp::text
