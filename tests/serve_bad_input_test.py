"""Bad input gets a clear error, or nothing at all, and the server goes on."""

import json
import random
import socket
import unittest

from server_process import TIMEOUT_SECONDS, Server


class ServeBadInputTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def tearDown(self):
        """Whatever a test did: the server still answers, and answers right."""
        self.assertIsNone(self.server.process.poll(), "the server died")
        question = {
            "task": "language",
            "input": "Perl-Erweiterung zur Bestimmung der Größe eines Fensters. Das Modul bietet "
            "einen einfachen Weg, sie zu bestimmen, und wird von mehreren Programmen verwendet.",
        }
        status, answer = self.server.post("/v1/classify", question)
        self.assertEqual(status, 200, answer)
        self.assertEqual(answer["data"][0]["label"], " German")
        self.assertGreater(max(answer["data"][0]["probs"]), 0.99)

    def assert_refused(self, path, body, status, *words):
        """The request gets this status and a message with these words."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        code, answer = self.server.request("POST", path, body)
        self.assertEqual(code, status, answer[:500])
        message = json.loads(answer)["error"]["message"]
        for word in words:
            self.assertIn(word, message)

    def test_an_empty_prompt(self):
        self.assert_refused("/v1/completions", {"prompt": "", "max_tokens": 1}, 400, "prompt")
        self.assert_refused("/v1/completions", {"prompt": [], "max_tokens": 1}, 400, "prompt")
        self.assert_refused("/v1/embeddings", {"input": ""}, 400, "input")
        self.assert_refused(
            "/v1/score", {"query": "", "items": [""], "label_token_ids": [1]}, 400, "items"
        )

    def test_a_label_without_tokens(self):
        body = {"input": "text", "labels": [" yes", ""]}
        self.assert_refused("/v1/classify", body, 400, "labels[1]")

    def test_labels_that_are_the_same(self):
        body = {"input": "text", "labels": [" yes", " no", " yes"]}
        self.assert_refused("/v1/classify", body, 400, "labels")

    def test_ten_megabytes_of_text(self):
        body = {"task": "topic", "input": "word " * 2_000_000}
        self.assert_refused("/v1/classify", body, 400, "input")

    def test_a_prompt_longer_than_the_model_takes(self):
        body = {"prompt": [5] * 1025, "max_tokens": 1}
        self.assert_refused("/v1/completions", body, 400, "1024")
        self.assert_refused("/v1/classify", {"task": "topic", "input": "a b c " * 400}, 400, "1024")

    def test_tokens_outside_the_vocabulary(self):
        for token in (-1, 16384, 2**40):
            body = {"prompt": [5, token], "max_tokens": 1}
            self.assert_refused("/v1/completions", body, 400, "prompt")

    def test_json_that_is_none(self):
        for body in (b"", b"{", b"[1]", b'{"input": }', b"\xff\xfe", b"null", b"[" * 100_000):
            self.assert_refused("/v1/classify", body, 400)

    def test_fields_of_the_wrong_type(self):
        for body in (
            {"task": "topic", "input": 5},
            {"task": "topic", "input": [["nested"]]},
            {"task": 3, "input": "text"},
            {"input": "text", "labels": " yes"},
            {"input": "text", "labels": [1, 2]},
            {"task": "no such task", "input": "text"},
            {"task": "topic"},
        ):
            code, answer = self.server.post("/v1/classify", body)
            self.assertIn(code, (200, 400), answer)
            if code == 400:
                self.assertTrue(answer["error"]["message"])

    def test_a_model_that_is_not_here(self):
        body = {"model": "gpt-9", "task": "topic", "input": "text"}
        self.assert_refused("/v1/classify", body, 404, "gpt-9")

    def test_paths_and_methods_that_are_not_here(self):
        self.assertEqual(self.server.request("GET", "/nowhere")[0], 404)
        self.assertEqual(self.server.request("GET", "/v1/classify")[0], 405)

    def test_a_body_that_is_too_large(self):
        with self.server_socket() as client:
            client.sendall(
                b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
            )
            self.assertIn(b"413", client.recv(4096))

    def server_socket(self):
        return socket.create_connection(("127.0.0.1", self.server.port), TIMEOUT_SECONDS)

    def test_clients_that_leave(self):
        body = json.dumps({"task": "topic", "input": ["some words of text " * 60] * 50}).encode()
        head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        for sent in (b"", b"PO", head[:40], head, head + body[: len(body) // 2], head + body):
            for _ in range(5):
                with self.server_socket() as client:
                    client.sendall(sent)

    def test_noise(self):
        noise = random.Random(3)
        for _ in range(20):
            with self.server_socket() as client:
                client.sendall(noise.randbytes(noise.randint(1, 4000)) + b"\r\n\r\n")


if __name__ == "__main__":
    unittest.main()
