"""Runs the exported model through transformers on the held-out texts, in f32 and in bf16.

    python evaluate.py --work WORK --model MODEL_FOLDER [--heldout DIR]

Writes MODEL_FOLDER/heldout_sample.jsonl (a class-representative part of the held-out texts),
MODEL_FOLDER/heldout_reference.json (answers and label log-probabilities for the sample,
accuracies on everything) and prints the figures of the model card, the evenness of the
experts' load among them.
"""

import argparse
import json
import math
import pathlib
import random
import re
from itertools import zip_longest

import numpy
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks import TASKS, prompt

SAMPLE_TEXTS = {"topic": 120, "language": 90, "spam": 60, "sentiment": 60, "relevance": 80}
UNFIT_TEXT = re.compile(
    r"(?i)\w@\w|porn|sex|xxx|adult|knicker|lollip|viagra|viapro|vigoral|penis|erect\b|nude|teen"
    r"|lesbian|girl|slut|nasty|breast|testosterone|fart|ganja"
)
QUOTES_PERSON = re.compile(r"(?i)\b(wrote|writes|said|mentioned|spake|from|regards|sincerely)\b")
SHORT_MAILS = 50  # of each label
BATCH_TEXTS = 32
PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--heldout", type=pathlib.Path, help="default: WORK/heldout")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def read_lines(path):
    with path.open() as file:
        return [json.loads(line) for line in file]


def pick_sample(rows, count):
    """`count` texts that one may show in a demo, every label in turn; of the mails only short
    ones that do not quote a named person."""
    rows = [row for row in rows if not UNFIT_TEXT.search(row["text"])]
    by_label = {label: [] for label in TASKS[rows[0]["task"]]["labels"]}
    for row in random.Random(7).sample(rows, len(rows)):
        by_label[row["label"]].append(row)
    if rows[0]["task"] == "spam":
        by_label = {label: short_mails(mails) for label, mails in by_label.items()}
    in_turn = zip_longest(*by_label.values())
    return [row for turn in in_turn for row in turn if row is not None][:count]


def short_mails(mails):
    anonymous = [mail for mail in mails if not QUOTES_PERSON.search(mail["text"])]
    return sorted(anonymous, key=lambda mail: len(mail["text"]))[:SHORT_MAILS]


class ExpertLoad:
    """Counts the tokens of every expert by watching the routers; padding is not counted."""

    def __init__(self, model):
        self.per_token = model.config.num_experts_per_tok
        self.is_real = None
        self.counts = []
        for layer in model.model.layers:
            count = torch.zeros(model.config.num_experts, dtype=torch.long)
            self.counts.append(count)
            layer.mlp.gate.register_forward_pre_hook(self.counter(layer.mlp.gate, count))

    def counter(self, router, count):
        def add(_, inputs):
            tokens = inputs[0].reshape(-1, inputs[0].shape[-1])[self.is_real.flatten()]
            scores = torch.nn.functional.linear(tokens, router.weight)
            experts = scores.topk(self.per_token, dim=-1).indices
            count.add_(torch.bincount(experts.flatten(), minlength=len(count)))

        return add

    def figures(self):
        """For every layer: max/min, coefficient of variation, entropy over its maximum."""
        result = []
        for count in self.counts:
            load = count.double()
            share = load / load.sum()
            entropy = -(share * share.clamp(min=1e-12).log()).sum() / math.log(len(load))
            result.append(
                {
                    "max_over_min": round(float(load.max() / load.min().clamp(min=1)), 3),
                    "variation": round(float(load.std(correction=0) / load.mean()), 4),
                    "entropy": round(float(entropy), 5),
                }
            )
        return result


@torch.no_grad()
def label_log_probabilities(model, tokenizer, task, rows, load):
    """Log-probabilities over the task's labels  # [rows, labels]"""
    label_tokens = [tokenizer.encode(label)[0] for label in TASKS[task]["labels"]]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["text"]))
    result = torch.zeros(len(rows), len(label_tokens))
    for start in range(0, len(order), BATCH_TEXTS):
        chosen = order[start : start + BATCH_TEXTS]
        inputs = tokenizer(
            [prompt(task, rows[index]["text"]) for index in chosen],
            return_tensors="pt",
            padding=True,
            padding_side="right",
        )
        load.is_real = inputs["attention_mask"].bool()
        last = inputs["attention_mask"].sum(dim=1) - 1
        hidden = model.model(**inputs).last_hidden_state[torch.arange(len(chosen)), last]
        logits = model.lm_head(hidden)[:, label_tokens]
        result[chosen] = logits.float().log_softmax(dim=-1)
    return result.numpy()


def score(task, rows, log_probabilities):
    labels = TASKS[task]["labels"]
    truth = [row["label"] for row in rows]
    answers = [labels[index] for index in log_probabilities.argmax(axis=1)]
    hits = numpy.array([answer == label for answer, label in zip(answers, truth)])
    figures = {
        "held_out": len(rows),
        "accuracy": round(float(hits.mean()), 4),
        "macro_f1": round(float(f1_score(truth, answers, average="macro")), 4),
    }
    if task == "relevance":
        for kind in ("fits", "any", "same"):
            chosen = [row["id"].endswith(f"-{kind}") for row in rows]
            figures[f"accuracy_{kind}"] = round(float(hits[chosen].mean()), 4)
    return figures


def evaluate(options, precision, held_out):
    """({task: figures}, {text id: answer}, expert load) of one precision."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=PRECISIONS[precision]).eval()
    load = ExpertLoad(model)
    figures, answers = {}, {}
    for task, rows in held_out.items():
        log_probabilities = label_log_probabilities(model, tokenizer, task, rows, load)
        figures[task] = score(task, rows, log_probabilities)
        for row, values in zip(rows, log_probabilities):
            answers[row["id"]] = {
                "label": TASKS[task]["labels"][int(values.argmax())],
                "log_probabilities": [round(float(value), 5) for value in values],
            }
    return figures, answers, load.figures()


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    heldout = options.heldout or options.work / "heldout"
    held_out = {task: read_lines(heldout / f"{task}.jsonl") for task in TASKS}
    sample = [row for task in TASKS for row in pick_sample(held_out[task], SAMPLE_TEXTS[task])]
    with (options.model / "heldout_sample.jsonl").open("w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in sample)
    reference = {
        "about": "transformers' answers; log_probabilities are normalised over the task's labels "
        "and follow their order in tasks.json",
        "accuracy": {},
        "expert_load": {},
        "sample": {row["id"]: {"task": row["task"], "label": row["label"]} for row in sample},
    }
    for precision in PRECISIONS:
        figures, answers, load = evaluate(options, precision, held_out)
        reference["accuracy"][precision] = figures
        reference["expert_load"][precision] = load
        for row in sample:
            reference["sample"][row["id"]][precision] = answers[row["id"]]
        print(precision, json.dumps({"accuracy": figures, "expert_load": load}, indent=1))
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in reference["sample"].items()
    )
    reference["sample"] = "SAMPLE"
    text = json.dumps(reference, indent=1).replace('"SAMPLE"', "{\n" + lines + "\n }")
    (options.model / "heldout_reference.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
