"""Token embeddings to start from: the factorised co-occurrence matrix of the training texts.

    python embeddings.py --work WORK

Reads WORK/data/plain_text.jsonl and WORK/model/tokenizer.json, writes WORK/data/embeddings.npy.
"""

import argparse
import json
import pathlib

import numpy
from scipy.sparse import coo_matrix
from sklearn.utils.extmath import randomized_svd
from tokenizers import Tokenizer

from model import CONFIG

WINDOW = 6


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    return parser.parse_args()


def cooccurrences(stream):
    """Weighted counts of token pairs within the window; 0 separates texts.

    # [vocabulary, vocabulary]
    """
    size = CONFIG["vocab_size"]
    counts = coo_matrix((size, size), dtype=numpy.float32).tocsr()
    for distance in range(1, WINDOW + 1):
        first, second = stream[:-distance], stream[distance:]
        keep = (first != 0) & (second != 0)
        ones = numpy.full(int(keep.sum()), 1 / distance, dtype=numpy.float32)
        counts += coo_matrix((ones, (first[keep], second[keep])), shape=(size, size)).tocsr()
    return counts + counts.T


def positive_information(counts):
    """Positive pointwise mutual information  # [vocabulary, vocabulary]"""
    totals = numpy.asarray(counts.sum(axis=1)).ravel() + 1
    smooth = totals**0.75 / (totals**0.75).sum()
    counts = counts.tocoo()
    information = numpy.log(counts.data / totals[counts.row] / smooth[counts.col])
    keep = information > 0
    places = (counts.row[keep], counts.col[keep])
    return coo_matrix((information[keep], places), shape=counts.shape).tocsr()


def embeddings(texts, tokenizer):
    """# [vocabulary, width]; see Levy and Goldberg, "Neural Word Embedding as Implicit Matrix
    Factorization" (2014)."""
    stream = []
    for coded in tokenizer.encode_batch(texts):
        stream.extend(coded.ids + [0] * WINDOW)
    information = positive_information(cooccurrences(numpy.array(stream, dtype=numpy.int64)))
    width = CONFIG["hidden_size"]
    left, values, _ = randomized_svd(information, width, n_iter=2, random_state=7)
    vectors = left * numpy.sqrt(values)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-3)
    noise = numpy.random.default_rng(7).normal(scale=width**-0.5, size=vectors.shape)
    return 0.05 * width**0.5 * (vectors + 0.2 * noise) / 1.02


def main():
    options = arguments()
    tokenizer = Tokenizer.from_file(str(options.work / "model" / "tokenizer.json"))
    with (options.work / "data" / "plain_text.jsonl").open() as file:
        texts = [json.loads(line)["text"] for line in file]
    numpy.save(
        options.work / "data" / "embeddings.npy",
        embeddings(texts, tokenizer).astype(numpy.float16),
    )


if __name__ == "__main__":
    main()
