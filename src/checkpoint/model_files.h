// The files of a model directory as files: which of them are weights, which are small, and whether
// they are still the same.
//
// Only the files of the directory itself count; links are followed, hidden files left out.
// Thread safety: functions of the files alone. Errors: NotFound or InvalidArgument with the path.
#pragma once

#include <string>

#include "base/status.h"

namespace zp::checkpoint {

// Copies config.json, the tokenizer and whatever else of at most 64 MiB lies beside the weights;
// returns when the copies are on the disk.
absl::Status CopySmallFiles(const std::string& from_directory, const std::string& to_directory);

// 16 hexadecimal digits that change when config.json does, or the name, the size or the time of
// last change of a file of weights. No weight is read: of 60 GB that would take minutes.
absl::StatusOr<std::string> Fingerprint(const std::string& directory);

// Gives the weights' pages in the page cache back to the system, but for those that are mapped. A
// hint: nothing depends on it but what else is cached.
void DropCachedWeights(const std::string& directory);

}  // namespace zp::checkpoint
