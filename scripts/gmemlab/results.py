# SPDX-License-Identifier: GPL-2.0-or-later
"""Test suites of Python's unittest, printed in the way tests/check reads."""
import os
import re
import subprocess
import time
import unittest

from . import ROOT

SUMMARY = re.compile(r'(\d+) passed, (\d+) failed, (\d+) skipped\s*')


class Result(unittest.TestResult):
    """Prints a line for each test, when it has ended."""

    def __init__(self):
        super().__init__()
        self.counts = [0, 0, 0]
        self._start = 0

    @staticmethod
    def _name(test):
        # Also for a class or module whose set-up failed.
        return re.sub(r'^\w+ \((.*)\)$', r'\1', test.id())

    def startTest(self, test):
        self._start = time.monotonic()

    def addSuccess(self, test):
        self.counts[0] += 1
        print(f'ok {self._name(test)} '
              f'({time.monotonic() - self._start:.0f} s)', flush=True)

    def addFailure(self, test, err):
        self.counts[1] += 1
        print(self._exc_info_to_string(err, test))
        print(f'FAIL {self._name(test)}: {str(err[1]).splitlines()[:1]}',
              flush=True)

    addError = addFailure

    def addSubTest(self, test, subtest, err):
        if err:
            self.addFailure(subtest, err)

    def addSkip(self, test, reason):
        self.counts[2] += 1
        print(f'SKIP {self._name(test)}: {reason}', flush=True)


def _flat(suite):
    if isinstance(suite, unittest.TestSuite):
        return sum((_flat(part) for part in suite), [])
    return [suite]


def prepare(*steps):
    """Runs programs of scripts/: lists of words.  False if one fails."""
    for name, *args in steps:
        done = subprocess.run([os.path.join(ROOT, 'scripts', name), *args],
                              stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(done.stdout, f'FAIL {name}: see above', sep='')
            return False
    return True


def load(directory, names):
    """The tests with these names, MODULE[.CLASS[.TEST]], or all of them.

    @directory: where the modules test_*.py are; is in sys.path
    """
    if not names:
        names = sorted(name[:-3] for name in os.listdir(directory)
                       if re.fullmatch(r'test_\w+\.py', name))
    return _flat(unittest.defaultTestLoader.loadTestsFromNames(names))


def run(tests):
    """Runs tests.  Returns [passed, failed, skipped]"""
    result = Result()
    unittest.TestSuite(tests).run(result)
    return result.counts


def relay(command, show=lambda line: print(line, end='', flush=True)):
    """Runs a suite, and passes on every line that it prints but summaries.

    Returns [passed, failed, skipped], or None if its last line is no summary;
    and its exit status.
    """
    last = ''
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL,
                          errors='replace') as suite:
        for line in suite.stdout:
            last = line
            if not SUMMARY.fullmatch(line):
                show(line)
    summary = SUMMARY.fullmatch(last)
    return summary and [int(n) for n in summary.groups()], suite.returncode


def finish(counts):
    """Prints the last line of a suite.  Returns its exit status."""
    print('{} passed, {} failed, {} skipped'.format(*counts))
    return 1 if counts[1] or not sum(counts) else 0
