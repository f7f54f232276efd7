// Reads a file line by line with bounded memory.
//
// Thread safety: none.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "base/status.h"

namespace zp::apps {

class LineReader {
 public:
  static constexpr size_t kMaxLineBytes = 64 << 20;

  static absl::StatusOr<LineReader> Open(const std::string& path);

  // False at the end. Of a line longer than kMaxLineBytes the rest is skipped and is_cut() is true.
  bool Next(std::string& line);

  bool is_cut() const { return is_cut_; }
  int64_t line_number() const { return line_number_; }
  int64_t read_bytes() const { return read_bytes_; }
  int64_t file_bytes() const { return file_bytes_; }  // 0 where it cannot be told (a pipe)

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  std::unique_ptr<std::FILE, CloseFile> file_;
  int64_t file_bytes_ = 0;
  int64_t read_bytes_ = 0;
  int64_t line_number_ = 0;
  bool is_cut_ = false;
};

}  // namespace zp::apps
