#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit tests of tests/check: no failure gets lost."""
import contextlib
import importlib.machinery
import importlib.util
import io
import os
import sys
import tempfile
import unittest

CHECK = os.path.join(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))), 'check')


class Check(unittest.TestCase):
    """Suites are shell scripts."""

    def setUp(self):
        loader = importlib.machinery.SourceFileLoader('check', CHECK)
        spec = importlib.util.spec_from_loader('check', loader)
        self.check = importlib.util.module_from_spec(spec)
        loader.exec_module(self.check)
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.check.TESTS = self.dir.name
        self.check.SUITES = {}

    def suite(self, name, script):
        """Add a suite."""
        path = os.path.join(self.dir.name, name)
        with open(path, 'w', encoding='utf-8') as f:
            f.write('#!/bin/sh\n' + script)
        os.chmod(path, 0o755)
        self.check.SUITES[name] = [name]

    def run_all(self, *names):
        """(exit status, lines of output)"""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), \
             contextlib.redirect_stderr(io.StringIO()):
            status = self.check.main(names)
        return status, out.getvalue().splitlines()

    def test_results_add_up(self):
        self.suite('a', 'echo 1 passed, 0 failed, 2 skipped')
        self.suite('b', 'echo 10 passed, 0 failed, 3 skipped')
        status, out = self.run_all()
        self.assertEqual(status, 0)
        self.assertEqual(out[-1], '11 passed, 0 failed, 5 skipped')

    def test_one_suite_of_several(self):
        self.suite('a', 'echo 1 passed, 0 failed, 0 skipped')
        self.suite('b', 'echo 2 passed, 0 failed, 0 skipped')
        self.assertEqual(self.run_all('b')[1][-1],
                         '2 passed, 0 failed, 0 skipped')

    def test_a_failure_is_a_failure(self):
        self.suite('a', 'echo 9 passed, 1 failed, 0 skipped')
        status, out = self.run_all()
        self.assertEqual(status, 1)
        self.assertEqual(out[-1], '9 passed, 1 failed, 0 skipped')

    def test_reasons_are_repeated_at_the_end(self):
        self.suite('a', 'echo SKIP x: no KVM; echo FAIL y: bad; echo noise;'
                        'echo 1 passed, 1 failed, 1 skipped')
        out = self.run_all()[1]
        self.assertEqual(out[-4:-2], ['SKIP x: no KVM', 'FAIL y: bad'])

    def test_times_of_all_suites_are_printed_at_the_end(self):
        self.suite('a', 'echo 1 passed, 0 failed, 0 skipped')
        self.suite('b', 'echo 2 passed, 0 failed, 1 skipped')
        out = self.run_all()[1]
        for line, counts in ((out[-3], 'a: 1 passed, 0 failed, 0 skipped'),
                             (out[-2], 'b: 2 passed, 0 failed, 1 skipped')):
            self.assertRegex(
                line, rf'^{counts} in \d+ s, \d+ s of processor time$')

    def test_no_summary_is_a_failure(self):
        self.suite('a', 'echo 5 passed, 0 failed, 0 skipped; echo oops')
        status, out = self.run_all()
        self.assertEqual(status, 1)
        self.assertEqual(out[-1], '0 passed, 1 failed, 0 skipped')

    def test_a_bad_exit_status_is_a_failure(self):
        self.suite('a', 'echo 5 passed, 0 failed, 0 skipped; exit 3')
        status, out = self.run_all()
        self.assertEqual(status, 1)
        self.assertEqual(out[-1], '5 passed, 1 failed, 0 skipped')

    def test_a_killed_suite_is_a_failure(self):
        self.suite('a', 'kill -9 $$')
        self.assertEqual(self.run_all()[0], 1)

    def test_a_missing_suite_is_a_failure(self):
        self.suite('a', 'echo 5 passed, 0 failed, 0 skipped')
        self.check.SUITES['b'] = ['b']
        status, out = self.run_all()
        self.assertEqual(status, 1)
        self.assertEqual(out[-1], '5 passed, 1 failed, 0 skipped')

    def test_an_empty_suite_is_a_failure(self):
        self.suite('a', 'echo 5 passed, 0 failed, 0 skipped')
        self.suite('b', 'echo 0 passed, 0 failed, 0 skipped')
        self.assertEqual(self.run_all()[0], 1)

    def test_nothing_but_skips_is_a_failure(self):
        self.suite('a', 'echo 0 passed, 0 failed, 7 skipped')
        self.assertEqual(self.run_all()[0], 1)

    def test_an_unknown_suite_is_an_error(self):
        self.assertEqual(self.run_all('nonsense')[0], 2)


if __name__ == '__main__':
    unittest.main()
