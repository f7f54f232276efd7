"""The texts that tokenizers are compared on: corpora, languages, source code, and the awkward ones.

Every source that is absent is left out; what is made up comes from a fixed seed.
"""

import glob
import json
import lzma
import os
import random
import re
import subprocess
import tarfile

SEED = 20240613
LANGUAGES = "ca cs da de en es fi fr hu it ja ko nl pl pt pt_BR ru sk sl sr sv tr uk vi zh zh_CN zh_TW".split()


def corpora(shared):
    for path in sorted(glob.glob(f"{shared}/corpora/sentiment/*.json")):
        for row in json.load(open(path)):
            yield row["text"].encode()
    mails = f"{shared}/corpora/spam/spamassassin.tar.xz"
    if os.path.exists(mails):
        with tarfile.open(mails) as archive:
            for member in archive:
                # Mails as they are: Latin-1, Big5, attachments; broken UTF-8 in plenty.
                if member.isfile() and member.name.startswith("data/") and member.size < 100_000:
                    yield archive.extractfile(member).read()


def workloads(shared, limit):
    for path in sorted(glob.glob(f"{shared}/workloads/*.jsonl.xz")):
        with lzma.open(path, "rt") as lines:
            for index, line in enumerate(lines):
                if index >= limit:
                    break
                request = json.loads(line)["request"]
                yield request["context"].encode()
                yield request["continuation"].encode()


def translations(lists, limit):
    """Package descriptions, `limit` of each language, from a directory of apt's lists."""
    for language in LANGUAGES:
        for path in sorted(glob.glob(f"{lists}/*_Translation-{language.replace('_', '%5f')}.*")):
            text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], stdout=subprocess.PIPE, check=True).stdout
            entries = re.findall(rb"^Description-(?!md5)[\w-]+: (.*(?:\n .*)*)", text, re.MULTILINE)
            step = max(1, len(entries) // limit)
            yield from entries[::step][:limit]


def source_code(limit):
    patterns = ["/usr/include/*.h", "/usr/include/boost/json/**/*.ipp", os.path.dirname(os.__file__) + "/*.py", "/usr/bin/*.sh", "/etc/**/*.conf"]
    for pattern in patterns:
        for path in sorted(glob.glob(pattern, recursive=True))[:limit]:
            if os.path.isfile(path) and os.path.getsize(path) < 60_000 and os.access(path, os.R_OK):
                yield open(path, "rb").read()


EMOJI = "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ☎️ ❤️‍🔥 ✊🏿 🧑🏻‍🚀 ©️ ™ 1️⃣ 🫠 🪿 🫨".split(" ")
WORDS = (
    "the don't I'LL we'Ve 'S 'ſ isn’t x² ½ Ⅷ ١٢٣ 12345678 3.14159 naïve nai\u0308ve Å A\u030a ﬁne ﬀ K K ẞ İstanbul ı ΣΑΣ "
    "日本語 漢字とカナ 한국어 ㄱㅏ \u1112\u1161\u11ab ไทย हिन्दी क़ \u0915\u093c العربية עברית русский ελληνικά tiếng tiê\u0301ng "
    "foo_bar fooBar HTTPServer __init__ a/b\\c C:\\x http://x.org/?q=1&r=%20 <b>x</b> {\"k\":[1,2]} // /* */ #include $HOME ~/ -> => :: ... --- ``` \u2028 \u180e \u200d \ufeff "
    "\u0301 \u0316\u0301 e\u0316\u0301 \u0344 \u0f73 \u1e9b\u0323 \U0001d15e \U0001133b \u0898 e\u0898\u0301 \U00031350 \U0002ebf0 \U00010d50 \u1c89"
).split(" ")
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u2003 ", "\u0085", "\v\f", " " * 40, "\n" * 30, "\t" * 20, " \t" * 9]


def awkward(count, added_tokens):
    """Made-up texts: odd words, spaces, emoji, added tokens inside text, broken UTF-8."""
    rng = random.Random(SEED)
    yield from (b"", b" ", b"\n", b"a", b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80")
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 30)):
            kind = rng.random()
            if kind < 0.45:
                parts.append(rng.choice(WORDS))
            elif kind < 0.75:
                parts.append(rng.choice(SPACES))
            elif kind < 0.82:
                parts.append(rng.choice(EMOJI))
            elif kind < 0.90 and added_tokens:
                token = rng.choice(added_tokens)
                parts.append(token if rng.random() < 0.8 else token[: rng.randrange(1, len(token) + 1)])
            else:
                parts.append("".join(chr(random_char(rng)) for _ in range(rng.randrange(1, 6))))
        text = bytearray("".join(parts).encode())
        if rng.random() < 0.25:
            for _ in range(rng.randrange(1, 4)):
                text[rng.randrange(len(text) or 1) : rng.randrange(len(text) + 1)] = bytes([rng.randrange(256)])
        yield bytes(text)


def random_char(rng):
    limit = rng.choice([0x80, 0x250, 0x3000, 0x10000, 0x20000, 0x110000])
    char = rng.randrange(limit)
    return 0xFFFD if 0xD800 <= char < 0xE000 else char


def every_character():
    """Each code point once between letters, once after a space and once beside a mark."""
    chars = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for start in range(0, len(chars), 4096):
        block = chars[start : start + 4096]
        if start >= 0x40000 and start % 0x10000:
            continue  # unassigned or private: a sample will do
        yield "".join(f"a{c}b {c}" for c in block).encode()
        yield "".join(f"e{c}\u0301 e\u0301{c}\u0316" for c in block).encode()


def long_words():
    yield b"a" * 20_000
    yield b" " * 20_000
    yield b"\n" * 5_000 + b"x"
    yield ("ab" * 9_000 + "é" * 5_000).encode()
    yield ("\u0301\u0316" * 3_000).encode()
    yield "漢字".encode() * 8_000
    yield b"A" * 9_000 + b"a" * 9_000
    yield b"1" * 9_001


def comparison_texts(shared, lists, added_tokens):
    """What compare_tokenizers.py uses: name of the kind, texts."""
    yield "corpora", list(corpora(shared))
    yield "workloads", list(workloads(shared, 300))
    yield "languages", list(translations(lists, 250))
    yield "source", list(source_code(250))
    yield "awkward", list(awkward(6000, added_tokens))
    yield "every_character", list(every_character())
    yield "long_words", list(long_words())
