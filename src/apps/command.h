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

// As many open descriptors as the system lets this process have: a connection takes one, and the
// limit that shells give is often 1,024. Child processes inherit it.
void RaiseDescriptorLimit();

// "bf16" or "f32"; InvalidArgument otherwise.
absl::StatusOr<spec::DType> ParseDType(const std::string& name);

}  // namespace zp::apps
