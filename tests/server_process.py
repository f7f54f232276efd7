"""A real `zeroprefill serve` for tests: starts it, talks JSON to it, ends it."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading

BINARY = os.environ["ZP_BINARY"]
MODEL = pathlib.Path(os.environ["ZP_SOURCE_DIR"], "models", "zeroprefill-mini")
TIMEOUT_SECONDS = 120


class Server:
    """One server process on a free port.

    with Server() as server:
        status, answer = server.post("/v1/classify", {...})
    """

    def __init__(self, model=MODEL, flags=(), role="serve", prefix=(), host="127.0.0.1"):
        """`prefix` stands before the command, as `ip netns exec` does."""
        self.host = host
        command = [BINARY, role, "--model", str(model), "--host", host, "--port", "0", *flags]
        self.process = subprocess.Popen(
            [*prefix, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = []
        self.log_reader = threading.Thread(target=self.log.extend, args=(self.process.stderr,))
        self.log_reader.start()
        line = self.process.stdout.readline()
        if not line.startswith("ready: "):
            self.wait()
            raise RuntimeError(f"the server did not start: {''.join(self.log)}")
        self.port = int(line.split()[1].rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Asks the server to end; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        code = self.process.wait(TIMEOUT_SECONDS)
        self.log_reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_SECONDS)

    def request(self, method, path, body=None):
        """Status and body, as bytes."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def post(self, path, body):
        """Status and answer of a JSON request."""
        status, answer = self.request("POST", path, json.dumps(body).encode())
        return status, json.loads(answer)


def fails_to_start(model, flags=(), role="serve"):
    """Exit code and standard error of a server that should not come up on `model`."""
    result = subprocess.run(
        [BINARY, role, "--model", str(model), "--port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return result.returncode, result.stderr


@contextlib.contextmanager
def model_copy():
    """The model in a folder of its own, to be broken."""
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory, "model")
        shutil.copytree(MODEL, copy)
        yield copy
