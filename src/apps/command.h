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

// A check for numbers that must be more than 0; neither NaN nor infinity is one. CLI11's own
// PositiveNumber lets NaN through and tells 309 digits of range.
CLI::Validator IsPositive();

// A check for numbers from `min` to `max`, both included; NaN is none.
CLI::Validator IsWithin(double min, double max);

// The error message of the command line. CLI11 tells of what is missing first; a word that it does
// not know is most likely the reason, so that comes before.
std::string CommandLineProblem(const CLI::App* app, const CLI::Error& error);

// "bf16" or "f32"; InvalidArgument otherwise.
absl::StatusOr<spec::DType> ParseDType(const std::string& name);

}  // namespace zp::apps
