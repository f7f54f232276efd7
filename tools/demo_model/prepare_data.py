"""Builds the training and held-out texts of the five tasks.

Sources: the Debian package index of this machine (downloaded by `apt-get update` into
WORK/lists), the SpamAssassin mails and the review sentences under SHARED/corpora.
A text is held out, or kept for validation, by the hash of its body (its long description, its
mail, its sentence), so that no such body is ever trained on, in any task, language or pairing.
Texts are cut to their task's `max_text_chars` here; serving needs no truncation.

    python prepare_data.py --shared SHARED --work WORK [--heldout DIR]

Writes WORK/data/TASK.train.jsonl, WORK/data/TASK.validation.jsonl, WORK/data/plain_text.jsonl
(for the tokenizer and for embedding initialisation) and HELDOUT/TASK.jsonl; every line is
{"task","text","label","id"}.
"""

import argparse
import email
import email.errors
import email.header
import email.policy
import hashlib
import html
import json
import pathlib
import random
import re
import subprocess
import tarfile

from tasks import LABEL_OF_LANGUAGE, TASKS, TOPIC_OF_SECTION

HELDOUT_TEXTS = {"topic": 2000, "language": 2000, "spam": 900, "sentiment": 500, "relevance": 2000}
HELDOUT_PERCENT = {"description": 8, "spam": 15, "sentiment": 16}
VALIDATION_TEXTS = {**HELDOUT_TEXTS, "language": 750, "spam": 500}
VALIDATION_PERCENT = {"description": 4, "spam": 8, "sentiment": 10}
LANGUAGE_CAP = {"train": 6000, "validation": 50, "heldout": 150}
SPLITS = ("train", "validation", "heldout")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--heldout", type=pathlib.Path, help="default: WORK/heldout")
    return parser.parse_args()


def one_line(text):
    """White space collapsed to single spaces."""
    return " ".join(text.split())


def digest(text):
    return hashlib.md5(text.encode()).hexdigest()


def split_of(body, source):
    """"train", "validation" or "heldout": the same for the same body on every machine."""
    place = int(digest(body)[:8], 16) % 100 - HELDOUT_PERCENT[source]
    if place < 0:
        return "heldout"
    return "validation" if place < VALIDATION_PERCENT[source] else "train"


def row(task, text, label, identity):
    return {"task": task, "text": text, "label": label, "id": f"{task}-{identity}"}


def cut(task, text):
    return text[: TASKS[task]["max_text_chars"]].rstrip()


# --- Debian package index ---------------------------------------------------------------------


def download_lists(lists):
    """Brings the package index in all languages we use, without touching the system's own."""
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    languages = ",".join(LABEL_OF_LANGUAGE)
    command = ["apt-get", "update", "-q"]
    command += ["-o", f"Acquire::Languages={languages}", "-o", f"Dir::State::Lists={lists}"]
    subprocess.run(command, check=True)


def read_stanzas(path):
    """The stanzas of one index file as dictionaries; values keep their line breaks."""
    text = subprocess.run(
        ["/usr/lib/apt/apt-helper", "cat-file", str(path)], check=True, capture_output=True
    ).stdout.decode("utf-8", "replace")
    for stanza in text.split("\n\n"):
        fields = {}
        for line in stanza.split("\n"):
            if line.startswith(" ") and fields:
                fields[name] += "\n" + line[1:]
            elif ":" in line:
                name, value = line.split(":", 1)
                fields[name] = value.strip()
        if fields:
            yield fields


def split_description(description):
    """(short, long) of a Description field; paragraph marks (" .") go."""
    short, _, body = description.partition("\n")
    lines = [line for line in body.split("\n") if line.strip() != "."]
    return one_line(short), one_line("\n".join(lines))


def read_translations(lists, language):
    """{description md5: (short, long)} of one language."""
    name = f"Translation-{language.replace('_', '%5f')}"
    texts = {}
    for path in sorted(lists.glob(f"*{name}*")):
        for fields in read_stanzas(path):
            description = fields.get(f"Description-{language}")
            if description and "Description-md5" in fields:
                texts[fields["Description-md5"]] = split_description(description)
    return texts


def read_packages(lists):
    """{description md5: (package, section)}; the first package of each description."""
    packages = {}
    for path in sorted(lists.glob("*_Packages*")):
        for fields in read_stanzas(path):
            if "Section" in fields and "Description-md5" in fields:
                section = fields["Section"].split("/")[-1]
                packages.setdefault(fields["Description-md5"], (fields["Package"], section))
    return packages


