"""Makes texts from which train.py learns what the linear teacher knows of single words: those of
the few review sentences and those of VADER's sentiment lexicon (Hutto and Gilbert 2014).

    python augment_sentiment.py --work WORK

Writes WORK/data/sentiment.unlabelled.jsonl; linear_teacher.py gives these texts soft labels.
They are made of training texts only: sentences spliced and with words exchanged, pieces of
sentences in no order, and stretches of mails and package descriptions.
"""

import argparse
import json
import pathlib
import random

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from tasks import TASKS

TEXTS = 500_000
KINDS = {"sentence": 0.4, "pieces": 0.35, "stretch": 0.25}
SPLICE_SHARE = 0.5  # of the sentences go on with the end of another
MOST_REPLACED = 0.5  # of the words of a text
LEXICON_SHARE = 0.6  # of the words that replace others; the rest comes from sentences
NEGATE_SHARE = 0.02  # of the words get a negation before them
NEGATIONS = ["not", "never", "no", "isn't", "wasn't", "don't", "didn't", "hardly", "without"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    return parser.parse_args()


class Maker:
    def __init__(self, sentences, passages, lexicon):
        self.sentences, self.passages, self.lexicon = sentences, passages, lexicon
        self.random = random.Random(7)

    def word(self):
        if self.random.random() < LEXICON_SHARE:
            return self.random.choice(self.lexicon)
        return self.random.choice(self.random.choice(self.sentences))

    def sentence(self):
        words = self.random.choice(self.sentences)
        if self.random.random() < SPLICE_SHARE:
            tail = self.random.choice(self.sentences)
            start = self.random.randrange(len(tail))
            words = words[: self.random.randint(1, len(words))] + tail[start:]
        return words

    def pieces(self):
        words = []
        for _ in range(self.random.randint(1, 9)):
            sentence = self.random.choice(self.sentences)
            start = self.random.randrange(len(sentence))
            words += sentence[start : start + self.random.randint(1, 3)]
        return words

    def stretch(self):
        words = self.random.choice(self.passages)
        start = self.random.randrange(len(words))
        return words[start : start + self.random.randint(4, 25)]

    def text(self):
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        replaced, result = self.random.random() * MOST_REPLACED, []
        for word in getattr(self, kind)():
            if self.random.random() < NEGATE_SHARE:
                result.append(self.random.choice(NEGATIONS))
            result.append(self.word() if self.random.random() < replaced else word)
        return " ".join(result)[: TASKS["sentiment"]["max_text_chars"]].rstrip()


def word_lists(path):
    with path.open() as file:
        return [words for line in file if (words := json.loads(line)["text"].split())]


def main():
    options = arguments()
    data = options.work / "data"
    lexicon = sorted(word for word in SentimentIntensityAnalyzer().lexicon if word.isalpha())
    passages = word_lists(data / "spam.train.jsonl") + word_lists(data / "topic.train.jsonl")
    maker = Maker(word_lists(data / "sentiment.train.jsonl"), passages, lexicon)
    with (data / "sentiment.unlabelled.jsonl").open("w") as file:
        for _ in range(TEXTS):
            file.write(json.dumps({"text": maker.text()}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
