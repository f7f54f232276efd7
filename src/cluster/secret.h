// Secrets of the control plane: made from the kernel's random bytes, compared in constant time.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace zp::cluster {

constexpr size_t kSessionSecretBytes = 16;

// Errors: Internal if the system has no random bytes.
absl::StatusOr<std::string> NewSessionSecret();

// Takes as long for a wrong first byte as for a wrong last one; hashes first, so that the length
// does not show either.
bool SameSecret(std::string_view left, std::string_view right);

}  // namespace zp::cluster
