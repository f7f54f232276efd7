#include "routing/routing_policy.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"

namespace zp::routing {
namespace {

using Ranks = std::span<const RankView>;

// The rank with the smallest `number`; among equals the one that rendezvous hashing puts first.
template <typename Number>
size_t Least(Ranks ranks, Number number) {
  const auto least = std::ranges::min_element(
      ranks, {}, [&](const RankView& rank) { return std::pair(number(rank), rank.tie_break); });
  return static_cast<size_t>(least - ranks.begin());
}

size_t LeastRequests(Ranks ranks) {
  return Least(ranks, [](const RankView& rank) { return rank.outstanding.requests; });
}

size_t LeastTotal(Ranks ranks) {
  return Least(ranks, [](const RankView& rank) { return rank.total_flops(); });
}

// The longest useful prefix.
size_t Owner(Ranks ranks) {
  return Least(ranks, [](const RankView& rank) { return rank.cost_flops; });
}

class RoundRobin final : public RoutingPolicy {
 public:
  Choice Choose(const WorkView&, Ranks ranks) override { return {.index = next_++ % ranks.size()}; }

 private:
  size_t next_ = 0;
};

// Policies that keep nothing.
class Stateless final : public RoutingPolicy {
 public:
  using Function = std::function<Choice(const WorkView&, Ranks)>;
  explicit Stateless(Function choose) : choose_(std::move(choose)) {}
  Choice Choose(const WorkView& work, Ranks ranks) override { return choose_(work, ranks); }

