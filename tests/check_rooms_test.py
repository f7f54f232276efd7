"""tools/check_rooms.py on small trees made for the purpose."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))
import check_rooms  # noqa: E402


class CheckRoomsTest(unittest.TestCase):
    def offences(self, files):
        with tempfile.TemporaryDirectory() as directory:
            for path, text in files.items():
                file = pathlib.Path(directory, "src", path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            return check_rooms.check_tree(directory)[0]

    def test_lower_tiers_and_the_own_room_are_fine(self):
        text = '#include "base/status.h"\n#include "engine/trie.h"\n#include <vector>\n'
        self.assertEqual(self.offences({"engine/engine.h": text}), [])

    def test_a_higher_tier_is_named_with_its_line(self):
        offences = self.offences({"scoring/a.cc": '// first\n  #  include "engine/engine.h"\n'})
        self.assertEqual(len(offences), 1)
        self.assertTrue(offences[0].startswith("src/scoring/a.cc:2: engine/engine.h: scoring"))

    def test_rooms_of_one_tier_do_not_know_each_other(self):
        self.assertEqual(len(self.offences({"gateway/a.h": '#include "scheduler/scheduler.h"\n'})), 1)

    def test_parts_of_a_room_belong_to_it(self):
        self.assertEqual(self.offences({"ops/cpu/a.cc": '#include "ops/reference/b.h"\n'}), [])

    def test_third_party_names_stay_behind_their_wall(self):
        text = "#include <boost/beast/http.hpp>\n"
        self.assertEqual(self.offences({"gateway/a.cc": text, "apps/demo_client.cc": text}), [])
        self.assertEqual(len(self.offences({"apps/serve.cc": text, "text/a.cc": text})), 2)
        self.assertEqual(len(self.offences({"ops/reference/a.cc": '#include "hwy/highway.h"\n'})), 1)

    def test_a_room_without_a_tier_is_an_offence(self):
        self.assertEqual(len(self.offences({"attic/a.h": "\n"})), 1)

    def test_a_word_in_a_comment_is_no_include(self):
        self.assertEqual(self.offences({"base/a.h": '// #include "apps/x.h"\n'}), [])


if __name__ == "__main__":
    unittest.main()
