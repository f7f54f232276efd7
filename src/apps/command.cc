#include "apps/command.h"

#include <sys/resource.h>

#include <cmath>
#include <cstdio>
#include <optional>
#include <vector>

#include "absl/strings/numbers.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

std::optional<double> ReadNumber(const std::string& text) {
  double number = 0;
  return absl::SimpleAtod(text, &number) && std::isfinite(number) ? std::optional(number)
                                                                  : std::nullopt;
}

}  // namespace

CLI::Validator IsPositive() {
  return CLI::Validator(
      [](const std::string& text) {
        const std::optional<double> number = ReadNumber(text);
        return number.has_value() && *number > 0 ? std::string()
                                                 : fmt::format("{} is not a number above 0", text);
      },
      "POSITIVE");
}

CLI::Validator IsWithin(double min, double max) {
  return CLI::Validator(
      [min, max](const std::string& text) {
        const std::optional<double> number = ReadNumber(text);
        return number.has_value() && *number >= min && *number <= max
                   ? std::string()
                   : fmt::format("{} is not a number from {} to {}", text, min, max);
      },
      fmt::format("in [{} - {}]", min, max));
}

std::string CommandLineProblem(const CLI::App* app, const CLI::Error& error) {
  const std::vector<std::string> unknown = app->remaining(/*recurse=*/true);
  std::string problem = error.what();
  if (!unknown.empty() && error.get_name() == "RequiredError") {
    problem = fmt::format("\"{}\" is not known; {}", unknown.front(), problem);
  }
  return fmt::format("error: {}\nRun with --help for more information.\n", problem);
}

void ExitOnError(const absl::Status& status) {
  if (!status.ok()) {
    fmt::print(stderr, "error: {}\n", base::MessageOf(status));
    throw CLI::RuntimeError(1);
  }
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

absl::StatusOr<spec::DType> ParseDType(const std::string& name) {
  for (const spec::DType dtype : {spec::DType::kBf16, spec::DType::kF32}) {
    if (spec::NameOf(dtype) == name) {
      return dtype;
    }
  }
  return absl::InvalidArgumentError(fmt::format("--dtype is \"{}\"; it must be bf16 or f32", name));
}

}  // namespace zp::apps
