"""Trains zeroprefill-mini on all five tasks at once, on one device, until a deadline.

Loss: cross-entropy over a task's labels at the last prompt token (hard labels mixed with the
linear teacher's soft ones where there are any), a light next-token loss on a sample of
positions, and the load-balancing loss of the routers. Token embeddings start from a
factorised co-occurrence matrix of the training texts. The learning rate follows a cosine to
zero at the deadline; the result is a running average of the weights, that of the report with
the best mean accuracy on the validation texts. Held-out texts are not read.

    python train.py --work WORK --minutes 8 --device cuda

Reads WORK/data and WORK/model/tokenizer.json, writes WORK/checkpoint.pt. Examples are drawn
and tokenized by processes of their own, so the device need not wait for them.
"""

import argparse
import copy
import json
import math
import os
import pathlib
import random
import time

import numpy
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from model import Model
from tasks import TASKS, prompt

EXAMPLE_SHARE = {
    "topic": 0.25,
    "language": 0.05,
    "spam": 0.06,
    "sentiment": 0.28,
    "relevance": 0.36,
}
UNLABELLED_SHARE = {"topic": 0.12, "sentiment": 0.92}  # of the task's examples
WORD_DROP = {"topic": 0.15, "relevance": 0.06, "language": 0.1, "spam": 0.15, "sentiment": 0.25}
TEACHER_SHARE = {"topic": 0.5, "spam": 0.3, "sentiment": 0.6}
WRONG_PAIRS = {"any": 0.42, "section": 0.46, "neighbour": 0.12}
NEIGHBOURS = 4  # packages before and after in the order of their names
LATER_START_SHARE = 0.3  # of the relevance pairs whose long text lacks its beginning
MOST_LABELS = max(len(task["labels"]) for task in TASKS.values())
ROW_TOKENS = 512
EXAMPLES = 384  # in a batch at most
ANY_LABEL_WEIGHT = 0.1
NEXT_TOKEN_POSITIONS = 2048
NEXT_TOKEN_WEIGHT = 0.2
BALANCE_WEIGHT = 0.05
WARMUP_STEPS = 300
STEPS_BEFORE_RECORDING = 5
AVERAGE_DECAY = 0.999


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=13, help="processes that draw examples")
    parser.add_argument("--rows", type=int, default=32, help="of 512 tokens, in a batch")
    parser.add_argument("--checkpoint", default="checkpoint.pt", help="name inside WORK")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its peak")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--report-seconds", type=float, default=60)
    parser.add_argument(
        "--everything", action="store_true", help="train on the validation texts, too"
    )
    return parser.parse_args()


def read_lines(path):
    with path.open() as file:
        return [json.loads(line) for line in file]


# --- examples -----------------------------------------------------------------------------------


