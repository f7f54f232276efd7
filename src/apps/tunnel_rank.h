// `zeroprefill bench tunnel-rank`: one rank of the wind tunnel, told what to do over its standard
// input (bench_tunnel.h starts it).
//
//   connect HOST ADVERTISEMENT   read HOST's memory from there (hex)
//   mesh                         connect to the other ranks, which are told the same
//   link ADVERTISEMENT           how fast that memory can be read
//   run STRATEGY WARM FILE       WARM + 1 passes over the prompts of FILE, one after the other;
//                                the last is reported. STRATEGY: gather, resident or dispatch
//
// Every answer is one line of JSON; {"error": ...} if it failed.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddTunnelRankCommand(CLI::App& bench);

}  // namespace zp::apps
