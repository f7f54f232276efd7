"""`zeroprefill score` as its users meet it: what it refuses, and when."""

import pathlib
import subprocess
import tempfile
import unittest

from server_process import BINARY, TIMEOUT_SECONDS


def score(*arguments):
    """Runs `zeroprefill score` without a model: what it says must come before it looks for one."""
    return subprocess.run(
        [BINARY, "score", "--model", "/no/such/model", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


class ScoreTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.questions = pathlib.Path(directory.name, "in.jsonl")
        self.questions.write_text('{"task": "spam", "input": "x"}\n', encoding="utf-8")
        self.answers = pathlib.Path(directory.name, "out.jsonl")

    def test_an_output_that_holds_something_is_found_before_the_model_is_loaded(self):
        self.answers.write_text("precious\n", encoding="utf-8")
        result = score(self.questions, self.answers)
        self.assertEqual(result.returncode, 1)
        self.assertIn("out.jsonl holds something already", result.stderr)
        self.assertEqual(self.answers.read_text(encoding="utf-8"), "precious\n")

    def test_a_file_is_not_its_own_output(self):
        before = self.questions.read_text(encoding="utf-8")
        self.answers.symlink_to(self.questions)
        result = score(self.questions, self.answers, "--overwrite")
        self.assertEqual(result.returncode, 1)
        self.assertIn("is both input and output", result.stderr)
        self.assertEqual(self.questions.read_text(encoding="utf-8"), before)


if __name__ == "__main__":
    unittest.main()
