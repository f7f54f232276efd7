"""Trains TF-IDF + logistic regression: the linear baseline, and soft targets for train.py.

Training texts get the prediction of a model that has not seen them (three folds); the
unlabelled topic texts (the other 38 Debian sections) that of the model trained on all.

    python linear_teacher.py --work WORK [--heldout DIR]

Writes WORK/data/TASK.teacher.npy and WORK/data/linear_baseline.json.
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

from tasks import TASKS

FOLDS = 3
INVERSE_PENALTY = {"topic": 20, "spam": 100, "sentiment": 10}
ITERATIONS = 60


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--heldout", type=pathlib.Path, help="default: WORK/heldout")
    return parser.parse_args()


def read_lines(path):
    with path.open() as file:
        return [json.loads(line) for line in file]


def fit(task, features, labels):
    model = LogisticRegression(C=INVERSE_PENALTY[task], max_iter=ITERATIONS)
    return model.fit(features, labels)


def out_of_fold_predictions(task, features, labels):
    predictions = numpy.zeros((len(labels), len(TASKS[task]["labels"])), dtype=numpy.float32)
    fold_of_row = numpy.random.default_rng(7).integers(FOLDS, size=len(labels))
    for fold in range(FOLDS):
        seen, unseen = fold_of_row != fold, fold_of_row == fold
        model = fit(task, features[seen], labels[seen])
        predictions[unseen] = model.predict_proba(features[unseen])
    return predictions


def teach(task, data, heldout):
    """Saves the soft targets of one task and returns the baseline's held-out figures."""
    rows = read_lines(data / f"{task}.train.jsonl")
    held_out = read_lines(heldout / f"{task}.jsonl")
    label_index = {label: index for index, label in enumerate(TASKS[task]["labels"])}
    labels = numpy.array([label_index[line["label"]] for line in rows])
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), min_df=2, token_pattern=r"\w+|[!?$]"
    )
    features = vectorizer.fit_transform([line["text"] for line in rows])
    predictions = out_of_fold_predictions(task, features, labels)
    model = fit(task, features, labels)
    if task == "topic":
        unlabelled = read_lines(data / "topic.unlabelled.jsonl")
        soft = model.predict_proba(vectorizer.transform([line["text"] for line in unlabelled]))
        predictions = numpy.vstack([predictions, soft.astype(numpy.float32)])
    numpy.save(data / f"{task}.teacher.npy", predictions)
    truth = [label_index[line["label"]] for line in held_out]
    answers = model.predict(vectorizer.transform([line["text"] for line in held_out]))
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
    figures = {}
    for task in INVERSE_PENALTY:
        figures[task] = teach(task, data, heldout)
        print(task, figures[task], flush=True)
    (data / "linear_baseline.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
