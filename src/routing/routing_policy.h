// How a rank is chosen for a work: one small interface, and the policies that are compared behind
// it.
//
// Thread safety: one call at a time (RequestRouter's lock); policies may keep state.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "routing/ledger.h"
#include "routing/rank_slot.h"

namespace zp::routing {

// A rank as a policy sees it, for one work.
struct RankView {
  RankId id = 0;
  RankSlot slot = 0;
  Outstanding outstanding;  // of the works before this one
  // Of the outstanding, what its running pass does not have in it, and how long that runs already.
  double waiting_flops = 0;
  double pass_elapsed_s = 0;
  double pass_begin_flops = 0;  // outstanding when that pass began: it has no more in it
  double busy_share = 1;        // of the last seconds it had work
  double saturation_flops = 0;  // T*, what a pass computes while it gathers; 0: nothing is gathered
  double flops_per_s = 0;       // while passes run; 0: not known
  double compute_flops_per_s = 0;  // while it computes; 0: not known
  int64_t held_tokens = 0;         // of this work that the rank need not compute
  double cost_flops = 0;           // of this work there: cost(w)
  uint64_t tie_break = 0;          // rendezvous hash of the rank and the work's first blocks

  // Of the rank with this work.
  double total_flops() const { return outstanding.flops + cost_flops; }
};

// Whether the rank's pass runs so much longer than all that was there when it began takes that
// nobody knows when it ends: the rank hangs, or it is far slower than it was. Its host may look
// well all the while.
bool IsOverdue(const RankView& rank);

struct WorkView {
  int64_t prompt_tokens = 0;
  double flops = 0;  // for a rank that holds nothing
};

enum class Reason {
  kOwner,  // holds the longest useful prefix, or is where rendezvous puts a new one
  kFill,   // is busy and not yet saturated
  kLeast,  // has the least to do, or answers soonest
  kRetry,  // another rank refused the work or was lost
};
std::string_view NameOf(Reason reason);

struct Choice {
  size_t index = 0;  // of the ranks seen
  Reason reason = Reason::kLeast;
};

class RoutingPolicy {
 public:
  virtual ~RoutingPolicy() = default;

  // REQUIRES: `ranks` is not empty.
  virtual Choice Choose(const WorkView& work, std::span<const RankView> ranks) = 0;
};

struct PolicyOptions {
  // prefix_flops: the owner may be this much busier than the least loaded.
  double slack = 0.25;
  // full: what a second of a busy rank's compute is worth, in seconds that the work is answered
  // sooner. 0: the soonest answer, whatever is computed twice for it; infinite: the least work,
  // whatever the wait.
  double compute_weight = 8;
  // cache_aware: the ranks are out of balance when the numbers of their requests differ by more
  // than `balance_absolute` and by more than the factor `balance_relative`; then the prefix is
  // ignored. Else it counts when it is more than `min_match` of the prompt.
  double min_match = 0.3;
  int64_t balance_absolute = 64;
  double balance_relative = 1.5;
};

// round_robin    one after the other
// least_requests fewest requests
// cache_aware    the longest prefix, or the fewest requests (SGLang's gateway)
// least_tokens   fewest asked tokens
// flops          least outstanding FLOPs
// prefix         the longest prefix, whatever the load
// prefix_flops   the owner of the prefix while it is not much busier than the others
// full           where seconds until the answer and compute, weighed, are least (decision 0025)
const std::vector<std::string>& PolicyNames();

// InvalidArgument, with the names there are, for any other.
absl::StatusOr<std::unique_ptr<RoutingPolicy>> MakePolicy(std::string_view name,
                                                          const PolicyOptions& options = {});

}  // namespace zp::routing
