// The way errors of the world travel: absl::Status, with a code and a message that names the field,
// the file, the limit.
#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define ZP_CONCAT_INNER(a, b) a##b
#define ZP_CONCAT(a, b) ZP_CONCAT_INNER(a, b)

#define ZP_RETURN_IF_ERROR(expression)                            \
  do {                                                            \
    if (absl::Status zp_status = (expression); !zp_status.ok()) { \
      return zp_status;                                           \
    }                                                             \
  } while (false)

#define ZP_ASSIGN_OR_RETURN(target, expression) \
  ZP_ASSIGN_OR_RETURN_IMPL(ZP_CONCAT(zp_status_or_, __LINE__), target, expression)

#define ZP_ASSIGN_OR_RETURN_IMPL(status_or, target, expression) \
  auto status_or = (expression);                                \
  if (!status_or.ok()) {                                        \
    return status_or.status();                                  \
  }                                                             \
  target = *std::move(status_or)

namespace zp::base {

// Debian's Abseil is built for C++14: its string_view is not std::string_view. Messages are built
// with fmt and read with this.
inline std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

}  // namespace zp::base
