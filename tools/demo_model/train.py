"""Trains zeroprefill-mini on all five tasks at once, on the CPU, until a deadline.

Loss: cross-entropy over a task's labels at the last prompt token (hard labels mixed with the
linear teacher's soft ones where there are any), a light next-token loss on a sample of
positions, and the load-balancing loss of the routers. Token embeddings start from a
factorised co-occurrence matrix of the training texts. The learning rate follows a cosine to
zero at the deadline; the result is a running average of the weights.

Every worker is a process with one thread and its own examples; every few steps the workers
average their weights (local SGD). On cores shared with other work this is far faster than
threads that wait for each other inside each operation.

    python train.py --work WORK [--heldout DIR] --minutes 80

Reads WORK/data and WORK/model/tokenizer.json, writes WORK/checkpoint.pt every few minutes.
"""

import argparse
import json
import math
import pathlib
import random
import time

import numpy
import torch
import torch.distributed as workers
from scipy.sparse import coo_matrix
from sklearn.utils.extmath import randomized_svd
from tokenizers import Tokenizer
from torch.nn import functional

from model import CONFIG, Model
from tasks import TASKS, prompt

EXAMPLE_SHARE = {
    "topic": 0.68,
    "language": 0.10,
    "spam": 0.11,
    "sentiment": 0.11,
}  # of the examples that are not relevance pairs
UNLABELLED_SHARE = 0.12  # of the topic examples
TOKENS_PER_BATCH = 3072
POOL_EXAMPLES = 4096
WORD_DROP = {"topic": 0.15, "relevance": 0.0, "language": 0.1, "spam": 0.15, "sentiment": 0.15}
TEACHER_SHARE = {"topic": 0.5, "spam": 0.3, "sentiment": 0.6}
SAME_SECTION_SHARE = 0.3  # of the wrong pairs
ANY_LABEL_WEIGHT = 0.1
NEXT_TOKEN_POSITIONS = 160
NEXT_TOKEN_WEIGHT = 0.2
BALANCE_WEIGHT = 0.05
WARMUP_STEPS = 100
STEPS_BETWEEN_MEETINGS = 12
AVERAGE_DECAY = 0.98  # at every meeting
DROPOUT = 0.1
REPORT_SECONDS = 300


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--heldout", type=pathlib.Path, help="default: WORK/heldout")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--checkpoint", default="checkpoint.pt", help="name inside WORK")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its peak")
    parser.add_argument("--relevance-share", type=float, default=0.38, help="of the examples")
    parser.add_argument("--start", help="checkpoint in WORK to go on from, with a new optimiser")
    return parser.parse_args()


def read_lines(path):
    with path.open() as file:
        return [json.loads(line) for line in file]


# --- examples -----------------------------------------------------------------------------------


