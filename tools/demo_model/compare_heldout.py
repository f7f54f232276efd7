"""Asks ZeroPrefill and transformers the same held-out texts and counts where they differ.

    python compare_heldout.py --work WORK --model MODEL_FOLDER --binary ZEROPREFILL [--heldout DIR]

ZeroPrefill answers through `zeroprefill score`, in bf16 and in f32; so does transformers through
evaluate.py's own loop. Prints one table of accuracies and one of the answers that differ, with
their margin (by how much the best label's log-probability exceeds the second's in transformers'
f32) and the largest gap between two log-probabilities of a label above 1 %. Writes the engine's
answers to WORK/engine.PRECISION.jsonl.
"""

import argparse
import json
import math
import pathlib
import subprocess
from types import SimpleNamespace

import torch

from evaluate import PRECISIONS, evaluate, read_lines
from tasks import TASKS

ENGINE, REFERENCE = "zeroprefill", "transformers"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--heldout", type=pathlib.Path, help="default: WORK/heldout")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def write_questions(path, held_out):
    with path.open("w") as file:
        for task, rows in held_out.items():
            for row in rows:
                question = {"task": task, "input": [row["text"]]}
                line = {"custom_id": row["id"], "url": "/v1/classify", "body": question}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def engine_answers(options, precision, held_out):
    """{text id: log-probabilities in the order of the task's labels}"""
    questions = options.work / "questions.jsonl"
    answers = options.work / f"engine.{precision}.jsonl"
    write_questions(questions, held_out)
    command = [options.binary, "score", "--model", options.model, "--dtype", precision]
    command += ["--threads", options.threads, "--overwrite", questions, answers]
    subprocess.run([str(part) for part in command], check=True)
    result = {}
    for line in read_lines(answers):
        if line["error"] is not None:
            raise SystemExit(f"{line['custom_id']}: {line['error']}")
        body = line["response"]["body"]
        log_probabilities = dict(zip(body["labels"], body["data"][0]["log_probs"]))
        task = line["custom_id"].split("-")[0]
        result[line["custom_id"]] = [log_probabilities[label] for label in TASKS[task]["labels"]]
    return result


def reference_answers(options, precision, held_out):
    chosen = SimpleNamespace(model=options.model)
    _, answers, _ = evaluate(chosen, precision, held_out)
    return {name: answer["log_probabilities"] for name, answer in answers.items()}


def best(log_probabilities):
    return max(range(len(log_probabilities)), key=log_probabilities.__getitem__)


def accuracy(task, rows, answers):
    labels = TASKS[task]["labels"]
    return sum(labels[best(answers[row["id"]])] == row["label"] for row in rows) / len(rows)


def margin(log_probabilities):
    first, second = sorted(log_probabilities, reverse=True)[:2]
    return first - second


def largest_gap(one, other):
    """Between two lists of log-probabilities, where both labels are above 1 %."""
    pairs = [pair for pair in zip(one, other) if min(pair) > math.log(0.01)]
    return max((abs(mine - theirs) for mine, theirs in pairs), default=0.0)


def print_accuracies(held_out, answers):
    print("\n| task | texts |", " | ".join(f"{who} {kind}" for who, kind in answers), "|")
    print("|---|---:|" + "---:|" * len(answers))
    for task, rows in held_out.items():
        figures = " | ".join(f"{accuracy(task, rows, given):.4f}" for given in answers.values())
        print(f"| {task} | {len(rows):,} | {figures} |")


def print_differences(held_out, answers, pairs):
    """For every pair of ways to answer: how many answers differ, and the margins of those."""
    judge = answers[REFERENCE, "f32"]
    print("\n| pair | task | answers that differ | their margins | largest gap |")
    print("|---|---|---:|---|---:|")
    for first, second in pairs:
        title = f"{' '.join(first)} / {' '.join(second)}"
        one, other = answers[first], answers[second]
        for task, rows in held_out.items():
            names = [row["id"] for row in rows]
            differing = [name for name in names if best(one[name]) != best(other[name])]
            margins = sorted(margin(judge[name]) for name in differing)
            shown = ", ".join(f"{value:.3f}" for value in margins)
            gap = max(largest_gap(one[name], other[name]) for name in names)
            print(f"| {title} | {task} | {len(differing)} | {shown} | {gap:.4f} |")


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    heldout = options.heldout or options.work / "heldout"
    held_out = {task: read_lines(heldout / f"{task}.jsonl") for task in TASKS}
    answers = {}
    for precision in PRECISIONS:
        answers[ENGINE, precision] = engine_answers(options, precision, held_out)
        answers[REFERENCE, precision] = reference_answers(options, precision, held_out)
    print_accuracies(held_out, answers)
    pairs = [
        ((ENGINE, "f32"), (REFERENCE, "f32")),
        ((ENGINE, "bf16"), (REFERENCE, "bf16")),
        ((ENGINE, "bf16"), (REFERENCE, "f32")),
        ((REFERENCE, "bf16"), (REFERENCE, "f32")),
    ]
    print_differences(held_out, answers, pairs)


if __name__ == "__main__":
    main()
