// What the ranks of the wind tunnel measured, and what a case tells: one JSON line.
//
// Throughput of a round is all ranks' tokens over the time until the last rank is through. For
// gather that counts against ranks that were through earlier, although in service they would go on
// at once; `busy_tokens_per_s`, the sum of the ranks' own rates, is what they do while all have
// work. Under dispatch all ranks end together and the two agree.
//
// Thread safety: none.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "apps/tunnel_arithmetic.h"
#include "apps/tunnel_cases.h"
#include "base/status.h"
#include "boost/json.hpp"
#include "spec/dtype.h"
#include "spec/model_spec.h"

namespace zp::apps {

// One rank's queue of passes.
struct RankRun {
  int64_t tokens = 0;
  double seconds = 0;
  double wait_seconds = 0;
  double gather_seconds = 0;
  double gathered_bytes = 0;  // or what dispatch received
  double flops = 0;
  double cpu_seconds = 0;
  uint64_t answers_checksum = 0;

  static absl::StatusOr<RankRun> FromJson(const boost::json::object& object);
  boost::json::object ToJson() const;
};

// One strategy over one case: a number per round.
struct StrategyRounds {
  std::vector<double> tokens_per_s = {};
  std::vector<double> busy_tokens_per_s = {};
  std::vector<double> others_tokens_per_s = {};  // of each rank but the last, mean
  std::vector<double> flops_per_s = {};          // of a rank that computes
  std::vector<double> wait_fraction = {};
  std::vector<double> cpu_fraction = {};
  std::vector<double> bytes_per_pass = {};  // brought to a rank
  std::vector<double> gather_bytes_per_s = {};
  std::vector<uint64_t> answers_checksums = {};  // of all ranks' answers

  // `runs`: of the ranks that took part.
  void Record(const std::vector<RankRun>& runs, int32_t pass_count);
};

struct TunnelCase {
  std::string name = {};
  TunnelWork work = {};
  std::map<std::string, StrategyRounds> strategies = {};
};

// What holds for all cases of a run.
struct TunnelSetting {
  std::string shape = {};
  std::string balance = {};
  spec::ModelSpec spec = {};
  TunnelPlacement placement = {};
  int rounds = 0;
  double load = 0;               // in units of T*; 0: tokens were given
  double cores_per_rank = 1;     // below 1: enforced by a CPU quota
  double peak_flops_per_s = 0;   // of a rank, under its quota
  std::string links = "shaped";  // what kind
  spec::DType dtype = spec::DType::kBf16;
  double bytes_per_flop = 0;            // of the balance, for elements of this type
  double nominal_link_bytes_per_s = 0;  // what a link is set to
  double link_bytes_per_s = 0;          // as measured
  double link_cpu_s_per_gb = 0;
  double huge_page_fraction = 1;  // of the resident strategy's experts
};

int64_t ElementBytes(const TunnelSetting& setting);

// T* of a rank that achieves so many FLOP/s.
double TunnelSaturation(const TunnelSetting& setting, double flops_per_s, double context_tokens);

// `even` may be null: the case that the other ranks' speed is compared with (TunnelWork::odd_rank).
boost::json::object ReportCase(const TunnelSetting& setting,
                               const TunnelCase& tunnel_case,
                               const TunnelCase* even);

}  // namespace zp::apps
