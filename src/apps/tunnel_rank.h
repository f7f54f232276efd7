// `zeroprefill bench tunnel-rank`: one rank of the wind tunnel, told what to do over its standard
// input (bench_tunnel.h starts it). It keeps to its core, with all its threads.
//
//   peak SECONDS best|mean       its FLOP/s: the best moment, or the mean (under a quota)
//   load                         its share of the experts, which is held out to the others
//   connect HOST ADVERTISEMENT   read HOST's memory from there (hex)
//   mesh                         connect to the other ranks, which are told the same
//   link HOST ADVERTISEMENT      how fast that memory of HOST can be read
//   cpu                          its user and system time so far
//   run STRATEGY WARM PASSES [FILE...]
//                                a queue of passes over the prompts of each file, back to back and
//                                timed together, after WARM passes over the first. A rank with
//                                fewer files than PASSES takes part in the passes of the others
//                                where its strategy dispatches. STRATEGY: as in `bench tunnel`
//
// Every answer is one line of JSON; {"error": ...} if it failed.
#pragma once

#include "CLI/CLI.hpp"

namespace zp::apps {

void AddTunnelRankCommand(CLI::App& bench);

}  // namespace zp::apps
