#!/usr/bin/env python3
"""Compares what lm-evaluation-harness reads from a running server with `zeroprefill score` and with transformers.

    python3 -m venv VENV && VENV/bin/pip install 'lm_eval[api]'
    build/release/zeroprefill serve --model models/zeroprefill-mini --port 8000 &
    VENV/bin/python tools/check_lm_eval.py --url http://127.0.0.1:8000 [--dtype bf16] [--texts 20]

The questions are held-out texts of every task with every label. They go through the harness' own
local-completions model (its tokenizing over the wire, its requests, its reading of the answers), as
tokens and as text, one by one and in batches over several connections. Then:

- `zeroprefill score` must give the same log-likelihood to 1e-9, and the same "is greedy";
- normalised over a task's labels they are compared with transformers' answers, which lie beside
  the model (heldout_reference.json, five decimals). The most likely label must be the same, unless
  transformers finds both as likely to within the rounding of a logit. In f32 all must agree to 1e-3;
  in bf16 two implementations round differently, and the largest difference is only printed.

Prints one JSON line per way of asking; exits with 1 if one disagrees.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "zeroprefill-mini"
SCORE_LIMIT = 1e-9  # the same floats, summed
F32_LIMIT = 1e-3
TIE = {"f32": F32_LIMIT, "bf16": 0.0625}  # bf16 logits from 8 to 16 are multiples of 0.0625

WAYS = {
    "tokens, one by one": {"tokenized_requests": True},
    "tokens, batches": {"tokenized_requests": True, "batch_size": 16},
    "tokens, batches, 4 connections": {
        "tokenized_requests": True,
        "batch_size": 8,
        "num_concurrent": 4,
    },
    "text, one by one": {"tokenized_requests": False},
    "text, batches, 4 connections": {
        "tokenized_requests": False,
        "batch_size": 8,
        "num_concurrent": 4,
    },
}


def read_questions(text_count):
    """Held-out texts, `text_count` of each task: (id, [(context, label), ...])."""
    tasks = json.loads((MODEL / "tasks.json").read_text(encoding="utf-8"))
    left = dict.fromkeys(tasks, text_count)
    questions = []
    for line in (MODEL / "heldout_sample.jsonl").read_text(encoding="utf-8").splitlines():
        text = json.loads(line)
        if left[text["task"]] == 0:
            continue
        left[text["task"]] -= 1
        task = tasks[text["task"]]
        context = task["template"].replace("{text}", text["text"])
        questions.append((text["id"], [(context, label) for label in task["labels"]]))
    return questions


def ask_harness(url, options, pairs):
    """(log-likelihood, is greedy) of each pair, as the harness reads them."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        model=MODEL.name, base_url=f"{url}/v1/completions", tokenizer_backend="remote", **options
    )
    return model.loglikelihood(
        [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index)
            for index, pair in enumerate(pairs)
        ]
    )


def ask_score(binary, dtype, pairs):
    """The same from `zeroprefill score`."""
    with tempfile.TemporaryDirectory() as directory:
        questions = pathlib.Path(directory, "questions.jsonl")
        answers = pathlib.Path(directory, "answers.jsonl")
        with questions.open("w", encoding="utf-8") as file:
            for context, continuation in pairs:
                line = {"context": context, "continuation": continuation}
                file.write(json.dumps(line) + "\n")
        subprocess.run(
            [binary, "score", "--model", str(MODEL), "--dtype", dtype, questions, answers],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        results = []
        for line in answers.read_text(encoding="utf-8").splitlines():
            body = json.loads(line)["response"]["body"]["data"][0]
            results.append((body["log_prob"], body["is_greedy"]))
        return results


def normalised(log_likelihoods):
    """Log-probabilities over the labels alone."""
    largest = max(log_likelihoods)
    total = largest + math.log(sum(math.exp(value - largest) for value in log_likelihoods))
    return [value - total for value in log_likelihoods]


def compare_with_transformers(questions, answers, dtype):
    """The largest difference over all labels, and how many texts clearly get another label."""
    reference = json.loads((MODEL / "heldout_reference.json").read_text(encoding="utf-8"))["sample"]
    largest = 0
    other_labels = 0
    begin = 0
    for text_id, pairs in questions:
        ours = normalised([answer[0] for answer in answers[begin : begin + len(pairs)]])
        begin += len(pairs)
        theirs = reference[text_id][dtype]["log_probabilities"]
        largest = max(largest, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
        other_labels += max(theirs) - theirs[ours.index(max(ours))] > TIE[dtype]
    return largest, other_labels


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16", help="of the server")
    parser.add_argument("--texts", type=int, default=20, help="of each task")
    parser.add_argument("--binary", default=str(ROOT / "build/release/zeroprefill"))
    arguments = parser.parse_args()

    questions = read_questions(arguments.texts)
    pairs = [pair for _, question_pairs in questions for pair in question_pairs]
    scored = ask_score(arguments.binary, arguments.dtype, pairs)
    all_agree = True
    for way, options in WAYS.items():
        answers = ask_harness(arguments.url, options, pairs)
        from_score = max(abs(a[0] - b[0]) for a, b in zip(answers, scored, strict=True))
        greedy_differs = sum(a[1] != b[1] for a, b in zip(answers, scored, strict=True))
        from_transformers, other_labels = compare_with_transformers(
            questions, answers, arguments.dtype
        )
        agrees = from_score <= SCORE_LIMIT and greedy_differs == 0 and other_labels == 0
        agrees = agrees and (arguments.dtype == "bf16" or from_transformers <= F32_LIMIT)
        all_agree = all_agree and agrees
        line = {
            "way": way,
            "requests": len(pairs),
            "largest_difference_from_score": from_score,
            "greedy_differs": greedy_differs,
            "largest_difference_from_transformers": from_transformers,
            "other_labels": other_labels,
            "agrees": agrees,
        }
        print(json.dumps(line), flush=True)
    return 0 if all_agree else 1


if __name__ == "__main__":
    sys.exit(main())
