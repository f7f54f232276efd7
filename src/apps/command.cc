#include "apps/command.h"

#include <sys/resource.h>

#include <cstdio>

#include "fmt/format.h"

namespace zp::apps {

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
