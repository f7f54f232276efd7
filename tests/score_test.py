"""`zeroprefill score` as its users meet it: what it refuses, and when."""

import pathlib
import subprocess
import tempfile
import unittest

from server_process import BINARY, TIMEOUT_SECONDS


class ScoreTest(unittest.TestCase):
    def test_an_output_that_holds_something_is_found_before_the_model_is_loaded(self):
        with tempfile.TemporaryDirectory() as directory:
            questions = pathlib.Path(directory, "in.jsonl")
            questions.write_text('{"task": "spam", "input": "x"}\n', encoding="utf-8")
            answers = pathlib.Path(directory, "out.jsonl")
            answers.write_text("precious\n", encoding="utf-8")
            result = subprocess.run(
                [BINARY, "score", "--model", "/no/such/model", str(questions), str(answers)],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
            self.assertEqual(result.returncode, 1)
            self.assertIn("out.jsonl holds something already", result.stderr)
            self.assertEqual(answers.read_text(encoding="utf-8"), "precious\n")

    def test_a_file_is_not_its_own_output(self):
        with tempfile.TemporaryDirectory() as directory:
            questions = pathlib.Path(directory, "in.jsonl")
            questions.write_text("precious\n", encoding="utf-8")
            link = pathlib.Path(directory, "out.jsonl")
            link.symlink_to(questions)
            result = subprocess.run(
                [BINARY, "score", "--model", "/no/such/model", questions, link, "--overwrite"],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
            self.assertEqual(result.returncode, 1)
            self.assertIn("is both input and output", result.stderr)
            self.assertEqual(questions.read_text(encoding="utf-8"), "precious\n")


if __name__ == "__main__":
    unittest.main()