 private:
  const Function choose_;
};

Choice CacheAware(const PolicyOptions& options, const WorkView& work, Ranks ranks) {
  const auto [low, high] = std::ranges::minmax(
      ranks, {}, [](const RankView& rank) { return rank.outstanding.requests; });
  const int64_t least = low.outstanding.requests;
  const int64_t most = high.outstanding.requests;
  const bool is_balanced =
      most - least <= options.balance_absolute ||
      static_cast<double>(most) <= options.balance_relative * static_cast<double>(least);
  const size_t owner = Owner(ranks);
  const double match = static_cast<double>(ranks[owner].held_tokens) /
                       static_cast<double>(std::max<int64_t>(work.prompt_tokens, 1));
  return is_balanced && match > options.min_match ? Choice{.index = owner, .reason = Reason::kOwner}
                                                  : Choice{.index = LeastRequests(ranks)};
}

Choice PrefixFlops(const PolicyOptions& options, const WorkView&, Ranks ranks) {
  const size_t owner = Owner(ranks);
  const size_t least = LeastTotal(ranks);
  return ranks[owner].total_flops() <= ranks[least].total_flops() * (1 + options.slack)
             ? Choice{.index = owner, .reason = Reason::kOwner}
             : Choice{.index = least};
}

double SpeedOf(const RankView& rank) {
  return rank.compute_flops_per_s > 0 ? rank.compute_flops_per_s : 1;
}

// A pass takes its compute or its gathers, whichever lasts longer. Before a speed is known there
// are no seconds, and work alone counts.
double PassSeconds(const RankView& rank, double flops) {
  const bool is_speed_known = rank.compute_flops_per_s > 0;
  return is_speed_known ? std::max(flops, rank.saturation_flops) / SpeedOf(rank) : flops;
}

// Until the pass ends that has this work in it: the next one, with all that waits.
double SecondsToAnswer(const RankView& rank) {
  const double waiting_flops = std::min(rank.waiting_flops, rank.outstanding.flops);
  double rest_s = 0;
  if (rank.outstanding.requests > 0) {
    const double pass_s = PassSeconds(rank, rank.outstanding.flops - waiting_flops);
    rest_s = std::max(0.0, pass_s - rank.pass_elapsed_s);
  }
  return rest_s + PassSeconds(rank, waiting_flops + rank.cost_flops);
}

double MeanSpeed(Ranks ranks) {
  double sum = 0;
  for (const RankView& rank : ranks) {
    sum += SpeedOf(rank);
  }
  return sum / static_cast<double>(ranks.size());
}

// What the choice costs this work and all others: the seconds until its answer, and the compute
// that the ranks then lack for others. The work counts at the speed of all: what a rank computes
// twice is lost to all, and of like ranks the one whose speed was just measured a little higher
// must not draw prefixes from their owners. Nobody lacks the compute of a rank that is idle most of
// the time.
Choice Full(const PolicyOptions& options, const WorkView&, Ranks ranks) {
  const double flops_weight = options.compute_weight / MeanSpeed(ranks);
  const size_t best = Least(ranks, [&](const RankView& rank) {
    const double lacked = std::min(1.0, 2 * rank.busy_share);
    return std::pair(SecondsToAnswer(rank) + lacked * flops_weight * rank.cost_flops,
                     rank.cost_flops);
  });
  const RankView& rank = ranks[best];
  if (rank.held_tokens > 0 && rank.cost_flops <= ranks[Owner(ranks)].cost_flops) {
    return {.index = best, .reason = Reason::kOwner};
  }
  const bool is_filled =
      rank.outstanding.requests > 0 && rank.total_flops() <= rank.saturation_flops;
  return {.index = best, .reason = is_filled ? Reason::kFill : Reason::kLeast};
}

}  // namespace

bool IsOverdue(const RankView& rank) {
  constexpr double kPatience = 4;  // times as long: speeds are averages, and drift
  // Short passes wait for a core or for a link, and works that others brought to the rank, or whose
  // prefix did not come after all, are not in what was thought.
  constexpr double kPatienceSeconds = 30;
  return rank.outstanding.requests > 0 && rank.compute_flops_per_s > 0 &&
         rank.pass_elapsed_s >
             kPatienceSeconds + kPatience * PassSeconds(rank, rank.pass_begin_flops);
}

std::string_view NameOf(Reason reason) {
  switch (reason) {
    case Reason::kOwner:
      return "owner";
    case Reason::kFill:
      return "fill";
    case Reason::kLeast:
      return "least";
    case Reason::kRetry:
      return "retry";
  }
  return "";
}

const std::vector<std::string>& PolicyNames() {
  static const auto* const names = new std::vector<std::string>{"round_robin",
                                                                "least_requests",
                                                                "cache_aware",
                                                                "least_tokens",
                                                                "flops",
                                                                "prefix",
                                                                "prefix_flops",
                                                                "full"};
  return *names;
}

absl::StatusOr<std::unique_ptr<RoutingPolicy>> MakePolicy(std::string_view name,
                                                          const PolicyOptions& options) {
  const auto stateless = [](Stateless::Function choose) {
    return std::make_unique<Stateless>(std::move(choose));
  };
  if (name == "round_robin") {
    return std::make_unique<RoundRobin>();
  }
  if (name == "least_requests") {
    return stateless(
        [](const WorkView&, Ranks ranks) { return Choice{.index = LeastRequests(ranks)}; });
  }
  if (name == "least_tokens") {
    return stateless([](const WorkView&, Ranks ranks) {
      return Choice{.index =
                        Least(ranks, [](const RankView& rank) { return rank.outstanding.tokens; })};
    });
  }
  if (name == "flops") {
    return stateless([](const WorkView&, Ranks ranks) {
      return Choice{.index =
                        Least(ranks, [](const RankView& rank) { return rank.outstanding.flops; })};
    });
  }
  if (name == "prefix") {
    return stateless([](const WorkView&, Ranks ranks) {
      return Choice{.index = Owner(ranks), .reason = Reason::kOwner};
    });
  }
  const auto with_options = [&](auto choose) {
    return stateless([choose, options](const WorkView& work, Ranks ranks) {
      return choose(options, work, ranks);
    });
  };
  if (name == "cache_aware") {
    return with_options(CacheAware);
  }
  if (name == "prefix_flops") {
    return with_options(PrefixFlops);
  }
  if (name == "full") {
    return with_options(Full);
  }
  return absl::InvalidArgumentError(
      fmt::format("'{}' is no routing policy; there are {}", name, fmt::join(PolicyNames(), ", ")));
}

}  // namespace zp::routing
