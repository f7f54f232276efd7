// Works for this room's tests: random prompts that share beginnings.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "protocol/work.h"
#include "spec/model_shapes.h"

namespace zp::routing {

inline spec::ModelSpec TestSpec() {
  return spec::WithLayerCount(*spec::FindModelShape("qwen3-30b-a3b"), 3);
}

// One of `family_count` beginnings, then tokens of its own.
inline protocol::Sequence RandomSequence(std::mt19937& random, int family_count) {
  protocol::Sequence sequence;
  const auto family = static_cast<spec::TokenId>(random() % family_count);
  const size_t shared_count = 16 * (random() % 6) + random() % 16;
  for (size_t i = 0; i < shared_count; ++i) {
    sequence.tokens.push_back(family);
  }
  for (size_t own = 1 + random() % 50; own > 0; --own) {
    sequence.tokens.push_back(static_cast<spec::TokenId>(100 + random() % 1000));
  }
  const auto last = static_cast<int32_t>(sequence.tokens.size()) - 1;
  if (random() % 4 == 0) {  // an echo of the end
    sequence.rows.push_back({.position = static_cast<int32_t>(random() % (last + 1))});
  }
  sequence.rows.push_back({.position = last, .columns = {1, 2}});
  return sequence;
}

inline protocol::Work RandomWork(std::mt19937& random, int family_count = 4) {
  protocol::Work work{.request_id = "test"};
  for (size_t count = 1 + random() % 4; count > 0; --count) {
    work.sequences.push_back(RandomSequence(random, family_count));
  }
  return work;
}

}  // namespace zp::routing
