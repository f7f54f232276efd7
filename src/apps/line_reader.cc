#include "apps/line_reader.h"

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "fmt/format.h"

namespace zp::apps {

absl::StatusOr<LineReader> LineReader::Open(const std::string& path) {
  LineReader reader;
  reader.file_.reset(std::fopen(path.c_str(), "rb"));
  if (reader.file_ == nullptr) {
    return absl::NotFoundError(fmt::format("cannot read {}: {}", path, std::strerror(errno)));
  }
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(fmt::format("cannot read {}: it is a directory", path));
  }
  const auto size = std::filesystem::file_size(path, error);
  reader.file_bytes_ = error ? 0 : static_cast<int64_t>(size);
  return reader;
}

bool LineReader::Next(std::string& line) {
  line.clear();
  is_cut_ = false;
  int character = 0;
  while ((character = getc_unlocked(file_.get())) != EOF) {
    ++read_bytes_;
    if (character == '\n') {
      ++line_number_;
      return true;
    }
    if (line.size() < kMaxLineBytes) {
      line.push_back(static_cast<char>(character));
    } else {
      is_cut_ = true;
    }
  }
  if (line.empty()) {
    return false;
  }
  ++line_number_;
  return true;
}

}  // namespace zp::apps
