"""Hosts that share a model's experts, each a real process: all answer alike, whatever becomes of one.

The clusters here have two hosts on loopback addresses; each keeps half of the experts.
"""

import concurrent.futures
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from server_process import BINARY, MODEL, TIMEOUT_SECONDS, Server, fails_to_start

LAYERS, EXPERTS = 4, 16
WINDOW_SLOTS = 2
HELD_UP_SECONDS = 10
TOKEN = "a secret that only these tests know"


def texts(count, seed, most_words=59):
    """Texts of odd lengths that nobody has seen before."""
    words = random.Random(seed)
    return [
        " ".join(f"w{words.randrange(5000)}" for _ in range(words.randint(3, most_words)))
        for _ in range(count)
    ]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scores(server, inputs):
    """The scores of all labels, and nothing that depends on when they were asked."""
    status, answer = server.post("/v1/classify", {"task": "topic", "input": inputs})
    if status != 200:
        raise AssertionError(f"{status}: {answer}")
    return [entry["probs"] for entry in answer["data"]]


def metric(server, name):
    """The sum of a metric over its labels."""
    _, page = server.request("GET", "/metrics")
    pattern = re.compile(rf"^{name}(\{{[^}}]*\}})? (\S+)$")
    values = [match[2] for match in map(pattern.match, page.decode().splitlines()) if match]
    return sum(map(float, values))


def gathered_from(server, source):
    _, page = server.request("GET", "/metrics")
    pattern = re.compile(rf'^zeroprefill_gathered_bytes_total\{{.*source="{source}".*\}} (\S+)$')
    return sum(float(m[1]) for m in map(pattern.match, page.decode().splitlines()) if m)


def wait_until(condition, what):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {what}")
        time.sleep(0.05)


class ClusterCase(unittest.TestCase):
    """A packed model, and processes that share it; they end with the test."""

    dtype = "bf16"

    @classmethod
    def setUpClass(cls):
        cls.root = tempfile.TemporaryDirectory()
        cls.packed = pathlib.Path(cls.root.name, "packed")
        pack = [BINARY, "pack", str(MODEL), str(cls.packed), "--dtype", cls.dtype]
        subprocess.run(pack, check=True, capture_output=True)
        index = json.loads((cls.packed / "experts.json").read_text(encoding="utf-8"))
        cls.expert_bytes = index["expert_bytes"]
        kept = EXPERTS // 2
        cls.half = cls.expert_bytes * (LAYERS * kept + WINDOW_SLOTS * (EXPERTS - kept))
        cls.token_file = pathlib.Path(cls.root.name, "token")
        cls.token_file.write_text(TOKEN + "\n", encoding="utf-8")
        cls.inputs = texts(12, seed=1)
        with Server(flags=["--dtype", cls.dtype]) as alone:
            cls.expected = scores(alone, cls.inputs)

    @classmethod
    def tearDownClass(cls):
        cls.root.cleanup()

    def setUp(self):
        self.port = free_port()
        self.servers = []

    def tearDown(self):
        for server in self.servers:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
                server.process.kill()
            server.wait()

    def start(self, model, role, flags, **place):
        flags = ["--join-token-file", str(self.token_file), *flags]
        server = Server(model, flags=flags, role=role, **place)
        self.servers.append(server)
        return server

    def assert_answers(self, server):
        self.assertEqual(scores(server, self.inputs), self.expected)

    def assert_each_answers(self, server):
        """Each text as a request of its own, so that the founder's router brings some to every rank."""
        for text, expected in zip(self.inputs, self.expected):
            self.assertEqual(scores(server, [text]), [expected])

    def copy_of_packed(self, name):
        copy = pathlib.Path(self.root.name, name)
        shutil.copytree(self.packed, copy)
        self.addCleanup(shutil.rmtree, copy)
        return copy

    def corrupt(self, packed):
        for shard in packed.glob("experts-*.bin"):
            with open(shard, "r+b") as file:
                for expert in range(EXPERTS):
                    file.seek(expert * self.expert_bytes + 100)
                    file.write(b"\xff\x00\xff\x00")

    def assert_answers_soon(self, server):
        """Whatever became of other hosts, nobody waits for long: a stalled read has two seconds."""
        begin = time.monotonic()
        self.assert_answers(server)
        self.assertLess(time.monotonic() - begin, HELD_UP_SECONDS)


