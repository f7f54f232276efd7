#include "apps/bench.h"

#include "apps/bench_batching.h"
#include "apps/bench_cache.h"
#include "apps/bench_fabric.h"
#include "apps/bench_flops.h"
#include "apps/bench_forward.h"
#include "apps/bench_load.h"
#include "apps/bench_ranks.h"
#include "apps/bench_router.h"
#include "apps/bench_routing.h"
#include "apps/bench_sharing.h"
#include "apps/bench_stream.h"
#include "apps/bench_tunnel.h"
#include "apps/bench_workplane.h"
#include "apps/tunnel_rank.h"

namespace zp::apps {

void AddBenchCommand(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Measure this machine and this build");
  bench->require_subcommand(1);
  AddBenchBatchingCommand(*bench);
  AddBenchCacheCommand(*bench);
  AddBenchFabricCommand(*bench);
  AddBenchFlopsCommand(*bench);
  AddBenchForwardCommand(*bench);
  AddBenchLoadCommand(*bench);
  AddBenchRanksCommand(*bench);
  AddBenchRouterCommand(*bench);
  AddBenchRoutingCommand(*bench);
  AddBenchSharingCommand(*bench);
  AddBenchStreamCommand(*bench);
  AddBenchTunnelCommand(*bench);
  AddBenchWorkplaneCommand(*bench);
  AddTunnelRankCommand(*bench);
}

}  // namespace zp::apps
