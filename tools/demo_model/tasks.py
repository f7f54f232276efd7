"""The five tasks of zeroprefill-mini: prompt templates and labels, in one place.

A prompt is the template with `{text}` replaced; the answer is the label whose token has the
highest log-probability right after the prompt. Every label is one token of our vocabulary.
"""

# The 20 most common Debian sections -> the label word. Two sections are not one word to the
# Qwen2 pre-tokenizer ("gnu-r", "x11"), so their labels have another name.
TOPIC_OF_SECTION = {
    "libs": " libs",
    "libdevel": " libdevel",
    "python": " python",
    "doc": " doc",
    "perl": " perl",
    "devel": " devel",
    "utils": " utils",
    "haskell": " haskell",
    "net": " net",
    "rust": " rust",
    "golang": " golang",
    "javascript": " javascript",
    "java": " java",
    "science": " science",
    "admin": " admin",
    "ruby": " ruby",
    "gnu-r": " rstats",
    "games": " games",
    "x11": " xorg",
    "text": " text",
}

# Languages of the Debian descriptions with enough texts; both Portuguese variants are one.
LABEL_OF_LANGUAGE = {
    "en": " English",
    "it": " Italian",
    "da": " Danish",
    "fr": " French",
    "de": " German",
    "sk": " Slovak",
    "ja": " Japanese",
    "pt_BR": " Portuguese",
    "pt": " Portuguese",
    "uk": " Ukrainian",
    "ko": " Korean",
    "pl": " Polish",
    "ru": " Russian",
    "es": " Spanish",
    "cs": " Czech",
    "zh_CN": " Chinese",
}

TASKS = {
    "topic": {
        "template": "{text}\nTopic:",
        "labels": sorted(TOPIC_OF_SECTION.values()),
        "max_text_chars": 400,
        "text": "package name, colon, space, short description, newline, long description (white "
        "space collapsed); longer texts keep 245 characters, ' ... ' and the last 150",
        "section_of_label": {label: section for section, label in TOPIC_OF_SECTION.items()},
    },
    "language": {
        "template": "{text}\nLanguage:",
        "labels": sorted(set(LABEL_OF_LANGUAGE.values())),
        "max_text_chars": 120,
        "text": "any text, white space collapsed",
    },
    "spam": {
        "template": "{text}\nMail:",
        "labels": [" ham", " spam"],
        "max_text_chars": 400,
        "text": "subject, newline, body as plain text; e-mail addresses, links and long numbers "
        "masked as [email], [link] and [number]",
    },
    "sentiment": {
        "template": "{text}\nSentiment:",
        "labels": [" negative", " positive"],
        "max_text_chars": 300,
        "text": "one sentence of a review",
    },
    "relevance": {
        "template": "{text}\nRelevant:",
        "labels": [" no", " yes"],
        "max_text_chars": 320,
        "text": "short description, newline, the long description it may or may not belong to",
    },
}


def prompt(task, text):
    """The exact string whose last token's logits hold the answer."""
    return TASKS[task]["template"].replace("{text}", text)


def all_labels():
    """Every label of every task, each once."""
    return sorted({label for task in TASKS.values() for label in task["labels"]})
