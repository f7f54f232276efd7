// What the subcommands share: how they fail and how they read common options.
#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "base/status.h"
#include "spec/dtype.h"

namespace zp::apps {

// Prints "error: ..." to standard error and ends the program with exit code 1, unless `status` is
// OK.
void ExitOnError(const absl::Status& status);

// "bf16" or "f32"; InvalidArgument otherwise.
absl::StatusOr<spec::DType> ParseDType(const std::string& name);

}  // namespace zp::apps
