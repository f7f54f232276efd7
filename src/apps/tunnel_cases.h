// The work of the wind tunnel: for each rank a queue of passes, each a list of prompts. All
// strategies run the same queues.
//
//   256, 4096, ...  prompts of so many tokens, nothing shared; one pass of equal size per rank, of
//                   whole prompts
//   uneven          three passes per rank, one after the other, of prompts from 16 to 8,192 tokens
//                   (log-uniform); a pass is 0.7 to 1.3 times the size asked, each rank and pass
//                   drawn by itself, as requests of unlike lengths fill batches. The sums of ranks
//                   differ too
//   uneven-N        the same with prompts from 16 to N tokens
//   idle            as 256, but the last rank has nothing
//   double          as 256, but the last rank's pass is twice as large
//   NAME=FILE       requests of a file, in its order. Lines with the same context stay together, as
//                   a client sends all answers to a question; such groups go to the ranks in turn,
//                   until each has the tokens asked, *counted after sharing*. Tokens are folded
//                   into the model's small vocabulary: what was shared stays shared. A file that is
//                   too short is gone through again with its tokens renumbered
//
// Thread safety: free functions, no shared state.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "spec/model_spec.h"

namespace zp::apps {

using Prompt = std::vector<spec::TokenId>;

// Counts tokens as a trie of the prompts does: each distinct prefix once.
class DistinctTokens {
 public:
  // How many tokens the prompt adds.
  int64_t Add(const Prompt& prompt);

  int64_t count() const { return count_; }
  // Mean over the distinct tokens of how many stand before them.
  double mean_context() const {
    return count_ == 0 ? 0 : position_sum_ / static_cast<double>(count_);
  }

 private:
  std::set<Prompt> prompts_;
  int64_t count_ = 0;
  double position_sum_ = 0;
};

struct TunnelPass {
  std::vector<Prompt> prompts = {};
  int64_t tokens = 0;  // after sharing
};

struct TunnelWork {
  std::vector<std::vector<TunnelPass>> queues = {};  // [rank]
  double mean_context = 0;
  int32_t file_repeats = 0;  // of NAME=FILE: how often it was gone through, less one
  int64_t asked_tokens = 0;  // before sharing
  // Not -1: this rank's load is another than the others', whose speed is to be compared with that
  // in the case `even_case`.
  int32_t odd_rank = -1;
  std::string even_case = {};

  int32_t pass_count() const;  // of the longest queue
  int64_t rank_tokens(int32_t rank) const;
  int64_t smallest_pass() const;  // tokens, of the passes that there are
};

// "256", "uneven", "uneven-2048", "idle" or "double". InvalidArgument for any other name or too
// long a prompt.
absl::StatusOr<TunnelWork> MakeWork(const std::string& name,
                                    const spec::ModelSpec& spec,
                                    int32_t ranks,
                                    int64_t pass_tokens);

// Prompts of a file that belong together.
using PromptGroup = std::vector<Prompt>;

// InvalidArgument if there is no token to deal, or a prompt is too long for the model.
absl::StatusOr<TunnelWork> DealGroups(const std::vector<PromptGroup>& groups,
                                      const spec::ModelSpec& spec,
                                      int32_t ranks,
                                      int64_t pass_tokens);

}  // namespace zp::apps
