"""The endpoints of a running server answer what they promise, alone and in a crowd."""

import base64
import concurrent.futures
import json
import math
import random
import struct
import unittest

from server_process import MODEL, Server

TASKS = json.loads((MODEL / "tasks.json").read_text(encoding="utf-8"))
TEXTS = [
    "A library for regular expressions with Unicode support.",
    "Ein Programm, das Dateien zwischen zwei Rechnern abgleicht.",
    "Buy cheap watches now!!! Limited offer, click here.",
    "The battery died after two days and support never answered.",
    "Game of skill: stack falling blocks into rows.",
    "日本語の文書を整形するためのツールです。",
]


def log_sum_exp(values):
    highest = max(values)
    return highest + math.log(sum(math.exp(value - highest) for value in values))


class ServeAnswersTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def ask(self, path, body):
        status, answer = self.server.post(path, body)
        self.assertEqual(status, 200, answer)
        return answer

    def token_ids(self, text):
        return self.ask("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]

    def test_health_models_and_metrics(self):
        self.assertEqual(self.server.request("GET", "/health")[0], 200)
        self.assertEqual(self.server.request("GET", "/ready")[0], 200)
        status, body = self.server.request("GET", "/v1/models")
        self.assertEqual(status, 200)
        self.assertEqual(json.loads(body)["data"][0]["id"], "zeroprefill-mini")
        self.ask("/v1/classify", {"task": "spam", "input": TEXTS[0]})
        _, page = self.server.request("GET", "/metrics")
        for name in (b"zeroprefill_queue_tokens", b"zeroprefill_computed_tokens_total"):
            self.assertIn(name, page)

    def test_tokens_go_there_and_back(self):
        for text in TEXTS:
            tokens = self.token_ids(text)
            self.assertEqual(self.ask("/detokenize", {"tokens": tokens})["prompt"], text)

    def test_classify_by_a_task_of_the_model(self):
        for task, definition in TASKS.items():
            answer = self.ask("/v1/classify", {"task": task, "input": TEXTS})
            self.assertEqual(len(answer["data"]), len(TEXTS))
            for row in answer["data"]:
                self.assertEqual(len(row["probs"]), len(definition["labels"]))
                self.assertAlmostEqual(sum(row["probs"]), 1, places=6)
                best = row["probs"].index(max(row["probs"]))
                self.assertEqual(row["label"], definition["labels"][best])

    def test_a_german_text_is_german(self):
        answer = self.ask("/v1/classify", {"task": "language", "input": TEXTS[1]})
        self.assertEqual(answer["data"][0]["label"], " German")

    def test_labels_of_several_tokens_and_a_template(self):
        body = {
            "input": TEXTS[:2],
            "template": "{text}\nThis text is about",
            "labels": [" a programming library", " a cooking recipe", " music"],
        }
        answer = self.ask("/v1/classify", body)
        for row in answer["data"]:
            self.assertAlmostEqual(sum(row["probs"]), 1, places=6)

    def test_score_over_labels_and_over_the_vocabulary(self):
        labels = TASKS["spam"]["labels"]
        body = {"query": TEXTS[2], "items": ["\nMail:", "\nSubject:"], "labels": labels}
        over_vocabulary = self.ask("/v1/score", body)["scores"]
        over_labels = self.ask("/v1/score", {**body, "apply_softmax": True})["scores"]
        for absolute, relative in zip(over_vocabulary, over_labels):
            self.assertLess(sum(absolute), 1.0000001)
            self.assertAlmostEqual(sum(relative), 1, places=6)
            self.assertAlmostEqual(relative[0], absolute[0] / sum(absolute), places=3)

    def test_label_token_ids_are_the_labels_they_stand_for(self):
        labels = TASKS["spam"]["labels"]
        token_ids = [self.token_ids(label)[0] for label in labels]
        body = {"query": TEXTS[2], "items": ["\nMail:"], "apply_softmax": True}
        by_text = self.ask("/v1/score", {**body, "labels": labels})["scores"]
        by_token = self.ask("/v1/score", {**body, "label_token_ids": token_ids})["scores"]
        self.assertEqual(by_text, by_token)

    def test_completions_as_an_evaluation_harness_sends_them(self):
        prompts = [self.token_ids(text) for text in TEXTS[:3]]
        body = {
            "model": "zeroprefill-mini",
            "prompt": prompts,
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": 1234,
            "echo": True,
        }
        choices = self.ask("/v1/completions", body)["choices"]
        self.assertEqual([choice["index"] for choice in choices], [0, 1, 2])
        for prompt, choice in zip(prompts, choices):
            log_probs = choice["logprobs"]["token_logprobs"]
            tops = choice["logprobs"]["top_logprobs"]
            # One entry per token and one for the token that would come next.
            self.assertEqual(len(log_probs), len(prompt) + 1)
            self.assertEqual(len(tops), len(prompt) + 1)
            self.assertIsNone(log_probs[0])
            for log_prob, top in zip(log_probs[1:], tops[1:]):
                self.assertLessEqual(log_prob, max(top.values()))
            self.assertEqual(log_probs[-1], max(tops[-1].values()))

    def test_continuations_agree_with_echo(self):
        prompt, continuation = TEXTS[0], " It is written in C."
        prompt_length = len(self.token_ids(prompt))
        whole = self.token_ids(prompt + continuation)
        echo = self.ask(
            "/v1/completions", {"prompt": whole, "max_tokens": 0, "logprobs": 1, "echo": True}
        )["choices"][0]["logprobs"]["token_logprobs"]
        body = {"context": prompt, "continuation": continuation}
        status, answer = self.server.post("/v1/loglikelihood", body)
        if status != 200:
            self.skipTest(f"/v1/loglikelihood: {answer}")
        found = json.dumps(answer)
        self.assertIn(json.dumps(sum(echo[prompt_length:]))[:7], found)

    def test_embeddings_have_length_one_in_both_encodings(self):
        body = {"input": TEXTS, "model": "zeroprefill-mini"}
        plain = self.ask("/v1/embeddings", {**body, "encoding_format": "float"})["data"]
        packed = self.ask("/v1/embeddings", {**body, "encoding_format": "base64"})["data"]
        for as_list, as_text in zip(plain, packed):
            vector = as_list["embedding"]
            self.assertAlmostEqual(sum(value * value for value in vector), 1, places=4)
            raw = base64.b64decode(as_text["embedding"])
            unpacked = struct.unpack(f"<{len(raw) // 4}f", raw)
            for value, other in zip(vector, unpacked):
                self.assertAlmostEqual(value, other, places=6)

    def test_answers_are_bit_equal_alone_and_in_a_crowd(self):
        requests = []
        for seed in range(60):
            chooser = random.Random(seed)
            words = " ".join(chooser.choices(" ".join(TEXTS[:5]).split(), k=chooser.randint(1, 90)))
            task = chooser.choice(sorted(TASKS))
            requests.append({"task": task, "input": words})
            requests.append({"task": "topic", "input": TEXTS[0] + " " + words})
        alone = [self.ask("/v1/classify", request)["data"] for request in requests]
        order = list(range(len(requests))) * 3
        random.Random(7).shuffle(order)
        with concurrent.futures.ThreadPoolExecutor(24) as crowd:
            answers = list(
                crowd.map(lambda i: self.ask("/v1/classify", requests[i])["data"], order)
            )
        for index, answer in zip(order, answers):
            self.assertEqual(answer, alone[index])

    def test_a_prefix_cache_saves_work_and_changes_no_answer(self):
        prompt = " ".join(TEXTS)
        requests = [
            ("/v1/classify", {"task": "topic", "input": [prompt, prompt + " More."]}),
            ("/v1/completions", {"prompt": prompt, "max_tokens": 1, "logprobs": 2, "echo": True}),
            ("/v1/loglikelihood", {"context": prompt, "continuations": [" Yes.", " No."]}),
            ("/v1/embeddings", {"input": prompt, "pooling": "mean"}),
        ]

        def answers(server, extra):
            found = []
            for path, body in requests:
                status, answer = server.post(path, {**body, **extra})
                self.assertEqual(status, 200, answer)
                found.append(answer.get("data") or [c["logprobs"] for c in answer["choices"]])
            return found

        expected = answers(self.server, {})
        with Server(flags=["--prefix-cache", "64MiB"]) as server:
            for extra in ({}, {}, {"cache_salt": "mine"}):
                self.assertEqual(answers(server, extra), expected)

            def cached_tokens(extra):
                _, answer = server.post("/v1/classify", {**requests[0][1], **extra})
                return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

            self.assertGreater(cached_tokens({}), 0)
            self.assertGreater(cached_tokens({"cache_salt": "mine"}), 0)
            self.assertEqual(cached_tokens({"cache_salt": "yours"}), 0)
            _, page = server.request("GET", "/metrics")
            self.assertRegex(page.decode(), r"prefix_cache_hit_tokens_total{[^}]*} [1-9]")
            self.assertRegex(page.decode(), r"prefix_cache_bytes{[^}]*} [1-9]")


if __name__ == "__main__":
    unittest.main()
