"""Trains the byte-level BPE vocabulary of zeroprefill-mini and checks that labels are tokens.

Same pipeline as Qwen2/Qwen3: NFC, their split pattern, byte-level BPE. The labels are fed to
the trainer many times, so that each becomes one token by construction.

    python train_tokenizer.py --work WORK

Reads WORK/data/plain_text.jsonl, writes WORK/model/{tokenizer,tokenizer_config}.json.
"""

import argparse
import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tasks import TASKS, all_labels, prompt

VOCABULARY_SIZE = 16384
LABEL_REPEATS = 20000
END_OF_TEXT = "<|endoftext|>"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    return parser.parse_args()


def new_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def training_texts(path):
    """The plain texts, then every label and template word often enough to become a token."""
    with path.open() as file:
        for line in file:
            yield json.loads(line)["text"]
    words = all_labels() + [task["template"].split("\n")[1] for task in TASKS.values()]
    for word in words:
        yield from (word for _ in range(LABEL_REPEATS))


def check_labels(tokenizer):
    """A label must stay its own single token right after its prompt."""
    for name, task in TASKS.items():
        start = prompt(name, "Some text.")
        for label in task["labels"]:
            if tokenizer.encode(start + label).ids[:-1] != tokenizer.encode(start).ids:
                raise SystemExit(f"label {label!r} of task {name} is not one token")


def main():
    options = arguments()
    tokenizer = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = training_texts(options.work / "data" / "plain_text.jsonl")
    tokenizer.train_from_iterator(texts, trainer)
    check_labels(tokenizer)
    folder = options.work / "model"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{tokenizer.get_vocab_size()} tokens, all {len(all_labels())} labels single")


if __name__ == "__main__":
    main()
