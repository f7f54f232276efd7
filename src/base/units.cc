#include "base/units.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "fmt/format.h"

namespace zp::base {
namespace {

struct ByteUnit {
  std::string_view name;
  double bytes;
};

constexpr std::array<ByteUnit, 10> kByteUnits = {{{"", 1.0},
                                                  {"B", 1.0},
                                                  {"KB", 1e3},
                                                  {"MB", 1e6},
                                                  {"GB", 1e9},
                                                  {"TB", 1e12},
                                                  {"KiB", 1024.0},
                                                  {"MiB", 1048576.0},
                                                  {"GiB", 1073741824.0},
                                                  {"TiB", 1099511627776.0}}};

std::string ScaledText(double value,
                       double step,
                       std::string_view last_unit,
                       const std::array<const char*, 5>& units) {
  size_t unit = 0;
  while (std::abs(value) >= step && unit + 1 < units.size()) {
    value /= step;
    ++unit;
  }
  return fmt::format("{:.3g} {}{}", value, units[unit], last_unit);
}

}  // namespace

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  double number = 0;
  const auto [number_end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && number >= 0) {
    std::string_view unit_name = text.substr(number_end - text.data());
    unit_name.remove_prefix(std::min(unit_name.find_first_not_of(' '), unit_name.size()));
    for (const ByteUnit& unit : kByteUnits) {
      if (unit.name == unit_name && number * unit.bytes < 9e18) {
        return static_cast<int64_t>(number * unit.bytes);
      }
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("\"{}\" is not a byte count; write for example 4GiB, 512MiB or 4096", text));
}

std::string FormatBytes(int64_t bytes) {
  return ScaledText(static_cast<double>(bytes), 1024.0, "B", {"", "Ki", "Mi", "Gi", "Ti"});
}

std::string FormatCount(double count) {
  return ScaledText(count, 1000.0, "", {"", "k", "M", "G", "T"});
}

}  // namespace zp::base
