#include "checkpoint/safetensors_header.h"

#include <algorithm>
#include <optional>
#include <unordered_set>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"

namespace zp::checkpoint {
namespace {

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

void AppendUtf8(uint32_t code_point, std::string& text) {
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
    return;
  }
  if (code_point < 0x800) {
    text += static_cast<char>(0xc0 | (code_point >> 6));
  } else {
    text += static_cast<char>(0xe0 | (code_point >> 12));
    text += static_cast<char>(0x80 | ((code_point >> 6) & 0x3f));
  }
  text += static_cast<char>(0x80 | (code_point & 0x3f));
}

// Walks over JSON text. The first mistake sticks: from then on every step fails and `error()` says
// what was expected where.
class JsonScanner {
 public:
  explicit JsonScanner(std::string_view text) : text_(text) {}

  bool ok() const { return error_.empty(); }
  const std::string& error() const { return error_; }

  bool Fail(std::string_view expected) {
    if (ok()) {
      error_ = fmt::format("expected {} at byte {} of the header", expected, position_);
    }
    return false;
  }

  // Takes `c` if it comes next.
  bool TryTake(char c) {
    SkipSpace();
    if (!ok() || position_ == text_.size() || text_[position_] != c) {
      return false;
    }
    ++position_;
    return true;
  }

  bool Take(char c) { return TryTake(c) || Fail(fmt::format("'{}'", c)); }

  bool AtEnd() {
    SkipSpace();
    return position_ == text_.size();
  }

  bool TakeString(std::string& value, size_t max_bytes = kMaxHeaderBytes) {
    value.clear();
    if (!Take('"')) {
      return false;
    }
    while (position_ < text_.size()) {
      const char c = text_[position_++];
      if (c == '"') {
        return true;
      }
      if (value.size() >= max_bytes) {
        return Fail(fmt::format("a string of at most {} bytes", max_bytes));
      }
      if (static_cast<unsigned char>(c) < 0x20) {
        return Fail("no control character within a string");
      }
      if (c != '\\') {
        value += c;
      } else if (!TakeEscape(value)) {
        return false;
      }
    }
    return Fail("the end of a string");
  }

  bool TakeUnsigned(uint64_t& value) {
    SkipSpace();
    value = 0;
    const size_t first = position_;
    for (; position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9';
         ++position_) {
      if (__builtin_mul_overflow(value, 10, &value) ||
          __builtin_add_overflow(value, text_[position_] - '0', &value)) {
        return Fail("a number below 2^64");
      }
    }
    return position_ > first || Fail("a whole number without sign");
  }

  // `[` take_item `,` take_item ... `]`, or any other pair of brackets.
  template <typename TakeItem>
  bool TakeList(char open, char close, TakeItem take_item) {
    if (!Take(open)) {
      return false;
    }
    if (TryTake(close)) {
      return true;
    }
    do {
      if (!take_item()) {
        return false;
      }
    } while (TryTake(','));
    return Take(close);
  }

 private:
  void SkipSpace() {
    while (position_ < text_.size() && IsSpace(text_[position_])) {
      ++position_;
    }
  }

  bool TakeEscape(std::string& value) {
    constexpr std::string_view kEscapes = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (position_ == text_.size()) {
      return Fail("an escape");
    }
    const char c = text_[position_++];
    if (const size_t index = kEscapes.find(c); index != std::string_view::npos) {
      value += kMeanings[index];
      return true;
    }
    return c == 'u' ? TakeUnicodeEscape(value) : Fail("an escape that JSON knows");
  }

  // The two halves of a surrogate pair stay two: names are compared, never shown as text.
  bool TakeUnicodeEscape(std::string& value) {
    uint32_t code_point = 0;
    for (int digit = 0; digit < 4; ++digit) {
      constexpr std::string_view kDigits = "0123456789abcdef";
      const char c = position_ < text_.size() ? text_[position_] : '\0';
      const size_t digit_value = kDigits.find(c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c);
      if (digit_value == std::string_view::npos) {
        return Fail("four hexadecimal digits");
      }
      code_point = code_point * 16 + static_cast<uint32_t>(digit_value);
      ++position_;
    }
    AppendUtf8(code_point, value);
    return true;
  }

