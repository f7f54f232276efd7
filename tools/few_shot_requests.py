#!/usr/bin/env python3
"""Writes few-shot requests as an evaluation sends them: every label of every question, one a line.

    tools/few_shot_requests.py MODEL_DIRECTORY [--shots 5]

Made of the held-out sample beside the model (heldout_sample.jsonl, tasks.json): the first texts of
a task, with their labels, are the examples; each further text is a question. A line is
{"context": ..., "continuation": ...}, for `zeroprefill bench sharing` and `zeroprefill score`.
"""

import argparse
import json
import pathlib


def few_shot_requests(tasks, sample, shot_count):
    """Yields the requests, task by task."""
    for name, task in tasks.items():
        texts = [line for line in sample if line["task"] == name]
        prompts = [task["template"].replace("{text}", line["text"]) for line in texts]
        examples = "".join(
            f"{prompt}{line['label']}\n\n" for prompt, line in zip(prompts[:shot_count], texts)
        )
        for prompt in prompts[shot_count:]:
            for label in task["labels"]:
                yield {"context": examples + prompt, "continuation": label}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--shots", type=int, default=5)
    arguments = parser.parse_args()
    tasks = json.loads((arguments.model / "tasks.json").read_text(encoding="utf-8"))
    lines = (arguments.model / "heldout_sample.jsonl").read_text(encoding="utf-8").splitlines()
    for request in few_shot_requests(tasks, [json.loads(line) for line in lines], arguments.shots):
        print(json.dumps(request, ensure_ascii=False))


if __name__ == "__main__":
    main()