def topic_text(package, description):
    """"package: short", newline, long; too long a text loses its middle, for the last sentence
    ("This package contains the development files.") often decides."""
    short, body = description
    text, limit = f"{package}: {short}\n{body}", TASKS["topic"]["max_text_chars"]
    if len(text) <= limit:
        return text
    mark, tail = " ... ", limit * 3 // 8
    return text[: limit - tail - len(mark)] + mark + text[-tail:]


def prepare_topic(english, packages):
    """Train on every distinct text; hold out one text for each held-out body. Returns the
    rows by split, and the rows to train whose section is no label."""
    train, unseen, unlabelled, seen = [], {"validation": {}, "heldout": {}}, [], set()
    for identity in sorted(english):
        if identity not in packages:
            continue
        package, section = packages[identity]
        text, body = topic_text(package, english[identity]), english[identity][1]
        if text in seen:
            continue
        seen.add(text)
        labelled = row("topic", text, TOPIC_OF_SECTION.get(section), identity)
        split = split_of(body, "description")
        if split == "train":
            (train if labelled["label"] else unlabelled).append(labelled)
        elif labelled["label"]:
            unseen[split].setdefault(body, labelled)
    rows = {split: list(by_body.values()) for split, by_body in unseen.items()}
    return {"train": train, **rows}, unlabelled


def is_translated(translation, original):
    """Untranslated leftovers keep English sentences: drop texts that share a long piece."""
    words = original[1].split()
    pieces = [" ".join(words[start : start + 5]) for start in range(0, len(words) - 4, 5)]
    return translation != original and not any(piece in translation[1] for piece in pieces)


def prepare_language(english, lists):
    result = {split: [] for split in SPLITS}
    for language, label in LABEL_OF_LANGUAGE.items():
        texts = english if language == "en" else read_translations(lists, language)
        rows = {split: [] for split in SPLITS}
        for identity in sorted(texts, key=digest):
            original = english.get(identity)
            if original is None or len(texts[identity][1]) < 20:
                continue
            if language != "en" and not is_translated(texts[identity], original):
                continue
            text = cut("language", " ".join(texts[identity]))
            split = split_of(original[1], "description")
            rows[split].append(row("language", text, label, f"{language}-{identity}"))
        for split in SPLITS:
            result[split] += rows[split][: LANGUAGE_CAP[split]]
    return result


def relevance_row(short, body, label, identity):
    return row("relevance", cut("relevance", f"{short}\n{body}"), label, identity)


def relevance_pairs(pool, count, random_source):
    """Half of the pairs fit; the others' short text is drawn from the whole pool (id ends in
    "-any") or from the same section ("-same"), half each."""
    random_source.shuffle(pool)
    pairs = []
    for index, (identity, short, body, _, section) in enumerate(pool[:count]):
        if index % 2 == 0:
            pairs.append(relevance_row(short, body, " yes", f"{identity}-fits"))
            continue
        kind = "any" if index % 4 == 1 else "same"
        others = [
            other
            for other in pool
            if other[1] != short and other[2] != body and (kind == "any" or other[4] == section)
        ]
        other = random_source.choice(others) if others else random_source.choice(pool)
        pairs.append(relevance_row(other[1], body, " no", f"{identity}-{kind}"))
    return pairs


def prepare_relevance(english, packages, random_of_split):
    """For training only the descriptions are written, by package name; train.py draws new
    pairs in every epoch."""
    pools = {split: [] for split in SPLITS}
    for identity in sorted(english):
        short, body = english[identity]
        if len(body) >= 60 and identity in packages:
            description = (identity, short, body, *packages[identity])
            pools[split_of(body, "description")].append(description)
    pairs = {
        split: relevance_pairs(pools[split], limits["relevance"], random_of_split[split])
        for split, limits in (("heldout", HELDOUT_TEXTS), ("validation", VALIDATION_TEXTS))
    }
    pools["train"].sort(key=lambda description: description[3])
    train = [
        {"short": short, "long": body, "section": section}
        for _, short, body, _, section in pools["train"]
    ]
    return {"train": train, **pairs}


# --- mails --------------------------------------------------------------------------------------


def strip_markup(text):
    text = re.sub(r"(?is)<(script|style).*?</\1>", " ", text)
    text = re.sub(r"(?s)<!--.*?-->", " ", text)
    return html.unescape(re.sub(r"(?s)<[^>]{0,500}>", " ", text))


def mask_personal(text):
    """Addresses, links and long numbers go, in training and held-out texts alike."""
    text = re.sub(r"[\w.+=-]+(@|\s+at\s+)[\w-]+(\.[\w-]+)+", "[email]", text)
    text = re.sub(r"(?i)\b(https?://|ftp://|www\.)[^\s>\"]+", "[link]", text)
    return re.sub(r"\+?\d[\d()\s./-]{5,}\d", "[number]", text)


