#!/usr/bin/env python3
"""Times our tokenizer against Hugging Face `tokenizers`, one thread each, in one run.

    tools/bench_tokenizer.py --binary build/release/src/text/text_encode [--shared ../shared] [--tokenizer FILE]

A few MB of mixed text (mails, evaluation prompts, package descriptions in many languages, source
code) in pieces as they come. Rounds take turns: ours, `encode` text by text, `encode_batch` and
`encode_batch_fast` of everything at once. Prints one JSON line with the medians in MB/s; `ratio` is against the fastest of the
three. Needs `pip install tokenizers`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import compare_tokenizers
import tokenizer_texts

KIND_BYTES = 1_200_000


def some(texts):
    """Evenly spread texts of about KIND_BYTES together."""
    texts = [text.decode("utf-8", "replace") for text in texts]
    total = sum(map(len, texts))
    step = max(1, total // KIND_BYTES)
    return texts[::step]


def mixed_texts(shared, lists):
    yield from some(tokenizer_texts.corpora(shared))
    yield from some(tokenizer_texts.workloads(shared, 300))
    yield from some(tokenizer_texts.translations(lists, 250))
    yield from some(tokenizer_texts.source_code(100))


def timed(function):
    start = time.perf_counter()
    token_count = function()
    return time.perf_counter() - start, token_count


def machine():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--shared", default=os.path.join(compare_tokenizers.ROOT, "..", "shared"))
    parser.add_argument("--lists", default="/var/lib/apt/lists")
    parser.add_argument("--tokenizer", help="a tokenizer.json; default: Qwen3's in SHARED")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        source = arguments.tokenizer or f"{arguments.shared}/tokenizers/qwen3/tokenizer.json.xz"
        path = compare_tokenizers.unpacked(source, folder)
        texts = list(mixed_texts(arguments.shared, arguments.lists))
        encoded = [text.encode() for text in texts]
        records = os.path.join(folder, "texts")
        compare_tokenizers.write_records(encoded, records)
        judge = tokenizers.Tokenizer.from_file(path)
        ours = subprocess.Popen([arguments.binary, path, records], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def our_run():
            ours.stdin.write("\n")
            ours.stdin.flush()
            seconds, token_count = ours.stdout.readline().split()
            return float(seconds), int(token_count)

        contestants = {
            "ours": our_run,
            "encode": lambda: timed(lambda: sum(len(judge.encode(text)) for text in texts)),
            "encode_batch": lambda: timed(lambda: sum(map(len, judge.encode_batch(texts)))),
            "encode_batch_fast": lambda: timed(lambda: sum(map(len, judge.encode_batch_fast(texts)))),
        }
        seconds = {name: [] for name in contestants}
        token_counts = set()
        for round_index in range(arguments.rounds + 1):
            for name, run in contestants.items():
                elapsed, token_count = run()
                token_counts.add(token_count)
                if round_index > 0:  # the first round warms caches
                    seconds[name].append(elapsed)
        ours.stdin.close()
        ours.wait()

    text_bytes = sum(map(len, encoded))
    mb_per_s = {name: text_bytes / statistics.median(runs) / 1e6 for name, runs in seconds.items()}
    theirs = max(rate for name, rate in mb_per_s.items() if name != "ours")
    print(
        json.dumps(
            {
                "bench": "tokenizer",
                "tokenizer": os.path.relpath(source, compare_tokenizers.ROOT),
                "machine": machine(),
                "tokenizers_version": tokenizers.__version__,
                "texts": len(texts),
                "text_bytes": text_bytes,
                "tokens": token_counts.pop(),
                "same_token_count": not token_counts,
                "rounds": arguments.rounds,
                **{f"{name}_mb_per_s": round(rate, 2) for name, rate in mb_per_s.items()},
                "ratio": round(mb_per_s["ours"] / theirs, 2),
            }
        )
    )
    sys.exit(1 if token_counts else 0)


if __name__ == "__main__":
    main()
