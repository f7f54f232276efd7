// Goes through the lines of a file of data: plain, packed by xz, or standard input.
//
// Thread safety: free functions, no shared state.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"

namespace zp::apps {

// Gives every line to `take`, without its end; the file is never whole in memory. "-" is standard
// input; a name that ends in .xz goes through the program xz. Errors: those of `take`, with file
// and line number before them; NotFound; DataLoss where xz cannot unpack it.
absl::Status ForEachLine(const std::string& path,
                         const std::function<absl::Status(const std::string& line)>& take);

}  // namespace zp::apps
