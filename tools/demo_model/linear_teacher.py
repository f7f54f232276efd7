"""Trains TF-IDF + logistic regression: the linear baseline, and soft targets for train.py.

Training texts get the prediction of a model that has not seen them (three folds); validation
texts and unlabelled ones (the other 38 Debian sections, varied sentences) that of the model
trained on all training texts. For sentiment the teacher, not the baseline, also sees pieces of
words and the judgement of VADER's lexicon.

    python linear_teacher.py --work WORK [--heldout DIR]

Writes WORK/data/TASK.teacher.npy (training, validation, unlabelled texts in this order) and
WORK/data/linear_baseline.json.
"""

import argparse
import json
import pathlib
import warnings

import numpy
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import FunctionTransformer
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from tasks import TASKS

FOLDS = 3
INVERSE_PENALTY = {"sentiment": 10, "spam": 100, "topic": 20}
TEACHER_INVERSE_PENALTY = {**INVERSE_PENALTY, "sentiment": 5}
ITERATIONS = 60
CHUNK_TEXTS = 20_000


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--heldout", type=pathlib.Path, help="default: WORK/heldout")
    return parser.parse_args()


def read_lines(path):
    with path.open() as file:
        return [json.loads(line) for line in file]


def texts_of(rows):
    return [row["text"] for row in rows]


def labels_of(task, rows):
    return numpy.array([TASKS[task]["labels"].index(row["label"]) for row in rows])


def word_features():
    return TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), min_df=2, token_pattern=r"\w+|[!?$]"
    )


def lexicon_judgement(texts):
    judge = SentimentIntensityAnalyzer()
    scores = [judge.polarity_scores(text) for text in texts]
    return numpy.array([[score[name] for name in ("pos", "neg", "compound")] for score in scores])


def teacher_features(task):
    if task != "sentiment":
        return word_features()
    pieces = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), min_df=2)
    lexicon = FunctionTransformer(lexicon_judgement)
    return FeatureUnion([("words", word_features()), ("pieces", pieces), ("lexicon", lexicon)])


def fit(inverse_penalty, features, labels):
    model = LogisticRegression(C=inverse_penalty, max_iter=ITERATIONS)
    return model.fit(features, labels)


def out_of_fold_predictions(task, features, labels):
    predictions = numpy.zeros((len(labels), len(TASKS[task]["labels"])), dtype=numpy.float32)
    fold_of_row = numpy.random.default_rng(7).integers(FOLDS, size=len(labels))
    for fold in range(FOLDS):
        seen, unseen = fold_of_row != fold, fold_of_row == fold
        model = fit(TEACHER_INVERSE_PENALTY[task], features[seen], labels[seen])
        predictions[unseen] = model.predict_proba(features[unseen])
    return predictions


def soft_labels(vectorizer, model, texts):
    starts = range(0, len(texts), CHUNK_TEXTS)
    chunks = (texts[start : start + CHUNK_TEXTS] for start in starts)
    return numpy.vstack([model.predict_proba(vectorizer.transform(chunk)) for chunk in chunks])


def teach(task, data):
    """Saves the soft targets of one task; returns the teacher's accuracy on what is not trained."""
    train = read_lines(data / f"{task}.train.jsonl")
    validation = read_lines(data / f"{task}.validation.jsonl")
    unlabelled_path = data / f"{task}.unlabelled.jsonl"
    unlabelled = read_lines(unlabelled_path) if unlabelled_path.exists() else []
    vectorizer = teacher_features(task)
    features = vectorizer.fit_transform(texts_of(train)).tocsr()
    labels = labels_of(task, train)
    predictions = out_of_fold_predictions(task, features, labels)
    model = fit(TEACHER_INVERSE_PENALTY[task], features, labels)
    others = soft_labels(vectorizer, model, texts_of(validation + unlabelled))
    numpy.save(
        data / f"{task}.teacher.npy", numpy.vstack([predictions, others.astype(numpy.float32)])
    )
    answers = others[: len(validation)].argmax(axis=1)
    return {
        "out_of_fold": round(accuracy_score(labels, predictions.argmax(axis=1)), 4),
        "validation": round(accuracy_score(labels_of(task, validation), answers), 4),
    }


def baseline(task, data, heldout):
    """The held-out figures of words alone, trained on everything that is not held out."""
    rows = read_lines(data / f"{task}.train.jsonl") + read_lines(data / f"{task}.validation.jsonl")
    held_out = read_lines(heldout / f"{task}.jsonl")
    vectorizer = word_features()
    features = vectorizer.fit_transform(texts_of(rows))
    model = fit(INVERSE_PENALTY[task], features, labels_of(task, rows))
    truth = labels_of(task, held_out)
    answers = model.predict(vectorizer.transform(texts_of(held_out)))
    return {
        "accuracy": round(accuracy_score(truth, answers), 4),
        "macro_f1": round(f1_score(truth, answers, average="macro"), 4),
        "held_out": len(truth),
        "trained_on": len(rows),
    }


def main():
    options = arguments()
    warnings.simplefilter("ignore", ConvergenceWarning)
    data, heldout = options.work / "data", options.heldout or options.work / "heldout"
    for task in INVERSE_PENALTY:
        print(task, "teacher", teach(task, data), flush=True)
    figures = {}
    for task in INVERSE_PENALTY:
        figures[task] = baseline(task, data, heldout)
        print(task, "baseline", figures[task], flush=True)
    (data / "linear_baseline.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
