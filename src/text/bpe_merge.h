// The merging of one word's symbols, lowest rank first, leftmost among equals.
//
// Separate from BpeModel because it is an algorithm of its own: short words by scanning, which
// stays in a few cache lines, long ones through an ordered agenda, so that ten megabytes without a
// space cost n log n and not n squared. Thread safety: pure functions over an immutable table.
#pragma once

#include <vector>

#include "text/merge_table.h"

namespace zp::text {

// Replaces what stands in `symbols` from index `first` on by its merged tokens.
void MergeSymbols(const MergeTable& merges, size_t first, std::vector<spec::TokenId>& symbols);

}  // namespace zp::text