class Examples:
    """Draws random training examples: (task, prompt text, target distribution)."""

    def __init__(self, data, relevance_share, seed):
        self.random = random.Random(seed)
        self.rows = {task: read_lines(data / f"{task}.train.jsonl") for task in TASKS}
        self.unlabelled = read_lines(data / "topic.unlabelled.jsonl")
        self.teacher = {task: numpy.load(data / f"{task}.teacher.npy") for task in TEACHER_SHARE}
        self.by_section = {}
        for row in self.rows["relevance"]:
            self.by_section.setdefault(row["section"], []).append(row)
        self.queue = {task: [] for task in TASKS}
        self.share = {task: (1 - relevance_share) * share for task, share in EXAMPLE_SHARE.items()}
        self.share["relevance"] = relevance_share

    def next_index(self, task):
        """Every row once, in random order, then again."""
        if not self.queue[task]:
            self.queue[task] = list(range(len(self.rows[task])))
            self.random.shuffle(self.queue[task])
        return self.queue[task].pop()

    def drop_words(self, task, text):
        share = self.random.random() * 2 * WORD_DROP[task]
        words = text.split(" ")
        return " ".join(word for word in words if self.random.random() >= share) or text

    def target(self, task, index):
        row = self.rows[task][index]
        target = numpy.zeros(len(TASKS[task]["labels"]), dtype=numpy.float32)
        target[TASKS[task]["labels"].index(row["label"])] = 1
        share = TEACHER_SHARE.get(task, 0)
        return (1 - share) * target + share * self.teacher[task][index] if share else target

    def relevance(self):
        row = self.rows["relevance"][self.next_index("relevance")]
        fits = self.random.random() < 0.5
        short = row["short"]
        if not fits:
            same_section = self.random.random() < SAME_SECTION_SHARE
            others = self.by_section[row["section"]] if same_section else self.rows["relevance"]
            short = self.random.choice(others)["short"]
            fits = short == row["short"]
        limit = TASKS["relevance"]["max_text_chars"]
        text = f"{short}\n{row['long']}"[:limit].rstrip()
        return text, numpy.array([1 - fits, fits], dtype=numpy.float32)

    def draw(self):
        task = self.random.choices(list(self.share), list(self.share.values()))[0]
        if task == "relevance":
            text, target = self.relevance()
        elif task == "topic" and self.random.random() < UNLABELLED_SHARE:
            index = self.random.randrange(len(self.unlabelled))
            text = self.unlabelled[index]["text"]
            target = self.teacher["topic"][len(self.rows["topic"]) + index]
        else:
            index = self.next_index(task)
            text, target = self.rows[task][index]["text"], self.target(task, index)
        return task, prompt(task, self.drop_words(task, text)), target


def pad(sequences):
    """tokens, lengths  # [batch, longest], [batch]"""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    for index, sequence in enumerate(sequences):
        tokens[index, : len(sequence)] = torch.tensor(sequence)
    return tokens, lengths


def batches(examples, tokenizer):
    """Endless batches of about equally long examples: (tasks, tokens, lengths, targets)."""
    while True:
        pool = [examples.draw() for _ in range(POOL_EXAMPLES)]
        encoded = tokenizer.encode_batch([text for _, text, _ in pool])
        pool = [(task, coded.ids, target) for (task, _, target), coded in zip(pool, encoded)]
        pool.sort(key=lambda example: len(example[1]))
        groups, group = [], []
        for example in pool:
            if group and (len(group) + 1) * len(example[1]) > TOKENS_PER_BATCH:
                groups.append(group)
                group = []
            group.append(example)
        groups.append(group)
        examples.random.shuffle(groups)
        for group in groups:
            tasks, sequences, targets = zip(*group)
            yield tasks, *pad(sequences), targets


# --- embeddings -----------------------------------------------------------------------------------


def cooccurrence_embeddings(texts, tokenizer, window=6):
    """Positive pointwise mutual information of tokens within a window, factorised.

    # [vocabulary, width]; see Levy and Goldberg, "Neural Word Embedding as Implicit Matrix
    # Factorization" (2014).
    """
    size = CONFIG["vocab_size"]
    stream = []
    for coded in tokenizer.encode_batch(texts):
        stream.extend(coded.ids + [0] * window)
    stream = numpy.array(stream, dtype=numpy.int64)
    counts = coo_matrix((size, size), dtype=numpy.float32).tocsr()
    for distance in range(1, window + 1):
        first, second = stream[:-distance], stream[distance:]
        keep = (first != 0) & (second != 0)
        ones = numpy.full(int(keep.sum()), 1 / distance, dtype=numpy.float32)
        counts += coo_matrix((ones, (first[keep], second[keep])), shape=(size, size)).tocsr()
    counts = (counts + counts.T).tocoo()
    totals = numpy.asarray(counts.tocsr().sum(axis=1)).ravel() + 1
    smooth = totals**0.75 / (totals**0.75).sum()
    information = numpy.log(counts.data / totals[counts.row] / smooth[counts.col])
    keep = information > 0
    matrix = coo_matrix(
        (information[keep], (counts.row[keep], counts.col[keep])), shape=(size, size)
    ).tocsr()
    left, values, _ = randomized_svd(matrix, CONFIG["hidden_size"], n_iter=2, random_state=7)
    vectors = torch.from_numpy(left * numpy.sqrt(values)).float()
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-3)
    noise = torch.randn(vectors.shape) / vectors.shape[1] ** 0.5
    return 0.05 * vectors.shape[1] ** 0.5 * (vectors + 0.2 * noise) / 1.02


