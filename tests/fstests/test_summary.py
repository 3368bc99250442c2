# SPDX-License-Identifier: GPL-2.0
"""Unit tests of the summary: python3 -m unittest tests/fstests/test_summary.py"""

import importlib.machinery
import importlib.util
import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("summary", str(pathlib.Path(__file__).parent / "summary"))
summary = importlib.util.module_from_spec(importlib.util.spec_from_loader("summary", loader))
sys.modules["summary"] = summary
loader.exec_module(summary)

OUTPUT = """\
FSTYP         -- fuse
PLATFORM      -- Linux/x86_64 guest 7.3.4-fuse-iomap
MKFS_OPTIONS  -- /dev/ubdb
MOUNT_OPTIONS -- -o user_xattr,acl /dev/ubdb /mnt/scratch

generic/001 5s ...  7s
generic/002        12s
generic/003       [not run] atime related mount options have no effect on fuse
generic/004       [expunged]
generic/005 3s ... - output mismatch (see /r/generic/005.out.bad)
    --- tests/generic/005.out	2026-01-01
    +++ /r/generic/005.out.bad	2026-01-02
    @@ -1,2 +1,2 @@
     QA output created by 005
    -right
    +wrong
    ...
    (Run 'diff -u tests/generic/005.out /r/generic/005.out.bad'  to see the entire diff)
generic/006       [failed, exit status 1]- output mismatch (see /r/generic/006.out.bad)
generic/007 1s ... _check_dmesg: something found in dmesg (see /r/generic/007.dmesg)
 2s
generic/008        3s
_check_generic_filesystem: filesystem on /dev/ubdb is inconsistent
(see /r/generic/008.full for details)
generic/1000        1s
"""
END = """\
Ran: generic/001 generic/002 generic/003 generic/005 generic/006 generic/007 generic/008 generic/1000
Not run: generic/003
Failures: generic/005 generic/006 generic/007 generic/008
Failed 4 of 8 tests
"""


class Parse(unittest.TestCase):
    def test_each_outcome(self):
        for text in (OUTPUT, OUTPUT + END):
            tests = summary.parse(text)
            outcomes = {name[8:]: test.outcome for name, test in tests.items()}
            self.assertEqual(outcomes, {
                "001": "passed", "002": "passed", "003": "not run", "004": "excluded",
                "005": "failed", "006": "failed", "007": "failed", "008": "failed", "1000": "passed",
            })  # fmt: skip
            # This time, not the last one.
            self.assertEqual(tests["generic/001"].seconds, 7)
            self.assertEqual(tests["generic/003"].reason, "atime related mount options have no effect on fuse")
            self.assertTrue(tests["generic/005"].reason.endswith("| -right | +wrong"))
            self.assertIn("exit status 1", tests["generic/006"].reason)
            self.assertIn("inconsistent", tests["generic/008"].reason)

    def test_a_guest_that_died(self):
        for last in ("generic/009", "generic/009 4s ... "):
            test = summary.parse(OUTPUT + last)["generic/009"]
            self.assertEqual(test.outcome, "not finished")

    def test_the_lists_have_the_last_word(self):
        tests = summary.parse("generic/001  1s\nRan: generic/001\nFailures: generic/001\n")
        self.assertEqual(tests["generic/001"].outcome, "failed")

    def test_a_dry_run(self):
        tests = summary.parse("generic/001\ngeneric/004       [expunged]\ngeneric/005\n", dry_run=True)
        self.assertEqual([t.outcome for t in tests.values()], ["listed", "excluded", "listed"])
        lines, good = summary.report(tests, {}, {})
        self.assertTrue(good)
        self.assertEqual(lines[-1], "2 tests would be run, 1 excluded")

    def test_output_of_tests_is_no_test(self):
        text = "generic/001  - output mismatch (see x)\n    +generic/002 is here\n     1s\ncommon/rc: something\n"
        tests = summary.parse(text)
        self.assertEqual(list(tests), ["generic/001"])
        self.assertEqual(tests["generic/001"].outcome, "failed")


class Report(unittest.TestCase):
    def test_only_what_is_not_known_counts(self):
        tests = summary.parse(OUTPUT + END)
        known = {f"generic/{n:03}": "a reason" for n in (5, 6, 7)}
        lines, good = summary.report(tests, known, {"generic/004": "because"})
        self.assertFalse(good)
        self.assertIn("generic/004  excluded: because", lines)
        self.assertIn("generic/005  failed, as known: a reason", lines)
        self.assertTrue(any(line.startswith("generic/008  failed: ") for line in lines))
        self.assertTrue(lines[-1].startswith("3 passed, 1 failed, 3 failed as known, 1 not run, 1 excluded"))
        known |= {"generic/008": "a reason", "generic/001": "no more"}
        lines, good = summary.report(tests, known, {})
        self.assertTrue(good)
        self.assertIn("generic/001  passed, though known to fail: no more", lines)

    def test_damage_is_a_failure(self):
        tests = summary.parse("generic/001  1s\n")
        summary.add_damage(tests, "generic/001: e2fsck: bad\n")
        self.assertEqual((tests["generic/001"].outcome, tests["generic/001"].reason), ("failed", "e2fsck: bad"))

    def test_nothing_is_no_success(self):
        self.assertFalse(summary.report(summary.parse("check: cannot do that\n"), {}, {})[1])
        self.assertFalse(summary.report(summary.parse("generic/001  [not run] no\n"), {}, {})[1])

    def test_each_entry_of_our_lists_has_a_reason(self):
        here = pathlib.Path(__file__).parent
        for name in ("known", "exclude"):
            summary.read_reasons(here / name)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("generic/001\n")
            file.flush()
            with self.assertRaises(SystemExit):
                summary.read_reasons(file.name)


if __name__ == "__main__":
    unittest.main()