class ClusterTest(ClusterCase):
    def found(self, model=None, memory=None, flags=()):
        memory = str(memory or self.half)
        flags = ["--hosts", "2", "--cluster-port", str(self.port), "--expert-memory", memory, *flags]
        return self.start(model or self.packed, "serve", flags)

    def join(self, model=None, flags=()):
        return self.start(model or self.packed, "worker", ["--join", f"127.0.0.1:{self.port}", *flags])

    def cluster(self):
        founder, worker = self.found(), self.join()
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "two hosts")
        wait_until(lambda: metric(worker, "zeroprefill_cluster_hosts") == 2, "two hosts")
        return founder, worker

    def test_hosts_answer_as_one_process_does(self):
        founder, worker = self.cluster()
        for server, other in ((founder, "host 1"), (worker, "host 0")):
            self.assert_answers(server)
            self.assert_each_answers(server)
            self.assertGreater(gathered_from(server, other), 0)

    def test_a_host_that_is_killed_under_load_fails_no_request_elsewhere(self):
        founder, worker = self.cluster()
        asked = texts(200, seed=2)
        with Server() as alone:
            expected = [scores(alone, [text]) for text in asked]
        halfway = threading.Semaphore(0)

        def ask(text):
            answer = scores(founder, [text])
            halfway.release()
            return answer

        with concurrent.futures.ThreadPoolExecutor(8) as crowd:
            answers = [crowd.submit(ask, text) for text in asked]
            for _ in range(50):
                halfway.acquire()
            worker.process.kill()
            self.assertEqual([answer.result() for answer in answers], expected)
        worker.wait()
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 1, "the worker is missed")
        before = gathered_from(founder, "host 1")  # one slice may be enough to find the file faster

        returned = self.join()
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "it is back")
        self.assert_answers(returned)

        def reads_again():
            self.assert_each_answers(founder)
            return gathered_from(founder, "host 1") > before

        wait_until(reads_again, "its memory is read again")

    def test_a_host_that_freezes_holds_nobody_up(self):
        founder, worker = self.cluster()
        self.assert_answers(founder)
        worker.process.send_signal(signal.SIGSTOP)
        for _ in range(20):
            self.assert_answers_soon(founder)
        self.assert_each_answers(founder)
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 1, "it is missed")
        self.assert_answers(founder)
        worker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "it is back")
        self.assert_answers(worker)
        self.assert_answers(founder)

    def test_workers_go_on_without_the_founder_and_come_back_to_it(self):
        founder, worker = self.cluster()
        founder.process.kill()
        founder.wait()
        for _ in range(5):
            self.assert_answers(worker)
        founder = self.found()
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "the worker is back")
        wait_until(lambda: metric(worker, "zeroprefill_cluster_hosts") == 2, "the founder is back")
        self.assert_answers(founder)
        self.assert_answers(worker)

    def test_a_corrupt_shard_is_answered_from_the_host_that_has_the_expert(self):
        broken = self.copy_of_packed("broken")
        founder, worker = self.found(broken), self.join()
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "two hosts")
        self.corrupt(broken)
        for _ in range(5):
            self.assert_each_answers(founder)
        worker.process.kill()
        worker.wait()

        def is_refused():
            status, answer = founder.post("/v1/classify", {"task": "topic", "input": self.inputs})
            if status == 200:
                return False
            self.assertEqual(status, 500, answer)
            self.assertRegex(answer["error"]["message"], r"layer \d+, expert \d+")
            return True

        wait_until(is_refused, "the experts are nowhere whole")
        self.assertEqual(founder.request("GET", "/health")[0], 200)
        self.join()
        wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "it is back")
        self.assert_answers(founder)

    def test_a_host_without_the_files_loads_from_the_others(self):
        bare = self.copy_of_packed("bare")
        for shard in bare.glob("experts-*.bin"):
            shard.unlink()
        everything = self.expert_bytes * LAYERS * EXPERTS
        founder = self.found(memory=everything)
        worker = self.join(bare)
        self.assert_answers(worker)
        self.assert_answers(founder)

    def test_who_does_not_belong_is_refused(self):
        self.found()
        join = ["--join", f"127.0.0.1:{self.port}"]
        wrong = pathlib.Path(self.root.name, "wrong")
        wrong.write_text("some other secret of some length", encoding="utf-8")
        other = self.copy_of_packed("other")
        config = json.loads((other / "config.json").read_text(encoding="utf-8"))
        config["rms_norm_eps"] = 1e-5
        (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
        token = ["--join-token-file", str(self.token_file)]
        for model, flags, words in [
            (self.packed, [*join, "--join-token-file", str(wrong)], "join token is not"),
            (self.packed, join, "--join-token-file"),
            (other, [*join, *token], "model_fingerprint"),
            (MODEL, [*join, *token], "zeroprefill pack"),
            (self.packed, [*join, *token, "--expert-memory", "1MiB"], "expert_memory_bytes"),
            (self.packed, [*join, *token, "--ranks", "3"], "rank_count"),
            (self.packed, ["--join", "203.0.113.1:1", *token], "TLS"),
            (self.packed, ["--join", "nowhere", *token], "HOST:PORT"),
        ]:
            with self.subTest(words):
                code, log = fails_to_start(model, flags, role="worker")
                self.assertNotEqual(code, 0, log)
                self.assertIn(words, log)

    def test_works_travel_by_tls_or_not_at_all(self):
        """A worker whose certificate the founder does not trust gets no works; nobody else minds."""
        if shutil.which("openssl") is None:
            self.skipTest("openssl makes the certificates")
        keys, certificates = zip(*(self.certificate(name) for name in ("worker", "stranger")))
        for roots, complaint in [
            (["--work-roots", certificates[0]], None),
            (["--work-roots", certificates[1]], "certificate verify failed"),
            ([], "without TLS"),
        ]:
            with self.subTest(complaint):
                self.port = free_port()
                founder = self.found(flags=roots)
                worker = self.join(flags=["--work-cert", certificates[0], "--work-key", keys[0]])
                wait_until(lambda: metric(founder, "zeroprefill_cluster_hosts") == 2, "two hosts")
                wait_until(lambda: self.has_met(founder, complaint), complaint or "ranks come")
                self.assert_answers(founder)
                self.assert_each_answers(founder)
                brought = metric(worker, "zeroprefill_works_total")
                self.assertEqual(brought > 0, complaint is None)
                for server in (founder, worker):
                    self.assertEqual(server.stop(), 0)

    def has_met(self, founder, complaint):
        """The founder has said what is wrong with the worker's ranks, or that nothing is."""
        log = "".join(founder.log)
        if complaint is None:
            return "host 1 takes works" in log
        return re.search(f"work plane: host 1 at .*{complaint}", log, re.IGNORECASE) is not None

    def certificate(self, name):
        """Files of a key and of the certificate for 127.0.0.1 that it signed itself."""
        files = [str(pathlib.Path(self.root.name, f"{name}.{kind}")) for kind in ("key", "pem")]
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        command += ["-nodes", "-days", "1", "-subj", f"/CN={name}"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", files[0], "-out", files[1]]
        subprocess.run(command, check=True, capture_output=True)
        return files

    def test_what_a_founder_must_be_told(self):
        token = ["--join-token-file", str(self.token_file)]
        for flags, words in [
            (["--hosts", "2", *token], "--expert-memory"),
            (["--hosts", "2", "--expert-memory", "1GiB"], "--join-token-file"),
            (["--hosts", "2", "--expert-memory", "1KiB", *token], "expert memory"),
            (["--hosts", "2", "--expert-memory", "1GiB", *token, "--weight-address", "no0"], "--weight-address"),
            (["--hosts", "2", "--expert-memory", "1GiB", *token, "--cluster-address", "0.0.0.0"], "--cluster-address"),
            (["--redundancy", "1"], "--hosts"),
            (["--hosts", "65", "--expert-memory", "1GiB", *token], "--hosts"),
        ]:
            with self.subTest(words):
                code, log = fails_to_start(self.packed, flags)
                self.assertNotEqual(code, 0, log)
                self.assertIn(words, log)


if __name__ == "__main__":
    unittest.main()