# --- training -------------------------------------------------------------------------------------


def answer_loss(model, hidden, tasks, targets, label_tokens):
    """Mean cross-entropy over each task's labels, and a little over the whole vocabulary, so
    that labels are what follows a prompt; `hidden` is that of the last tokens."""
    everything = model.token_logits(hidden).float().logsumexp(dim=-1)  # [batch]
    overall = torch.zeros(())
    for task in sorted(set(tasks)):
        rows = [index for index, name in enumerate(tasks) if name == task]
        target = torch.from_numpy(numpy.stack([targets[index] for index in rows]))
        label_vectors = model.embed_tokens.weight[label_tokens[task]]
        logits = functional.linear(hidden[rows], label_vectors).float()  # [rows, labels]
        overall = overall - (target * logits.log_softmax(dim=-1)).sum()
        mass = logits.logsumexp(dim=-1) - everything[rows]
        overall = overall - ANY_LABEL_WEIGHT * mass.sum()
    return overall / len(tasks)


def next_token_loss(model, hidden, tokens, lengths):
    """Cross-entropy of the next token at a random sample of positions."""
    is_inner = torch.arange(tokens.shape[1] - 1) < lengths[:, None] - 1
    rows, columns = is_inner.nonzero(as_tuple=True)
    sample = torch.randperm(len(rows))[:NEXT_TOKEN_POSITIONS]
    rows, columns = rows[sample], columns[sample]
    logits = model.token_logits(hidden[rows, columns])
    return functional.cross_entropy(logits.float(), tokens[rows, columns + 1])


def batch_loss(model, batch, label_tokens, next_token_weight):
    tasks, tokens, lengths, targets = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(tokens, lengths)
        last = hidden[torch.arange(len(tasks)), lengths - 1]
        loss = answer_loss(model, last, tasks, targets, label_tokens)
        loss = loss + next_token_weight * next_token_loss(model, hidden, tokens, lengths)
    balance = sum(layer.mlp.balance_loss for layer in model.layers) / len(model.layers)
    return loss + BALANCE_WEIGHT * balance


def new_optimizer(model):
    """Decay for matrices only, less for the embeddings."""
    groups = {0.0: [], 0.02: [], 0.1: []}
    for name, weight in model.named_parameters():
        decay = 0.0 if weight.dim() == 1 else 0.02 if "embed" in name else 0.1
        groups[decay].append(weight)
    parameters = [
        {"params": weights, "weight_decay": decay} for decay, weights in groups.items()
    ]
    return torch.optim.AdamW(parameters, betas=(0.9, 0.98), fused=True)


def meet(model, progress):
    """Averages the weights of all workers; returns the progress of the most advanced."""
    weights = torch.cat([weight.data.flatten() for weight in model.parameters()])
    workers.all_reduce(weights)
    weights /= workers.get_world_size()
    sizes = [weight.numel() for weight in model.parameters()]
    for weight, mean in zip(model.parameters(), weights.split(sizes)):
        weight.data.copy_(mean.view_as(weight))
    latest = torch.tensor([progress])
    workers.all_reduce(latest, workers.ReduceOp.MAX)
    return latest.item()


@torch.no_grad()
def update_average(average, model, meeting):
    decay = min(AVERAGE_DECAY, (1 + meeting) / (10 + meeting))
    for old, new in zip(average.parameters(), model.parameters()):
        old.lerp_(new, 1 - decay)


@torch.no_grad()
def heldout_accuracy(model, heldout, tokenizer, label_tokens, limit):
    """{task: accuracy} over at most `limit` texts each."""
    accuracy = {}
    for task in TASKS:
        rows = read_lines(heldout / f"{task}.jsonl")[:limit]
        rows.sort(key=lambda row: len(row["text"]))
        hits = 0
        for start in range(0, len(rows), 64):
            chunk = rows[start : start + 64]
            encoded = tokenizer.encode_batch([prompt(task, row["text"]) for row in chunk])
            tokens, lengths = pad([coded.ids for coded in encoded])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = model(tokens, lengths)[torch.arange(len(chunk)), lengths - 1]
                answers = model.token_logits(hidden)[:, label_tokens[task]].argmax(dim=-1)
            labels = TASKS[task]["labels"]
            hits += sum(labels[answer] == row["label"] for answer, row in zip(answers, chunk))
        accuracy[task] = round(hits / len(rows), 4)
    return accuracy


