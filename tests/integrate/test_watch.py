#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit tests of gmemlab/watch.py: waits end when there is no more progress."""
import os
import signal
import subprocess
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, 'scripts'))
from gmemlab import watch      # noqa: E402


class Guest:
    """A guest that is waited for, and a clock."""

    def __init__(self, **kwargs):
        self.now = 1000
        self.said = ''
        self.worked = 0
        self.watch = watch.Watch(
            'the guest', lambda: len(self.said), lambda: self.worked,
            lambda: self.said, clock=lambda: self.now, **kwargs)

    def wait(self, seconds, share=0):
        """Wait while the guest gets that share of a processor."""
        for _ in range(seconds):
            self.now += 1
            self.worked += share
            self.watch.check()


class Watch(unittest.TestCase):
    """When a wait ends, by a clock of the test."""

    def test_a_wait_without_progress_ends_after_a_minute(self):
        guest = Guest()
        guest.said = 'boots'
        guest.wait(60)
        with self.assertRaisesRegex(
                TimeoutError, 'waited for the guest: no sign of progress for '
                '60 s; seen last: boots'):
            guest.wait(1)

    def test_a_guest_that_prints_now_and_then_goes_on(self):
        guest = Guest()
        for _ in range(20):
            guest.wait(59)
            guest.said += '.'

    def test_a_guest_that_works_and_prints_nothing_goes_on(self):
        Guest().wait(299, share=1)

    def test_a_guest_that_works_for_long_and_prints_nothing_ends(self):
        guest = Guest()
        guest.said = 'boots'
        guest.wait(1)
        guest.wait(299, share=1)
        with self.assertRaisesRegex(TimeoutError, 'nothing new in 300 s of '
                                    'processor time; seen last: boots'):
            guest.wait(1, share=1)

    def test_on_a_busy_machine_it_is_given_as_much_processor_time(self):
        guest = Guest()
        guest.wait(1190, share=0.25)
        with self.assertRaisesRegex(TimeoutError, 'processor time'):
            guest.wait(20, share=0.25)

    def test_timers_of_an_idle_guest_are_no_work(self):
        with self.assertRaisesRegex(TimeoutError, 'no sign of progress'):
            Guest().wait(61, share=0.09)

    def test_a_guest_that_prints_for_ever_ends(self):
        guest = Guest()
        for _ in range(1799):
            guest.wait(1, share=1)
            guest.said += '.'
        with self.assertRaisesRegex(TimeoutError, 'no end in 1800 s'):
            guest.wait(1)

    def test_time_between_checks_counts_up_to_a_limit(self):
        guest = Guest()
        guest.now += 10000
        guest.wait(54)
        with self.assertRaises(TimeoutError):
            guest.wait(60)

    def test_stall_limit(self):
        guest = Guest(stall_limit=600)
        guest.wait(599)
        with self.assertRaisesRegex(TimeoutError, '600 s'):
            guest.wait(1)


class Programs(unittest.TestCase):
    """Programs that make no progress until they are killed."""

    def start(self):
        process = subprocess.Popen(['cat'], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def watch(self):
        """A minute passes at each look."""
        clock = iter(range(0, 1 << 30, watch.LONGEST_GAP))
        return watch.Watch('a cat', clock=lambda: next(clock))

    def test_a_program_without_progress_is_ended(self):
        cat = self.start()
        with self.assertRaisesRegex(TimeoutError, 'waited for a cat'):
            with watch.ending(cat.kill, self.watch(), interval=0):
                cat.wait()
        self.assertEqual(cat.returncode, -signal.SIGKILL)

    def test_the_error_of_the_killed_block_is_the_cause(self):
        cat = self.start()
        with self.assertRaises(TimeoutError) as caught:
            with watch.ending(cat.kill, self.watch(), interval=0):
                raise EOFError(cat.stdout.read())
        self.assertIsInstance(caught.exception.__cause__, EOFError)

    def test_an_error_of_the_block_alone_is_raised(self):
        cat = self.start()
        with self.assertRaises(EOFError):
            with watch.ending(cat.kill, self.watch(), interval=60):
                raise EOFError
        self.assertIsNone(cat.poll())

    def test_an_error_of_the_sign_is_raised(self):
        cat = self.start()
        signs = [1]
        with self.assertRaises(IndexError):
            broken = watch.Watch('a cat', signs.pop)
            with watch.ending(cat.kill, broken, interval=0):
                cat.wait()

    def test_run_captures_what_was_printed_before_a_signal(self):
        done = watch.run(['sh', '-c', 'echo out; echo err >&2; kill -9 $$'])
        self.assertEqual((done.returncode, done.stdout, done.stderr),
                         (-signal.SIGKILL, 'out\n', 'err\n'))

    def test_run_kills_a_program_without_progress(self):
        with self.assertRaisesRegex(TimeoutError, 'waited for sleep 1000: '
                                    "no sign of progress .*; seen last: ''"):
            watch.run(['sleep', '1000'], stall_limit=0.01)

    def test_work_of_children_counts_too(self):
        # The child's work counts once it has ended.
        subprocess.run([sys.executable, '-c', 'import os\n'
                        'while sum(os.times()[:2]) < 0.1: pass'], check=True)
        self.assertGreater(watch.work_of(os.getpid()), 0.09)
        self.assertEqual(watch.work_of(1 << 30), 0)

    def test_descendants(self):
        with subprocess.Popen(['sh', '-c', 'sleep 1000 & echo $!; wait'],
                              stdout=subprocess.PIPE, text=True) as shell:
            self.addCleanup(shell.kill)
            pids = [shell.pid, int(shell.stdout.readline())]
            found = watch.descendants(os.getpid())
            self.assertEqual([pid for pid in found if pid in pids], pids)
            os.kill(pids[1], signal.SIGKILL)


if __name__ == '__main__':
    unittest.main()
