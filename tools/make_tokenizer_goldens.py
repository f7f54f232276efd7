#!/usr/bin/env python3
"""Writes src/text/testdata: two small tokenizers and what Hugging Face `tokenizers` makes of some texts.

    tools/make_tokenizer_goldens.py [--shared ../shared] [--lists /var/lib/apt/lists]

The goldens cover these two, every tokenizer in models/ and, where SHARED is there, the four in
SHARED/tokenizers. The texts come from tools/tokenizer_texts.py. Needs `pip install tokenizers`.
"""

import argparse
import glob
import hashlib
import json
import os
import random
import tempfile

import compare_tokenizers
import tokenizer_texts

ROOT = compare_tokenizers.ROOT
TESTDATA = os.path.join(ROOT, "src/text/testdata")
SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind.",
    "Package descriptions in thirteen languages: naïve café, Größe, señor, 日本語, русский.",
    "for (int i = 0; i < 1024; ++i) { total += values[i] * 3; }  // sums\n\n\treturn total;",
    "In 2023 some 4,096 readers found that it's 12.5% faster than they'd thought.",
] * 8


def flags_tokenizer():
    """Byte level: a chain of splits, every flag of added tokens, a template, merges as pairs."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("``", '"')])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\r\n]+"), "merged_with_previous"),
            pre_tokenizers.Split("_", "merged_with_next"),
            pre_tokenizers.Split("==", "contiguous"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.add_tokens(
        [
            AddedToken("<mask>", lstrip=True, normalized=False),
            AddedToken("<tail>", rstrip=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True, special=True, normalized=False),
            AddedToken("word", single_word=True, normalized=False),
            AddedToken("caf\u00e9!", normalized=True),
            AddedToken("<ma", normalized=False),
            AddedToken("    ", normalized=True),
        ]
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 420), ("</s>", 421)])]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return json.loads(tokenizer.to_str())


def fallback_tokenizer():
    """No byte level: Prepend, Replace, byte_fallback, fused unknowns, merges as "left right"."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>"], limit_alphabet=70)
    tokenizer.train_from_iterator([word for line in SENTENCES for word in line.split()], trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    model["byte_fallback"] = True
    # Only some of the bytes, so that others are unknown.
    for byte in range(0x100):
        if byte < 0xF0:
            model["vocab"][f"<0x{byte:02X}>"] = len(model["vocab"])
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    return document


def golden_texts(shared, lists, tokenizer_paths):
    added = []
    for path in tokenizer_paths:
        added += [token["content"] for token in json.load(open(path))["added_tokens"]][-12:]
    texts = list(tokenizer_texts.awkward(50, added))
    for kind in (tokenizer_texts.corpora(shared), tokenizer_texts.workloads(shared, 20), tokenizer_texts.source_code(20)):
        texts += random.Random(tokenizer_texts.SEED).sample([text[:240] for text in kind], 8)
    texts += [text[:100] for text in tokenizer_texts.translations(lists, 1)]
    texts += [b"a <mask> b<tail>  c <both>\n d<ma>", b"word wordy word. sword", "caf\u00e9! cafe\u0301! CAFÉ!".encode(), b"a_b __c==d=== ``x`` 12 345", b"    x     y"]
    return texts


def as_json(text):
    try:
        return text.decode()
    except UnicodeDecodeError:
        return {"hex": text.hex()}


def golden(name, path, texts):
    from tokenizers import Tokenizer

    judge = Tokenizer.from_file(path)
    ids = [judge.encode(text.decode("utf-8", "replace")).ids for text in texts]
    return {"tokenizer": name, "sha256": hashlib.sha256(open(path, "rb").read()).hexdigest(), "ids": ids}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default=os.path.join(ROOT, "..", "shared"))
    parser.add_argument("--lists", default="/var/lib/apt/lists")
    arguments = parser.parse_args()
    for name, make in (("flags", flags_tokenizer), ("fallback", fallback_tokenizer)):
        with open(f"{TESTDATA}/{name}_tokenizer.json", "w") as out:
            json.dump(make(), out, ensure_ascii=False, separators=(",", ":"))
            out.write("\n")
    with tempfile.TemporaryDirectory() as folder:
        sources = {os.path.relpath(path, ROOT): path for path in sorted(glob.glob(f"{TESTDATA}/*_tokenizer.json") + glob.glob(f"{ROOT}/models/*/tokenizer.json"))}
        for path in sorted(glob.glob(f"{arguments.shared}/tokenizers/*/tokenizer.json.xz")):
            sources["shared/" + os.path.relpath(path, arguments.shared)] = compare_tokenizers.unpacked(path, folder)
        texts = golden_texts(arguments.shared, arguments.lists, sources.values())
        goldens = [golden(name, path, texts) for name, path in sources.items()]
    with open(f"{TESTDATA}/goldens.json", "w") as out:
        json.dump({"texts": [as_json(text) for text in texts], "goldens": goldens}, out, separators=(",", ":"))
        out.write("\n")


if __name__ == "__main__":
    main()