def load_spread(model):
    """Most over least used expert, by layer, in the last batch."""
    loads = [layer.mlp.load for layer in model.layers]
    return [round(float(load.max() / load.min().clamp(min=1)), 2) for load in loads]


class Report:
    """Accuracy and checkpoint of the averaged weights, every few minutes; first worker only."""

    def __init__(self, options, tokenizer, label_tokens):
        self.heldout = options.heldout or options.work / "heldout"
        self.checkpoint = options.work / options.checkpoint
        self.tokenizer, self.label_tokens = tokenizer, label_tokens
        self.started = self.last = time.monotonic()
        self.average = Model().eval()

    def write(self, model, step, tokens, limit=250):
        figures = heldout_accuracy(
            self.average, self.heldout, self.tokenizer, self.label_tokens, limit
        )
        self.last = time.monotonic()
        print(
            f"{(self.last - self.started) / 60:.1f} min, step {step}, {tokens} tokens of one "
            f"worker, {figures}, expert load max/min {load_spread(model)}",
            flush=True,
        )
        torch.save(self.average.state_dict(), self.checkpoint)

    def is_due(self):
        return time.monotonic() - self.last > REPORT_SECONDS


def set_learning_rate(optimizer, peak, step, progress):
    rate = peak * min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * progress)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate


def take_step(model, optimizer, batch, label_tokens, progress):
    loss = batch_loss(model, batch, label_tokens, NEXT_TOKEN_WEIGHT * (1 - progress))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def new_model(options, tokenizer):
    """The same on every worker: the seed is fixed."""
    torch.manual_seed(7)
    model = Model(DROPOUT)
    if options.start:
        model.load_state_dict(torch.load(options.work / options.start))
    else:
        texts = [line["text"] for line in read_lines(options.work / "data" / "plain_text.jsonl")]
        model.embed_tokens.weight.data.copy_(cooccurrence_embeddings(texts, tokenizer))
    model.fuse()
    return model


def work(rank, options):
    """One worker's life: train until the deadline, meeting the others every few steps."""
    torch.set_num_threads(1)
    meeting_point = f"file://{(options.work / options.checkpoint).resolve()}.meeting"
    workers.init_process_group("gloo", meeting_point, rank=rank, world_size=options.workers)
    tokenizer = Tokenizer.from_file(str(options.work / "model" / "tokenizer.json"))
    label_tokens = {
        task: [tokenizer.encode(label).ids[0] for label in TASKS[task]["labels"]] for task in TASKS
    }
    report = Report(options, tokenizer, label_tokens)
    model = new_model(options, tokenizer)
    optimizer = new_optimizer(model)
    torch.manual_seed(rank)
    progress, tokens = 0.0, 0
    examples = Examples(options.work / "data", options.relevance_share, seed=rank)
    for step, batch in enumerate(batches(examples, tokenizer)):
        set_learning_rate(optimizer, options.learning_rate, step, progress)
        take_step(model, optimizer, batch, label_tokens, progress)
        tokens += int(batch[2].sum())
        if step % STEPS_BETWEEN_MEETINGS:
            continue
        progress = meet(model, (time.monotonic() - report.started) / (60 * options.minutes))
        if rank == 0:
            update_average(report.average, model, step // STEPS_BETWEEN_MEETINGS)
        if progress >= 1:
            break
        if rank == 0 and report.is_due():
            report.write(model, step, tokens)
    if rank == 0:
        report.write(model, step, tokens, limit=None)


def main():
    options = arguments()
    (options.work / f"{options.checkpoint}.meeting").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work, (options,), nprocs=options.workers)


if __name__ == "__main__":
    main()
