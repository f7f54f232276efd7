#!/usr/bin/env python3
"""Compares our tokenizer with Hugging Face `tokenizers`, token for token.

    tools/compare_tokenizers.py --binary build/release/src/text/text_encode \\
        [--shared ../shared] [--lists /var/lib/apt/lists] [tokenizer.json[.xz] ...]

Without files: the four in SHARED/tokenizers and our own in models/ and src/text/testdata. Prints one
JSON line per tokenizer and exits with 1 if a text differs. Other languages than English are there
after `apt-get update -o Acquire::Languages="en,de,fr,it,da,ja,ko,ru,pt_BR,pl,cs,es,zh_CN" -o Dir::State::Lists=LISTS`.
Needs `pip install tokenizers`.
"""

import argparse
import glob
import json
import lzma
import os
import struct
import subprocess
import sys
import tempfile

import tokenizer_texts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def unpacked(path, folder):
    if not path.endswith(".xz"):
        return path
    target = os.path.join(folder, path.replace("/", "_")[:-3])
    with lzma.open(path) as packed, open(target, "wb") as out:
        out.write(packed.read())
    return target


def write_records(texts, path):
    with open(path, "wb") as out:
        for text in texts:
            out.write(struct.pack("<I", len(text)))
            out.write(text)


def read_tokens(path):
    data = memoryview(open(path, "rb").read()).cast("I")
    at = 0
    while at < len(data):
        yield data[at + 1 : at + 1 + data[at]].tolist()
        at += 1 + data[at]


def our_tokens(binary, tokenizer, texts, folder):
    records, tokens = os.path.join(folder, "texts"), os.path.join(folder, "tokens")
    write_records(texts, records)
    subprocess.run([binary, tokenizer, records, tokens], check=True)
    return list(read_tokens(tokens))


def compare(binary, name, tokenizer_path, shared, lists, folder):
    from tokenizers import Tokenizer

    path = unpacked(tokenizer_path, folder)
    judge = Tokenizer.from_file(path)
    added = [token["content"] for token in json.load(open(path))["added_tokens"]]
    result = {"tokenizer": name, "texts": 0, "bytes": 0, "tokens": 0, "different": 0, "kinds": {}}
    for kind, texts in tokenizer_texts.comparison_texts(shared, lists, added):
        ours = our_tokens(binary, path, texts, folder)
        assert len(ours) == len(texts)
        different = 0
        for text, tokens in zip(texts, ours):
            expected = judge.encode(text.decode("utf-8", "replace")).ids
            result["tokens"] += len(expected)
            if tokens != expected:
                different += 1
                if different <= 3:
                    report(judge, kind, text, expected, tokens)
        result["kinds"][kind] = len(texts)
        result["texts"] += len(texts)
        result["bytes"] += sum(map(len, texts))
        result["different"] += different
    print(json.dumps(result), flush=True)
    return result["different"]


def report(judge, kind, text, expected, tokens):
    at = next((i for i, (a, b) in enumerate(zip(expected, tokens)) if a != b), min(len(expected), len(tokens)))
    show = lambda ids: [judge.id_to_token(i) for i in ids[max(0, at - 2) : at + 4]]
    print(f"{kind}: differs at token {at}: expected {show(expected)}, got {show(tokens)}; text {text[:80]!r}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--binary", required=True)
    parser.add_argument("--shared", default=os.path.join(ROOT, "..", "shared"))
    parser.add_argument("--lists", default="/var/lib/apt/lists")
    arguments = parser.parse_args()
    files = arguments.files or sorted(
        glob.glob(f"{arguments.shared}/tokenizers/*/tokenizer.json*")
        + glob.glob(f"{ROOT}/models/*/tokenizer.json")
        + glob.glob(f"{ROOT}/src/text/testdata/*_tokenizer.json")
    )
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            name = os.path.relpath(path, ROOT)
            different += compare(arguments.binary, name, path, arguments.shared, arguments.lists, folder)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
