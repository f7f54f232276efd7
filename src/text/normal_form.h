// Unicode normal forms, as `tokenizers` computes them: by the data of Unicode 9. Characters that
// came later are left as they are, and nothing moves or joins across them.
//
// Separate from utf8proc_map because that one knows Unicode 15 and sorts combining marks in
// quadratic time.
//
// Thread safety: pure functions; tables are built once, on first use.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace zp::text {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Nothing when `text` is in the form already. REQUIRES: valid UTF-8.
std::optional<std::string> Normalize(std::string_view text, NormalForm form);

}  // namespace zp::text