class Examples:
    """Draws random training examples: (prompt text, target distribution, task)."""

    def __init__(self, data, everything):
        self.rows = {task: read_lines(data / f"{task}.train.jsonl") for task in TASKS}
        self.teacher = {task: numpy.load(data / f"{task}.teacher.npy") for task in TEACHER_SHARE}
        self.unlabelled = {}
        for task in UNLABELLED_SHARE:
            texts = read_lines(data / f"{task}.unlabelled.jsonl")
            self.unlabelled[task] = list(zip(texts, self.teacher[task][-len(texts) :]))
        if everything:
            for task in TASKS:
                if task != "relevance":
                    self.rows[task] += read_lines(data / f"{task}.validation.jsonl")
        self.by_section = {}
        for row in self.rows["relevance"]:
            self.by_section.setdefault(row["section"], []).append(row)
        self.queue = {task: [] for task in TASKS}
        self.seed(0)

    def seed(self, seed):
        self.random = random.Random(seed)

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

    def wrong_short(self, index):
        """The short text of another package than that of row `index`."""
        rows = self.rows["relevance"]
        kind = self.random.choices(list(WRONG_PAIRS), list(WRONG_PAIRS.values()))[0]
        if kind == "any":
            return self.random.choice(rows)["short"]
        if kind == "section":
            return self.random.choice(self.by_section[rows[index]["section"]])["short"]
        distance = self.random.choice((-1, 1)) * self.random.randint(1, NEIGHBOURS)
        return rows[(index + distance) % len(rows)]["short"]

    def relevance(self):
        index = self.next_index("relevance")
        row = self.rows["relevance"][index]
        short, long = row["short"], row["long"]
        if self.random.random() >= 0.5:
            short = self.wrong_short(index)
        if self.random.random() < LATER_START_SHARE:
            words = long.split(" ")
            long = " ".join(words[self.random.randint(0, len(words) // 2) :])
        fits = short == row["short"]
        limit = TASKS["relevance"]["max_text_chars"]
        text = f"{short}\n{long}"[:limit].rstrip()
        return text, numpy.array([1 - fits, fits], dtype=numpy.float32)

    def draw(self):
        task = self.random.choices(list(EXAMPLE_SHARE), list(EXAMPLE_SHARE.values()))[0]
        if task == "relevance":
            text, target = self.relevance()
        elif self.random.random() < UNLABELLED_SHARE.get(task, 0):
            row, target = self.random.choice(self.unlabelled[task])
            if task == "sentiment":  # made of words that count, each of them
                return prompt(task, row["text"]), target, task
            text = row["text"]
        else:
            index = self.next_index(task)
            text, target = self.rows[task][index]["text"], self.target(task, index)
        return prompt(task, self.drop_words(task, text)), target, task


class Packer:
    """Packs examples into batches of one fixed shape, several texts in a row.

    A batch: tokens, texts  # [rows, ROW_TOKENS]; where the answers are read, in the flattened
    tokens  # [EXAMPLES]; for each label of the example's task its token, its target share, and
    whether it is one at all  # [EXAMPLES, labels]; a sample of places whose next token is of the
    same text  # [NEXT_TOKEN_POSITIONS]. Missing examples have no target.
    """

    def __init__(self, tokenizer, rows):
        self.tokenizer, self.rows = tokenizer, rows
        self.label_tokens = {
            name: [tokenizer.encode(label).ids[0] for label in task["labels"]]
            for name, task in TASKS.items()
        }

    def batches(self, examples):
        """Batches of all (prompt text, target, task); too long a text is left out."""
        rows, chosen = [[]], []
        for text, target, task in examples:
            ids = self.tokenizer.encode(text).ids
            if len(ids) > ROW_TOKENS:
                continue
            if sum(map(len, rows[-1])) + len(ids) > ROW_TOKENS:
                rows.append([])
            if len(rows) > self.rows or len(chosen) == EXAMPLES:
                yield self.batch(rows[: self.rows], chosen)
                rows, chosen = [[]], []
            rows[-1].append(ids)
            chosen.append((target, task))
        yield self.batch(rows, chosen)

    def batch(self, rows, chosen):
        tokens = numpy.zeros((self.rows, ROW_TOKENS), dtype=numpy.int64)
        texts, answers = numpy.zeros_like(tokens), numpy.zeros(EXAMPLES, dtype=numpy.int64)
        count = 0
        for index, row in enumerate(rows):
            start = 0
            for number, ids in enumerate(row, start=1):
                end = start + len(ids)
                tokens[index, start:end], texts[index, start:end] = ids, number
                answers[count] = index * ROW_TOKENS + end - 1
                start, count = end, count + 1
        followed = numpy.zeros_like(texts, dtype=bool)
        followed[:, :-1] = (texts[:, :-1] == texts[:, 1:]) & (texts[:, 1:] > 0)
        sample = numpy.random.choice(numpy.flatnonzero(followed), NEXT_TOKEN_POSITIONS)
        arrays = (tokens, texts, answers, *self.targets(chosen), sample)
        return [torch.from_numpy(array) for array in arrays]

    def targets(self, chosen):
        labels = numpy.zeros((EXAMPLES, MOST_LABELS), dtype=numpy.int64)
        targets = numpy.zeros((EXAMPLES, MOST_LABELS), dtype=numpy.float32)
        is_label = numpy.zeros((EXAMPLES, MOST_LABELS), dtype=bool)
        is_label[:, 0] = True  # a missing example's sums stay finite
        for index, (target, task) in enumerate(chosen):
            labels[index, : len(target)] = self.label_tokens[task]
            targets[index, : len(target)] = target
            is_label[index, : len(target)] = True
        return labels, targets, is_label


class Stream(torch.utils.data.IterableDataset):
    """Endless batches; every worker draws its own."""

    def __init__(self, examples, packer, seed):
        self.examples, self.packer, self.first_seed = examples, packer, seed

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        seed = self.first_seed * 1000 + (worker.id if worker else 0)
        self.examples.seed(seed)
        numpy.random.seed(seed)
        return self.packer.batches(iter(self.examples.draw, None))


# --- training -------------------------------------------------------------------------------------


def label_scores(model, hidden, answers, labels, is_label):
    """Log-probabilities over each example's labels, and the log of their mass in the whole
    vocabulary  # [examples, labels], [examples]"""
    logits = model.token_logits(hidden.flatten(0, 1)[answers]).float()
    label_logits = logits.gather(1, labels).masked_fill(~is_label, float("-inf"))
    mass = label_logits.logsumexp(dim=-1) - logits.logsumexp(dim=-1)
    return label_logits.log_softmax(dim=-1), mass


def batch_loss(model, batch, next_token_weight):
    """Labels should be what follows a prompt: their mass counts a little, too."""
    tokens, texts, answers, labels, targets, is_label, sample = batch
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        hidden = model(tokens, texts)
        scores, mass = label_scores(model, hidden, answers, labels, is_label)
        losses = -(targets * scores.masked_fill(~is_label, 0)).sum(dim=-1)
        losses = losses - ANY_LABEL_WEIGHT * mass * targets.sum(dim=-1)
        logits = model.token_logits(hidden.flatten(0, 1)[sample]).float()
        next_token_loss = functional.cross_entropy(logits, tokens.flatten()[sample + 1])
    loss = losses.sum() / targets.sum() + next_token_weight * next_token_loss
    balance = sum(layer.mlp.take_balance_loss() for layer in model.layers) / len(model.layers)
    return loss + BALANCE_WEIGHT * balance


def parameter_groups(model):
    """Decay for matrices only, less for the embeddings."""
    groups = {0.0: [], 0.02: [], 0.1: []}
    for name, weight in model.named_parameters():
        decay = 0.0 if weight.dim() == 1 else 0.02 if "embed" in name else 0.1
        groups[decay].append(weight)
    return [{"params": weights, "weight_decay": decay} for decay, weights in groups.items()]


class Trainer:
    """Model, optimizer and the running average of the weights.

    On a GPU a step is recorded once and then replayed: launching its thousand small kernels
    one by one would take longer than running them.
    """

    def __init__(self, model, device):
        self.model, self.average = model, copy.deepcopy(model).eval()
        self.rate = torch.zeros((), device=device)
        self.next_token_weight = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model),
            lr=self.rate,
            betas=(0.9, 0.98),
            fused=True,
            capturable=device == "cuda",
        )
        self.steps, self.is_cuda = 0, device == "cuda"
        self.batch = self.graph = None

    def step(self, batch, rate, next_token_weight):
        self.rate.fill_(rate)
        self.next_token_weight.fill_(next_token_weight)
        if self.batch is None:
            self.batch = [tensor.to(self.rate.device) for tensor in batch]
        for own, given in zip(self.batch, batch):
            own.copy_(given, non_blocking=True)
        if self.is_cuda and self.steps >= STEPS_BEFORE_RECORDING:
            self.replay()
        else:
            self.run()
        self.steps += 1

    def run(self):
        self.optimizer.zero_grad()
        loss = batch_loss(self.model, self.batch, self.next_token_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.average.parameters(), self.model.parameters()):
                old.lerp_(new, 1 - AVERAGE_DECAY)

    def replay(self):
        if self.graph is None:
            self.optimizer.zero_grad()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
                self.run()
        self.graph.replay()


class Validation:
    """The validation texts of every task, ready on the device."""

    def __init__(self, data, packer, device):
        self.batches = {}
        for task, definition in TASKS.items():
            examples = []
            for row in read_lines(data / f"{task}.validation.jsonl"):
                target = numpy.zeros(len(definition["labels"]), dtype=numpy.float32)
                target[definition["labels"].index(row["label"])] = 1
                examples.append((prompt(task, row["text"]), target, task))
            self.batches[task] = [
                [tensor.to(device) for tensor in batch] for batch in packer.batches(examples)
            ]

    @torch.no_grad()
    def figures(self, model):
        """{task: accuracy}, and for every layer the load of its most over least used expert."""
        accuracy, loads = {}, 0
        for task, batches in self.batches.items():
            hits = count = 0
            for tokens, texts, answers, labels, targets, is_label, _ in batches:
                with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
                    hidden = model(tokens, texts)
                    scores, _ = label_scores(model, hidden, answers, labels, is_label)
                hits += (targets.gather(1, scores.argmax(dim=-1, keepdim=True))).sum().item()
                count += targets.sum().item()
                loads = loads + torch.stack([layer.mlp.load for layer in model.layers])
            accuracy[task] = round(hits / count, 4)
        spread = loads.amax(dim=1) / loads.amin(dim=1).clamp(min=1)
        return accuracy, [round(value, 2) for value in spread.tolist()]


class Report:
    """Figures of the averaged weights on the validation texts; keeps the best weights."""

    def __init__(self, options, validation):
        self.validation, self.seconds = validation, options.report_seconds
        self.checkpoint = options.work / options.checkpoint
        self.started = self.last = time.monotonic()
        self.best = 0.0

    def minutes(self):
        return (time.monotonic() - self.started) / 60

    def is_due(self):
        return time.monotonic() - self.last > self.seconds

    def write(self, average, step, tokens):
        accuracy, spread = self.validation.figures(average)
        mean = sum(accuracy.values()) / len(accuracy)
        if mean >= self.best:
            self.best = mean
            torch.save(average.state_dict(), self.checkpoint)
        self.last = time.monotonic()
        print(
            f"{self.minutes():.1f} min, step {step}, {tokens / 1e6:.1f} M tokens, "
            f"{accuracy}, mean {mean:.4f}, expert load max/min {spread}",
            flush=True,
        )


def learning_rate(peak, step, progress):
    return peak * min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * progress)) / 2


