"""A server starts on good models only, says what is wrong with bad ones, and ends in order."""

import concurrent.futures
import contextlib
import json
import os
import signal
import struct
import subprocess
import threading
import time
import unittest

from server_process import BINARY, MODEL, Server, fails_to_start, model_copy


def read_safetensors_header(path):
    """The header of a safetensors file and where its data begins."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(length)), 8 + length


class StartUpTest(unittest.TestCase):
    def assert_refused(self, model, *words):
        """The server ends with one clear sentence that holds these words."""
        code, log = fails_to_start(model)
        self.assertEqual(code, 1, log)
        sentences = [line for line in log.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(sentences), 1, log)
        for word in words:
            self.assertIn(word, sentences[0])

    def test_a_folder_that_is_not_there(self):
        self.assert_refused("/no/such/model", "/no/such/model")

    def test_a_model_that_would_have_to_be_downloaded(self):
        self.assert_refused("Qwen/Qwen3-30B-A3B", "--model", "Qwen/Qwen3-30B-A3B", "directory")
        self.assert_refused("", "--model")

    def test_a_prefix_cache_that_leaves_nothing(self):
        code, log = fails_to_start(MODEL, ["--prefix-cache", "999TiB"])
        self.assertEqual(code, 1, log)
        self.assertIn("--prefix-cache: 999 TiB leaves no memory", log)

    def test_a_flag_out_of_range_is_named_with_its_range(self):
        for flag, value, word in (
            ("--port", "99999", "65535"),
            ("--port", "http", "65535"),
            ("--drain-seconds", "nan", "86400"),
            ("--max-backlog-seconds", "nan", "above 0"),
            ("--max-queue-tokens", "0", "above 0"),
            ("--prefix-cache-quota", "2", "from 0 to 1"),
        ):
            code, log = fails_to_start(MODEL, [f"{flag}={value}"])
            self.assertNotEqual(code, 0, log)
            for part in (flag, value, word):
                self.assertIn(part, log)
            self.assertLess(len(log), 200)

    def test_a_misspelt_word_is_named(self):
        for words in (["sevre"], ["serve", "--modle", "x"], ["serve", "--model", "x", "--prot=1"]):
            result = subprocess.run([BINARY, *words], capture_output=True, text=True, check=False)
            self.assertNotEqual(result.returncode, 0)
            word = next(word for word in words if word in ("sevre", "--modle", "--prot=1"))
            self.assertIn(word, result.stderr)

    def test_a_truncated_shard(self):
        with model_copy() as model:
            shard = model / "model.safetensors"
            os.truncate(shard, shard.stat().st_size - 1000)
            self.assert_refused(model, "model.safetensors")

    def test_a_shard_cut_within_its_header(self):
        with model_copy() as model:
            os.truncate(model / "model.safetensors", 100)
            self.assert_refused(model, "model.safetensors")

    def test_a_config_that_contradicts_its_tensors(self):
        with model_copy() as model:
            config = json.loads((model / "config.json").read_text(encoding="utf-8"))
            config["hidden_size"] = 320
            (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
            self.assert_refused(model, "320")

    def test_a_config_with_more_layers_than_tensors(self):
        with model_copy() as model:
            config = json.loads((model / "config.json").read_text(encoding="utf-8"))
            config["num_hidden_layers"] += 1
            (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
            self.assert_refused(model, "layers.")

    def test_an_unknown_architecture(self):
        with model_copy() as model:
            config = json.loads((model / "config.json").read_text(encoding="utf-8"))
            config["model_type"] = "abacus"
            config["architectures"] = ["AbacusForCausalLM"]
            (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
            self.assert_refused(model, "abacus")

    def test_a_broken_tokenizer(self):
        with model_copy() as model:
            text = (model / "tokenizer.json").read_text(encoding="utf-8")
            (model / "tokenizer.json").write_text(text[: len(text) // 2], encoding="utf-8")
            self.assert_refused(model, "tokenizer.json")

    def test_a_missing_tokenizer(self):
        with model_copy() as model:
            (model / "tokenizer.json").unlink()
            self.assert_refused(model, "tokenizer.json")

    def test_a_weight_that_is_not_a_number(self):
        """Either the model is refused, or each request gets a clear error; never a wrong answer."""
        with model_copy() as model:
            shard = model / "model.safetensors"
            header, data_begin = read_safetensors_header(shard)
            name = next(name for name in header if name.endswith("layers.1.self_attn.q_proj.weight"))
            with open(shard, "r+b") as file:
                file.seek(data_begin + header[name]["data_offsets"][0])
                file.write(b"\xc0\x7f" * 8)
            try:
                server = Server(model)
            except RuntimeError as error:
                self.assertIn("error: ", str(error))
                return
            with server:
                status, answer = server.post("/v1/classify", {"task": "spam", "input": "text"})
                self.assertEqual(status, 500, answer)
                self.assertIn("not finite", answer["error"]["message"])
                self.assertEqual(server.request("GET", "/health")[0], 200)


class FullQueueTest(unittest.TestCase):
    def test_a_refusal_says_when_to_come_again(self):
        """Header and message give the same whole seconds."""
        question = {"task": "topic", "input": ["a text of some words " * 20] * 50}
        body = json.dumps(question).encode()
        refusals = []

        def ask(server):
            with contextlib.closing(server.connect()) as connection:
                connection.request("POST", "/v1/classify", body)
                answer = connection.getresponse()
                message = answer.read().decode()
                if answer.status == 429:
                    refusals.append((answer.getheader("Retry-After"), message))

        with Server(flags=["--max-queue-tokens", "1"]) as server:
            for _ in range(10):
                with concurrent.futures.ThreadPoolExecutor(16) as crowd:
                    list(crowd.map(ask, [server] * 16))
                if refusals:
                    break
        self.assertTrue(refusals, "160 requests found room in a queue of one token")
        for seconds, message in refusals:
            self.assertGreaterEqual(int(seconds), 1)
            self.assertIn(f"in about {seconds} s", message)


class ShutDownTest(unittest.TestCase):
    def test_requests_in_flight_get_their_answers(self):
        with Server() as server:
            body = {"task": "topic", "input": ["a text of some words " * 20] * 20}
            started = threading.Barrier(9)

            def ask():
                started.wait()
                return server.post("/v1/classify", body)[0]

            with concurrent.futures.ThreadPoolExecutor(8) as crowd:
                answers = [crowd.submit(ask) for _ in range(8)]
                started.wait()
                time.sleep(0.2)
                self.assertEqual(server.stop(), 0)
                statuses = []
                for answer in answers:
                    try:
                        statuses.append(answer.result())
                    except OSError:
                        statuses.append(0)  # came after the door was closed
            self.assertIn(200, statuses)
            self.assertTrue(set(statuses) <= {200, 503, 0}, statuses)

    def test_an_idle_server_ends_at_once(self):
        with Server() as server:
            begin = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            self.assertEqual(server.wait(), 0)
            self.assertLess(time.monotonic() - begin, 20)


if __name__ == "__main__":
    unittest.main()
