#!/usr/bin/env python3
"""Compares the speed of `zeroprefill bench forward` with llama-bench of peer engines.

All engines run the same work, one prompt through a cut model with random weights, one after the
other, for several rounds; each round starts with another engine, so that slow drift of the
machine's clock touches all alike. Prints one JSON line: tokens/s of each engine (median and range
over the rounds), the ratio ours/peer, and the share of the bf16 peak that each one reached.

    tools/compare_peers.py --ours build/release/zeroprefill \\
        'llama.cpp=llama-bench -m qwen3-30b-a3b-4l.gguf -t 2 -p 2048 -n 0 -b 2048 -ub 2048 -r 1'

A model larger than memory is compared with `--ours-bench stream`: our experts stream from files,
the peer maps its file (tools/make_random_gguf.py writes one). Several prompts then share a pass of
ours (`--pass-tokens`); llama-bench runs one at a time.

Every engine's share is its tokens/s times the floating-point operations per token of our own
line, over the bf16 peak that our own line measured. The count is the same for all, since
llama.cpp and its forks, too, compute logits for the last token only and drop the other tokens
before the last layer's feed-forward block. An engine that computes in int8 is so measured by the
same useful work against the bf16 peak. A peer's model must hold the shape and the layers given
here; its thread count is the -t of its own command line. Nothing is built or fetched.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys


class RunError(Exception):
    """An engine failed, or printed something that cannot be compared."""


def run_for_stdout(name, command, timeout_seconds):
    """Runs one command and returns what it printed on stdout."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise RunError(f"{name}: no result after {timeout_seconds:g} s") from None
    except OSError as error:
        raise RunError(f"{name}: cannot run {command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RunError(f"{name}: exit status {done.returncode}\n{last_lines}".rstrip())
    return done.stdout


def parse_records(name, text):
    """Reads the JSON objects in `text`: one array, or one object a line among other lines."""
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except json.JSONDecodeError:
        pass
    lines = [line for line in text.splitlines() if line.startswith("{")]
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise RunError(f"{name}: output is not JSON: {error}") from None


def parse_single_record(name, text, fields):
    """Reads the one record that an engine must print, and checks that it has `fields`."""
    records = parse_records(name, text)
    if len(records) != 1:
        raise RunError(f"{name}: {len(records)} results, expected 1 (one case per engine)")
    missing = [field for field in fields if field not in records[0]]
    if missing:
        raise RunError(f"{name}: result lacks {', '.join(missing)}")
    return records[0]


class Ours:
    """Our engine, run as `zeroprefill bench forward --json`, or `bench stream`."""

    name = "zeroprefill"

    def __init__(self, options):
        self.command = [options.ours, "bench", options.ours_bench, "--shape", options.shape]
        self.command += ["--layers", str(options.layers)]
        self.command += ["--tokens", str(options.pass_tokens or options.tokens)]
        self.command += ["--prompt-tokens", str(options.tokens), "--json"]
        if options.ours_bench == "stream":
            self.command += ["--rounds", "1", "--resident-layers", "2"]
        self.command += shlex.split(options.ours_args)

    def read_speed(self, stdout):
        """Returns tokens/s and the whole record."""
        fields = ("tokens_per_s", "flops_per_s", "peak_flops_per_s")
        record = parse_single_record(self.name, stdout, fields)
        return record["tokens_per_s"], record


class Peer:
    """A peer engine, run as its llama-bench with JSON output."""

    def __init__(self, text, options):
        self.name, separator, command = text.partition("=")
        self.command = shlex.split(command)
        if not separator or not self.name or not self.command:
            raise RunError(f"peer '{text}': expected name=llama-bench command line")
        if not {"-o", "--output"} & set(self.command):
            self.command += ["-o", "json"]
        self.tokens = options.tokens

    def read_speed(self, stdout):
        """Returns tokens/s, the median over the repetitions of this run, and the whole record."""
        record = parse_single_record(self.name, stdout, ("samples_ts", "n_prompt", "n_gen"))
        if (record["n_prompt"], record["n_gen"]) != (self.tokens, 0):
            raise RunError(f"{self.name}: ran another case; pass -p {self.tokens} -n 0")
        return statistics.median(record["samples_ts"]), record


def run_rounds(engines, options):
    """Runs all engines interleaved; returns per engine name its list of (tokens/s, record)."""
    results = {engine.name: [] for engine in engines}
    wrapper = shlex.split(options.wrapper)
    for round_index in range(options.rounds):
        first = round_index % len(engines)
        for engine in engines[first:] + engines[:first]:
            stdout = run_for_stdout(engine.name, wrapper + engine.command, options.timeout_seconds)
            tokens_per_s, record = engine.read_speed(stdout)
            results[engine.name].append((tokens_per_s, record))
            progress = f"round {round_index + 1}/{options.rounds} {engine.name}"
            print(f"{progress}: {tokens_per_s:.1f} tokens/s", file=sys.stderr, flush=True)
    return results


def summarize(results, options):
    """Builds the report from the results of all rounds."""
    our_speeds = [speed for speed, _ in results[Ours.name]]
    our_records = [record for _, record in results[Ours.name]]
    peak_flops_per_s = statistics.median(record["peak_flops_per_s"] for record in our_records)
    flops_per_token = our_records[0].get("flops_per_token")
    if flops_per_token is None:
        flops_per_token = our_records[0]["flops_per_s"] / our_records[0]["tokens_per_s"]

    engines = {}
    for name, result in results.items():
        speeds = [speed for speed, _ in result]
        median = statistics.median(speeds)
        engine = {
            "tokens_per_s": round(median, 1),
            "tokens_per_s_range": [round(min(speeds), 1), round(max(speeds), 1)],
            "peak_share": round(median * flops_per_token / peak_flops_per_s, 4),
        }
        if name != Ours.name:
            ratios = [ours / theirs for ours, theirs in zip(our_speeds, speeds)]
            engine["ours_over_this"] = round(statistics.median(our_speeds) / median, 3)
            engine["ours_over_this_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
            record = result[0][1]
            shown = ("model_type", "n_threads", "n_batch", "n_ubatch", "build_commit")
            engine["setting"] = {key: record[key] for key in shown if key in record}
        engines[name] = engine

    return {
        "shape": options.shape,
        "layers": options.layers,
        "tokens": options.tokens,
        "pass_tokens": options.pass_tokens or options.tokens,
        "rounds": options.rounds,
        "flops_per_token": flops_per_token,
        "peak_flops_per_s": peak_flops_per_s,
        "engines": engines,
    }


def parse_options(arguments):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ours", required=True, help="path of the zeroprefill binary")
    parser.add_argument(
        "--ours-bench", default="forward", choices=["forward", "stream"], help="our bench"
    )
    parser.add_argument("--ours-args", default="", help="more arguments for our bench")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="model shape of our bench")
    parser.add_argument("--layers", type=int, default=4, help="layers of the cut model")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of the one prompt")
    parser.add_argument(
        "--pass-tokens", type=int, default=0, help="tokens of our pass; 0: one prompt alone"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each engine")
    parser.add_argument("--timeout-seconds", type=float, default=600, help="limit of one run")
    parser.add_argument("--wrapper", default="", help="command put before each run, e.g. numactl")
    parser.add_argument("peers", nargs="*", metavar="name=command", help="a peer's llama-bench")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be at least 1")
    return options


def main(arguments):
    options = parse_options(arguments)
    try:
        engines = [Ours(options)] + [Peer(text, options) for text in options.peers]
        names = [engine.name for engine in engines]
        if len(set(names)) != len(names):
            raise RunError(f"engine names must differ: {', '.join(names)}")
        print(json.dumps(summarize(run_rounds(engines, options), options)))
    except RunError as error:
        print(f"compare_peers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