def new_model(options):
    torch.manual_seed(options.seed)
    model = Model(options.dropout)
    start = numpy.load(options.work / "data" / "embeddings.npy").astype(numpy.float32)
    model.embed_tokens.weight.data.copy_(torch.from_numpy(start))
    return model.to(options.device)


def main():
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are parallel
    options = arguments()
    data = options.work / "data"
    packer = Packer(
        Tokenizer.from_file(str(options.work / "model" / "tokenizer.json")), options.rows
    )
    stream = Stream(Examples(data, options.everything), packer, options.seed)
    batches = iter(
        torch.utils.data.DataLoader(stream, batch_size=None, num_workers=options.workers)
    )
    if options.device == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be recorded
    trainer = Trainer(new_model(options), options.device)
    report = Report(options, Validation(data, packer, options.device))
    tokens = 0
    while (progress := report.minutes() / options.minutes) < 1:
        batch = next(batches)
        tokens += int((batch[1] > 0).sum())
        rate = learning_rate(options.learning_rate, trainer.steps, progress)
        trainer.step(batch, rate, NEXT_TOKEN_WEIGHT * (1 - progress))
        if report.is_due():
            report.write(trainer.average, trainer.steps, tokens)
    report.write(trainer.average, trainer.steps, tokens)


if __name__ == "__main__":
    main()