  std::string_view text_;
  size_t position_ = 0;
  std::string error_;
};

// False for a dtype that cannot be read.
bool ParseDType(std::string_view name, std::optional<spec::DType>& dtype) {
  dtype = name == "BF16"  ? std::optional(spec::DType::kBf16)
          : name == "F16" ? std::optional(spec::DType::kF16)
          : name == "F32" ? std::optional(spec::DType::kF32)
                          : std::nullopt;
  return dtype.has_value() || name == "F8_E4M3";
}

// One entry as it stands in the text, nothing checked but the grammar.
struct RawEntry {
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> data_offsets;
};

bool TakeNumbers(JsonScanner& scanner, size_t max_count, std::vector<uint64_t>& numbers) {
  numbers.clear();
  return scanner.TakeList('[', ']', [&] {
    return (numbers.size() < max_count || scanner.Fail("no more numbers in this list")) &&
           scanner.TakeUnsigned(numbers.emplace_back());
  });
}

bool TakeEntry(JsonScanner& scanner, RawEntry& entry) {
  bool seen_dtype = false;
  bool seen_shape = false;
  bool seen_offsets = false;
  std::string key;
  const bool taken = scanner.TakeList('{', '}', [&] {
    if (!scanner.TakeString(key, kMaxNameBytes) || !scanner.Take(':')) {
      return false;
    }
    if (key == "dtype" && !std::exchange(seen_dtype, true)) {
      return scanner.TakeString(entry.dtype, kMaxNameBytes);
    }
    if (key == "shape" && !std::exchange(seen_shape, true)) {
      return TakeNumbers(scanner, kMaxRank, entry.shape);
    }
    if (key == "data_offsets" && !std::exchange(seen_offsets, true)) {
      return TakeNumbers(scanner, 2, entry.data_offsets);
    }
    return scanner.Fail("each of dtype, shape, data_offsets once and nothing else");
  });
  return taken && ((seen_dtype && seen_shape && seen_offsets) ||
                   scanner.Fail("dtype, shape and data_offsets before"));
}

// "__metadata__": strings to strings, which nobody here needs.
bool SkipMetadata(JsonScanner& scanner) {
  std::string ignored;
  return scanner.TakeList('{', '}', [&] {
    return scanner.TakeString(ignored) && scanner.Take(':') && scanner.TakeString(ignored);
  });
}

// Bytes of a dense tensor, or nothing where that overflows.
std::optional<uint64_t> DenseBytes(const std::vector<uint64_t>& shape, size_t element_bytes) {
  uint64_t size_bytes = element_bytes;
  for (const uint64_t extent : shape) {
    if (extent > INT64_MAX || __builtin_mul_overflow(size_bytes, extent, &size_bytes)) {
      return std::nullopt;
    }
  }
  return size_bytes;
}

absl::StatusOr<HeaderEntry> CheckEntry(std::string name,
                                       const RawEntry& raw,
                                       uint64_t data_bytes,
                                       const std::string& path) {
  const auto wrong = [&](const std::string& what) {
    return absl::InvalidArgumentError(fmt::format("{}: tensor '{}': {}", path, name, what));
  };
  HeaderEntry entry;
  if (!ParseDType(raw.dtype, entry.dtype)) {
    return absl::UnimplementedError(fmt::format(
        "{}: tensor '{}' has dtype '{}', but only BF16, F16, F32 and F8_E4M3 can be read",
        path,
        name,
        raw.dtype));
  }
  if (raw.data_offsets.size() != 2) {
    return wrong(fmt::format("data_offsets needs 2 numbers, but has {}", raw.data_offsets.size()));
  }
  const uint64_t begin = raw.data_offsets[0];
  const uint64_t end = raw.data_offsets[1];
  if (begin > end) {
    return wrong(fmt::format("data_offsets [{}, {}] run backwards", begin, end));
  }
  if (end > data_bytes) {
    return wrong(
        fmt::format("its bytes {} to {} reach beyond the {} data bytes of the file; the "
                    "file is truncated or its header is wrong",
                    begin,
                    end,
                    data_bytes));
  }
  const std::optional<uint64_t> dense_bytes = DenseBytes(raw.shape, ElementBytes(entry));
  if (!dense_bytes.has_value()) {
    return wrong(fmt::format("shape [{}] is larger than any memory", fmt::join(raw.shape, ", ")));
  }
  if (*dense_bytes != end - begin) {
    return wrong(fmt::format("{} of shape [{}] takes {} bytes, but data_offsets [{}, {}] hold {}",
                             raw.dtype,
                             fmt::join(raw.shape, ", "),
                             *dense_bytes,
                             begin,
                             end,
                             end - begin));
  }
  entry.name = std::move(name);
  entry.begin = begin;
  entry.end = end;
  entry.shape.assign(raw.shape.begin(), raw.shape.end());
  return entry;
}

// Sorts by place and checks that the ranges fill the data section without overlap or gap.
absl::Status CheckLayout(std::vector<HeaderEntry>& entries,
                         uint64_t data_bytes,
                         const std::string& path) {
  std::sort(entries.begin(), entries.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t expected = 0;
  for (const HeaderEntry& entry : entries) {
    if (entry.begin != expected) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor '{}' begins at data byte {}, but the tensor before it ends at "
                      "{}: they {}",
                      path,
                      entry.name,
                      entry.begin,
                      expected,
                      entry.begin < expected ? "overlap" : "leave a gap"));
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: its tensors end at data byte {}, but the file holds {} data bytes",
                    path,
                    expected,
                    data_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

size_t ElementBytes(const HeaderEntry& entry) {
  return entry.dtype.has_value() ? spec::SizeOf(*entry.dtype) : 1;
}

absl::StatusOr<std::vector<HeaderEntry>> ParseSafetensorsHeader(std::string_view header,
                                                                uint64_t data_bytes,
                                                                const std::string& path) {
  JsonScanner scanner(header);
  std::vector<HeaderEntry> entries;
  std::unordered_set<std::string> names;
  absl::Status entry_status;
  std::string name;
  const bool taken = scanner.TakeList('{', '}', [&] {
    if (!scanner.TakeString(name, kMaxNameBytes) || !scanner.Take(':')) {
      return false;
    }
    if (!names.insert(name).second) {
      entry_status =
          absl::InvalidArgumentError(fmt::format("{}: the header names '{}' twice", path, name));
      return false;
    }
    if (names.size() > kMaxTensors) {
      entry_status = absl::InvalidArgumentError(
          fmt::format("{}: the header names more than {} tensors", path, kMaxTensors));
      return false;
    }
    if (name == "__metadata__") {
      return SkipMetadata(scanner);
    }
    RawEntry raw;
    if (!TakeEntry(scanner, raw)) {
      return false;
    }
    absl::StatusOr<HeaderEntry> entry = CheckEntry(name, raw, data_bytes, path);
    if (!entry.ok()) {
      entry_status = entry.status();
      return false;
    }
    entries.push_back(*std::move(entry));
    return true;
  });
  ZP_RETURN_IF_ERROR(entry_status);
  if (!taken || !(scanner.AtEnd() || scanner.Fail("nothing but spaces after the last tensor"))) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the header is no safetensors header: {}", path, scanner.error()));
  }
  ZP_RETURN_IF_ERROR(CheckLayout(entries, data_bytes, path));
  return entries;
}

}  // namespace zp::checkpoint
