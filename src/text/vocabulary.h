// The tokens of a model and their ids.
//
// Thread safety: immutable after Parse. Ownership: owns every token's text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "spec/model_spec.h"
#include "text/json_part.h"

namespace zp::text {

using spec::TokenId;

inline constexpr TokenId kNoToken = -1;
inline constexpr int64_t kMaxVocabCount = int64_t{1} << 22;

class Vocabulary {
 public:
  // Reads the object {"token": id, ...}.
  static absl::StatusOr<Vocabulary> Parse(const JsonPart& part);

  TokenId Find(std::string_view content) const {
    const auto found = ids_.find(absl::string_view(content.data(), content.size()));
    return found == ids_.end() ? kNoToken : found->second;
  }
  // Empty for ids that nothing has.
  std::string_view ContentOf(TokenId id) const {
    const bool known = id >= 0 && static_cast<size_t>(id) < contents_.size();
    return known ? contents_[static_cast<size_t>(id)] : std::string_view();
  }
  int64_t id_limit() const { return static_cast<int64_t>(contents_.size()); }  // highest id + 1
  int64_t token_count() const { return static_cast<int64_t>(ids_.size()); }

 private:
  std::vector<char> pool_;
  std::vector<std::string_view> contents_;  // [id_limit], in pool_
  absl::flat_hash_map<absl::string_view, TokenId> ids_;
};

}  // namespace zp::text