def part_text(part):
    payload = part.get_payload(decode=True) or b""
    charset = part.get_content_charset() or "latin-1"
    try:
        text = payload.decode(charset, "replace")
    except LookupError:
        text = payload.decode("latin-1")
    return strip_markup(text) if part.get_content_subtype() == "html" else text


def mail_text(raw):
    """Subject and first text part of a mail, as plain masked text."""
    message = email.message_from_string(raw, policy=email.policy.compat32)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    parts.sort(key=lambda part: part.get_content_subtype() != "plain")
    body = part_text(parts[0]) if parts else ""
    encoded_subject = message["Subject"] or ""
    try:
        subject = str(email.header.make_header(email.header.decode_header(encoded_subject)))
    except (LookupError, UnicodeError, ValueError, email.errors.HeaderParseError):
        subject = str(encoded_subject)
    subject, body = (one_line(mask_personal(text)) for text in (subject, body))
    return cut("spam", f"{subject}\n{body}".encode("utf-8", "replace").decode())


def prepare_spam(archive):
    result, seen = {split: [] for split in SPLITS}, set()
    with tarfile.open(archive) as mails:
        for member in mails:
            if not member.name.endswith(".json") or "/" not in member.name:
                continue
            mail = json.load(mails.extractfile(member))
            if not isinstance(mail, dict) or "group" not in mail:
                continue
            text = mail_text(mail["text"])
            if len(text) < 20 or text in seen:
                continue
            seen.add(text)
            label = " spam" if mail["group"].startswith("spam") else " ham"
            body = text.partition("\n")[2]
            identity = f"{mail['group']}-{mail['id']}"
            result[split_of(body, "spam")].append(row("spam", text, label, identity))
    return result


# --- review sentences ---------------------------------------------------------------------------


def prepare_sentiment(folder):
    result, seen = {split: [] for split in SPLITS}, set()
    for path in sorted(folder.glob("*.json")):
        for index, sentence in enumerate(json.loads(path.read_text())):
            text = cut("sentiment", one_line(sentence["text"]))
            if text in seen:
                continue
            seen.add(text)
            label = " positive" if sentence["class"] == 1 else " negative"
            split = split_of(text, "sentiment")
            result[split].append(row("sentiment", text, label, f"{path.stem}-{index}"))
    return result


# --- output -------------------------------------------------------------------------------------


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for line in rows:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def plain_texts(english, rows):
    """Training texts for the tokenizer: descriptions that are not held out, mails, sentences,
    a little of every language."""
    texts = [
        " ".join(text) for text in english.values() if split_of(text[1], "description") == "train"
    ]
    for task in ("spam", "sentiment", "language"):
        texts += [line["text"] for line in rows[task]["train"]]
    return [{"text": text} for text in texts]


def main():
    options = arguments()
    lists = options.work / "lists"
    heldout_folder = options.heldout or options.work / "heldout"
    random_of_split = {"heldout": random.Random(7), "validation": random.Random(8)}
    if not list(lists.glob("*Translation-zh*")):
        download_lists(lists)
    english, packages = read_translations(lists, "en"), read_packages(lists)
    corpora = options.shared / "corpora"
    rows = {
        "language": prepare_language(english, lists),
        "relevance": prepare_relevance(english, packages, random_of_split),
        "spam": prepare_spam(corpora / "spam" / "spamassassin.tar.xz"),
        "sentiment": prepare_sentiment(corpora / "sentiment"),
    }
    rows["topic"], unlabelled = prepare_topic(english, packages)
    for task in TASKS:
        splits = rows[task]
        for split, limits in (("heldout", HELDOUT_TEXTS), ("validation", VALIDATION_TEXTS)):
            random_of_split[split].shuffle(splits[split])
            splits[split] = splits[split][: limits[task]]
        unseen = {line["text"] for split in SPLITS[1:] for line in splits[split]}
        splits["train"] = [line for line in splits["train"] if line.get("text") not in unseen]
        write_lines(options.work / "data" / f"{task}.train.jsonl", splits["train"])
        write_lines(options.work / "data" / f"{task}.validation.jsonl", splits["validation"])
        write_lines(heldout_folder / f"{task}.jsonl", splits["heldout"])
        print(f"{task}: {', '.join(f'{len(splits[split])} {split}' for split in SPLITS)}")
    write_lines(options.work / "data" / "topic.unlabelled.jsonl", unlabelled)
    write_lines(options.work / "data" / "plain_text.jsonl", plain_texts(english, rows))


if __name__ == "__main__":
    main()
