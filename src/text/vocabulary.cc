#include "text/vocabulary.h"

#include <algorithm>

#include "base/status.h"
#include "boost/json/object.hpp"
#include "fmt/format.h"

namespace zp::text {

absl::StatusOr<Vocabulary> Vocabulary::Parse(const JsonPart& part) {
  const boost::json::object* object = part.value().if_object();
  if (object == nullptr) return part.Invalid("must be an object of token: id");
  size_t pool_bytes = 0;
  int64_t id_limit = 0;
  for (const auto& member : *object) {
    const int64_t* id = member.value().if_int64();
    if (id == nullptr || *id < 0 || *id >= kMaxVocabCount) {
      return part.Invalid(fmt::format("token \"{}\" needs an id from 0 to {}",
                                      std::string_view(member.key().data(), member.key().size()),
                                      kMaxVocabCount - 1));
    }
    pool_bytes += member.key().size();
    id_limit = std::max(id_limit, *id + 1);
  }
  Vocabulary vocabulary;
  vocabulary.pool_.reserve(pool_bytes);  // never grows: views point into it
  vocabulary.contents_.resize(static_cast<size_t>(id_limit));
  vocabulary.ids_.reserve(object->size());
  for (const auto& member : *object) {
    const auto key = member.key();
    const char* content = vocabulary.pool_.data() + vocabulary.pool_.size();
    vocabulary.pool_.insert(vocabulary.pool_.end(), key.begin(), key.end());
    const auto id = static_cast<TokenId>(*member.value().if_int64());
    vocabulary.contents_[static_cast<size_t>(id)] = {content, key.size()};
    vocabulary.ids_.emplace(absl::string_view(content, key.size()), id);
  }
  return vocabulary;
}

}  // namespace zp::text
