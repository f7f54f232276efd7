"""After any mix of fates, two ranks stand at exactly zero, and every answer that came was right."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import re
import socket
import time
import unittest

from server_process import MODEL, TIMEOUT_SECONDS, Server

OPERATIONS = 12_000
CLIENTS = 24
FLAGS = ["--ranks", "2", "--dtype", "f32", "--prefix-cache", "16MiB"]
FLAGS += ["--max-queue-tokens", "5000", "--allow-priority"]

WORDS = json.loads((MODEL / "tasks.json").read_text(encoding="utf-8"))
TASKS = sorted(WORDS)
TEXT = (
    "A library for regular expressions with Unicode support. Ein Programm, das Dateien zwischen "
    "zwei Rechnern abgleicht. The battery died after two days and support never answered."
).split()


def make_requests(chooser):
    """Of every endpoint, long and short, with beginnings in common."""
    requests = []
    for _ in range(12):
        text = " ".join(TEXT[: chooser.randint(1, 20)] + chooser.choices(TEXT, k=40))
        several = [text + " " + chooser.choice(TEXT) for _ in range(chooser.randint(1, 6))]
        requests += [
            ("/v1/classify", {"task": chooser.choice(TASKS), "input": several}),
            ("/v1/completions", {"prompt": text, "max_tokens": 1, "logprobs": 3, "echo": True}),
            ("/v1/completions", {"prompt": several, "max_tokens": 0, "logprobs": 1, "echo": True}),
            ("/v1/loglikelihood", {"context": text, "continuations": [" Yes.", " No.", "?"]}),
            ("/v1/embeddings", {"input": several, "pooling": chooser.choice(["mean", "last"])}),
        ]
    return requests


BAD_REQUESTS = [
    ("/v1/completions", {"prompt": "", "max_tokens": 1}),
    ("/v1/completions", {"prompt": [5] * 1025, "max_tokens": 1}),
    ("/v1/completions", {"prompt": [5, -1], "max_tokens": 1}),
    ("/v1/classify", {"task": "no such task", "input": "text"}),
    ("/v1/classify", {"input": "text", "labels": [" yes", " yes"]}),
    ("/v1/embeddings", {"input": 7}),
]


def figures_of(answer):
    """What depends on the request alone: neither names, times nor what it cost."""
    return {key: answer[key] for key in ("data", "choices", "scores", "results") if key in answer}


def read_metrics(server):
    """Series to value."""
    _, page = server.request("GET", "/metrics")
    lines = [line for line in page.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def total_of(metrics, pattern):
    return sum(value for name, value in metrics.items() if re.fullmatch(pattern, name))


class LedgerSoakTest(unittest.TestCase):
    def setUp(self):
        seed = int(os.environ.get("ZP_SEED", random.SystemRandom().randrange(2**32)))
        print(f"ZP_SEED={seed}", flush=True)
        self.seed = seed
        self.requests = make_requests(random.Random(seed))

    def ask(self, connection, path, body, headers=None):
        """One request over a kept-alive connection: status, headers and answer."""
        connection.request("POST", path, json.dumps(body), headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read())

    def check(self, status, headers, answer, index, may_be):
        """An answer is right, or an error that may be."""
        self.assertIn(status, may_be, answer)
        if status == 200:
            self.assertEqual(figures_of(answer), self.alone[index])
            return
        self.assertLessEqual({"message", "type", "code", "param"}, set(answer["error"]))
        if status == 429:
            self.assertGreaterEqual(int(headers["Retry-After"]), 1)
            self.assertEqual(answer["error"]["type"], "rate_limit_error")
            self.assertRegex(answer["error"]["message"], r"limit (is|of) [\d.]+")

    def leave(self, server, chooser, path, body):
        """A client that goes: in the middle of its body, at once, or while it is served."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        whole = head.encode() + data
        with socket.create_connection((server.host, server.port), TIMEOUT_SECONDS) as client:
            client.sendall(whole[: chooser.choice([len(whole) // 2, len(whole), len(whole)])])
            time.sleep(chooser.choice([0, 0.002, 0.02]))

    def run_client(self, server, number):
        """One client's share of the operations; what became of them."""
        chooser = random.Random(f"{self.seed} {number}")
        fates = []
        with contextlib.closing(
            http.client.HTTPConnection(server.host, server.port, timeout=TIMEOUT_SECONDS)
        ) as connection:
            for _ in range(OPERATIONS // CLIENTS):
                index = chooser.randrange(len(self.requests))
                path, body = self.requests[index]
                what = chooser.random()
                if what < 0.15:
                    self.leave(server, chooser, path, body)
                    fates.append("left")
                    continue
                if what < 0.25:
                    status, headers, answer = self.ask(connection, *chooser.choice(BAD_REQUESTS))
                    self.check(status, headers, answer, index, {400, 429})
                elif what < 0.5:
                    hurry = {"X-Request-Timeout-Ms": str(chooser.choice([1, 2, 5, 10, 20, 50]))}
                    status, headers, answer = self.ask(connection, path, body, hurry)
                    self.check(status, headers, answer, index, {200, 429, 504})
                else:
                    body = {**body, "priority": chooser.randint(0, 1)}
                    status, headers, answer = self.ask(connection, path, body)
                    self.check(status, headers, answer, index, {200, 429})
                fates.append(status)
        return fates

    def wait_until_idle(self, server):
        """The metrics once no request is open: those of clients that left may still be computed."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            metrics = read_metrics(server)
            busy = metrics["zeroprefill_requests_open"] + total_of(
                metrics, r"zeroprefill_(router_outstanding|queue)_requests\{.*"
            )
            if busy == 0 or time.monotonic() > deadline:
                return metrics
            time.sleep(0.05)

    def test_whatever_becomes_of_requests_the_ledger_ends_at_zero(self):
        with Server(flags=FLAGS) as server:
            self.alone = []
            for path, body in self.requests:
                status, answer = server.post(path, body)
                self.assertEqual(status, 200, answer)
                self.alone.append(figures_of(answer))
                self.assertTrue(self.alone[-1])
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as crowd:
                clients = [crowd.submit(self.run_client, server, i) for i in range(CLIENTS)]
                fates = [fate for client in clients for fate in client.result()]
            print({fate: fates.count(fate) for fate in set(fates)}, flush=True)
            for fate in (200, 400, 429, 504, "left"):
                self.assertIn(fate, fates)

            metrics = self.wait_until_idle(server)
            self.assertEqual(metrics["zeroprefill_requests_open"], 0)
            for rank in (0, 1):
                for name in (
                    "router_outstanding_flops",
                    "router_outstanding_requests",
                    "queue_tokens",
                    "queue_requests",
                ):
                    self.assertEqual(metrics[f'zeroprefill_{name}{{rank="{rank}"}}'], 0, name)
                answered = f'zeroprefill_works_total{{outcome="answered",rank="{rank}"}}'
                self.assertGreater(metrics[answered], 0, "a rank had nothing to do")
            # Each work that was brought to a rank had one end.
            self.assertEqual(
                total_of(metrics, r"zeroprefill_router_decisions_total\{.*"),
                total_of(metrics, r"zeroprefill_works_total\{.*"),
            )
            # Nothing is left behind: the ranks answer as before.
            for (path, body), figures in zip(self.requests, self.alone):
                status, answer = server.post(path, body)
                self.assertEqual(status, 200, answer)
                self.assertEqual(figures_of(answer), figures)
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
