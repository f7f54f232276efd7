#include "apps/tunnel_arithmetic.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "fmt/format.h"
#include "spec/flops.h"
#include "spec/saturation.h"

namespace zp::apps {
namespace {

constexpr int64_t kF32Bytes = 4;  // of sums, whatever the activations are

int64_t ExpertBytes(const spec::ModelSpec& spec, int64_t element_bytes) {
  return element_bytes * spec::ExpertParameters(spec);
}

int64_t DenseBytes(const spec::ModelSpec& spec, int64_t element_bytes) {
  int64_t parameters = 2 * int64_t{spec.vocab_count} * spec.model_dim;
  for (int32_t layer = 0; layer < spec.layer_count; ++layer) {
    parameters += spec::LayerDenseParameters(spec, layer);
  }
  return element_bytes * parameters;
}

// Residuals of all rows and of the asked ones (all are asked), their last norm, K and V; then what
// a chunk takes.
int64_t ActivationBytes(const spec::ModelSpec& spec, const TunnelUse& use) {
  constexpr int64_t kProcessBytes = int64_t{192} << 20;
  const int64_t row_bytes =
      (2 * kF32Bytes + use.element_bytes) * spec.model_dim + 2 * use.element_bytes * spec.kv_dim();
  const int64_t chunk_row_bytes =
      2 * use.element_bytes * (int64_t{spec.model_dim} + spec.query_dim() + spec.kv_dim());
  return kProcessBytes + use.pass_tokens * row_bytes +
         std::min(use.pass_tokens, kTunnelChunkTokens) * chunk_row_bytes;
}

// Rows of all ranks that come to one rank, their sums twice, and the partial sums that come back;
// overlapped for three parts, with the rows that are sent.
int64_t DispatchBytes(const spec::ModelSpec& spec, const TunnelUse& use) {
  const auto rows = [&](bool overlaps) {
    return static_cast<double>(
        std::min(use.pass_tokens, DispatchedRows(use.placement.ranks, overlaps)));
  };
  const auto element_bytes = static_cast<double>(use.element_bytes);
  double row_bytes = 0;
  if (use.dispatches) {
    row_bytes += rows(false) * (3 * element_bytes + kF32Bytes);
  }
  if (use.dispatches_overlapped) {
    row_bytes += 3 * rows(true) * (4 * element_bytes + kF32Bytes);
  }
  const double copies = CopiesPerToken(use.placement.set_ranks(), spec.experts_per_token) + 1;
  return static_cast<int64_t>(row_bytes * copies * spec.model_dim);
}

}  // namespace

absl::StatusOr<double> BytesPerFlop(const std::string& balance, int64_t element_bytes) {
  constexpr double kBf16Bytes = 2;
  const double scale = static_cast<double>(element_bytes) / kBf16Bytes;
  if (balance == "h100-nvlink") {
    return scale / 2200;
  }
  if (balance == "pcie5") {
    return scale / 15000;
  }
  double bytes_per_flop = 0;
  if (!absl::SimpleAtod(balance, &bytes_per_flop) || !std::isfinite(bytes_per_flop) ||
      bytes_per_flop <= 0) {
    return absl::InvalidArgumentError(fmt::format(
        "--balance is '{}', but must be h100-nvlink, pcie5 or bytes per FLOP", balance));
  }
  return scale * bytes_per_flop;
}

int64_t DispatchedRows(int32_t ranks, bool overlaps) {
  constexpr int64_t kJointRows = 16384;
  constexpr int64_t kFewestRows = 2048;
  return overlaps ? kFewestRows : std::max(kFewestRows, kJointRows / ranks);
}

int32_t KeptExperts(int32_t expert_count, const TunnelPlacement& placement) {
  return (expert_count + placement.ranks - 1) / placement.ranks * placement.redundancy;
}

double MissingBytes(const spec::ModelSpec& spec,
                    int64_t element_bytes,
                    const TunnelPlacement& placement) {
  return static_cast<double>(ExpertBytes(spec, element_bytes)) *
         (spec.expert_count - KeptExperts(spec.expert_count, placement));
}

// Hosts keep runs of neighbouring experts, one behind the other round the circle
// (experts/placement.h).
std::vector<int32_t> DispatchOwners(int32_t expert_count,
                                    const TunnelPlacement& placement,
                                    int32_t rank) {
  const int32_t set_ranks = placement.set_ranks();
  const int32_t set_begin = rank / set_ranks * set_ranks;
  std::vector<int32_t> owners(expert_count);
  for (int32_t expert = 0; expert < expert_count; ++expert) {
    owners[expert] = set_begin + expert / (expert_count / set_ranks);
  }
  return owners;
}

double CopiesPerToken(int32_t set_ranks, int32_t experts_per_token) {
  return (set_ranks - 1) * (1 - std::pow(1 - 1.0 / set_ranks, experts_per_token));
}

double IdealRatio(const spec::ModelSpec& spec,
                  int64_t element_bytes,
                  const TunnelPlacement& placement,
                  double flops_per_s,
                  double link_bytes_per_s,
                  double context_tokens) {
  const double bytes_per_token = 2.0 * static_cast<double>(element_bytes * spec.model_dim) *
                                 CopiesPerToken(placement.set_ranks(), spec.experts_per_token);
  return 1 + bytes_per_token / link_bytes_per_s * flops_per_s /
                 spec::LayerFlopsPerToken(spec, context_tokens);
}

double CoresPerRank(int32_t ranks, int32_t cores) {
  const int32_t ranks_per_core = (ranks + cores - 1) / cores;
  return ranks_per_core == 1 ? 1 : 0.95 / ranks_per_core;
}

TunnelMemory MemoryFor(const spec::ModelSpec& spec, const TunnelUse& use) {
  const int64_t kept = KeptExperts(spec.expert_count, use.placement);
  const int64_t window = use.gathers ? use.window_slots * (spec.expert_count - kept) : 0;
  const int64_t experts = spec.layer_count * kept + window;
  const int64_t expert_bytes = ExpertBytes(spec, use.element_bytes);
  return {.rank_bytes = DenseBytes(spec, use.element_bytes) + experts * expert_bytes +
                        ActivationBytes(spec, use) + DispatchBytes(spec, use),
          .shared_bytes =
              use.has_resident ? int64_t{spec.layer_count} * spec.expert_count * expert_bytes : 0};
}

}  // namespace zp::apps
