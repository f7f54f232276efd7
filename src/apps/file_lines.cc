#include "apps/file_lines.h"

#include <cstdint>
#include <fstream>
#include <iostream>
#include <memory>

#include "apps/child_process.h"
#include "fmt/format.h"

namespace zp::apps {
namespace {

using TakeLine = std::function<absl::Status(const std::string& line)>;

absl::Status ForEachLineOf(std::istream& lines, const TakeLine& take) {
  for (std::string line; std::getline(lines, line);) {
    ZP_RETURN_IF_ERROR(take(line));
  }
  return absl::OkStatus();
}

absl::Status ForEachUnpackedLine(const std::string& path, const TakeLine& take) {
  constexpr std::chrono::seconds kPatience(60);
  if (!std::ifstream(path)) {
    return absl::NotFoundError("cannot be read");
  }
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<ChildProcess> unpacker,
                      ChildProcess::Start({"xz", "-dc", "--", path}));
  while (true) {
    const absl::StatusOr<std::string> line = unpacker->ReadLine(kPatience);
    if (absl::IsUnavailable(line.status())) {  // the end
      return unpacker->AwaitEnd() == 0
                 ? absl::OkStatus()
                 : absl::DataLossError("xz cannot unpack it (see standard error)");
    }
    ZP_RETURN_IF_ERROR(line.status());
    ZP_RETURN_IF_ERROR(take(*line));
  }
}

}  // namespace

absl::Status ForEachLine(const std::string& path, const TakeLine& take) {
  int64_t line_number = 0;
  const TakeLine take_numbered = [&](const std::string& line) {
    ++line_number;
    return take(line);
  };
  absl::Status status;
  if (path == "-") {
    status = ForEachLineOf(std::cin, take_numbered);
  } else if (path.ends_with(".xz")) {
    status = ForEachUnpackedLine(path, take_numbered);
  } else if (std::ifstream file(path); file) {
    status = ForEachLineOf(file, take_numbered);
  } else {
    status = absl::NotFoundError("cannot be read");
  }
  if (status.ok()) {
    return status;
  }
  const std::string place = line_number > 0 ? fmt::format("{}, line {}", path, line_number) : path;
  return absl::Status(status.code(), fmt::format("{}: {}", place, std::string(status.message())));
}

}  // namespace zp::apps
