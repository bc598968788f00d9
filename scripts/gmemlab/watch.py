# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits that end when there is no more progress.

How long something takes depends on what else a machine has to do, so no limit
is a time by the clock as long as there is progress: a console that grows, tests
that pass, bytes that are migrated.
"""
import contextlib
import os
import subprocess
import tempfile
import threading
import time

STALL_LIMIT = 60        # seconds
# For an emulated host whose tests have watches of their own, and print a line
# only when one ends.
OUTER_STALL_LIMIT = 5 * STALL_LIMIT
LONGEST_GAP = 5         # seconds


class Watch:
    """Ends a wait that makes no progress.  check() has to be called often.

    A wait ends
    - after @stall_limit seconds in which the sign of progress did not change
      and less than a tenth of a processor was used: idle guests have timers;
    - after 5 times as many seconds of processor time in which the sign did not
      change, so that an endless loop ends, however busy the machine is;
    - after 30 times as many seconds in any case.
    Time between two calls of check() counts up to LONGEST_GAP: the machine may
    have been suspended.

    @what: what is waited for, for the error
    @sign: returns something that changes with progress
    @work: returns the seconds of processor time that were used so far
    @last: returns what was seen last, for the error; by default, the sign
    """

    def __init__(self, what, sign=lambda: None, work=lambda: 0, last=None,
                 stall_limit=STALL_LIMIT, clock=time.monotonic):
        self._what, self._sign, self._work = what, sign, work
        self._last = last or sign
        self._stall_limit, self._clock = stall_limit, clock
        self._looked, self._waited = clock(), 0
        self._seen = sign()
        # (seconds, processor time) at the last new sign, at the last work
        self._new_at = self._done_at = 0, work()

    def check(self):
        """Raises TimeoutError if the wait has to end."""
        looked, self._looked = self._looked, self._clock()
        self._waited += min(self._looked - looked, LONGEST_GAP)
        now = self._waited, self._work()
        seen = self._sign()
        if seen != self._seen:
            self._seen = seen
            self._new_at = self._done_at = now
        elif now[1] - self._done_at[1] >= self._stall_limit / 10:
            self._done_at = now

        still = now[0] - self._done_at[0]
        silent = now[1] - self._new_at[1]
        if still >= self._stall_limit:
            self._end(f'no sign of progress for {still:.0f} s')
        if silent >= 5 * self._stall_limit:
            self._end(f'nothing new in {silent:.0f} s of processor time')
        if now[0] >= 30 * self._stall_limit:
            self._end(f'no end in {now[0]:.0f} s')

    def _end(self, why):
        raise TimeoutError(f'waited for {self._what}: {why}; seen last: '
                           f'{self._last()}')


@contextlib.contextmanager
def ending(end, watch, interval=1):
    """For a block that waits for a program: a thread checks @watch meanwhile.

    If the wait has to end, the thread calls @end, which has to end the program.
    Then the block raises the watch's error instead of its own.
    """
    left, error = threading.Event(), None

    def look():
        nonlocal error
        try:
            while not left.wait(interval):
                watch.check()
        except Exception as err:        # pylint: disable=broad-except
            error = err
            end()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:
            left.set()
            thread.join()
    except Exception as err:
        if error:
            raise error from err
        raise
    if error:
        raise error


def _stat(pid):
    """Fields of /proc/PID/stat from the third on; zeros if it has ended."""
    try:
        with open(f'/proc/{pid}/stat', encoding='latin-1') as f:
            # The second one is a name that may have spaces.
            return f.read().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ['0'] * 15


def descendants(pid):
    """The pids of a process's children, of their children, and so on."""
    children = {}
    for child in filter(str.isdigit, os.listdir('/proc')):
        children.setdefault(int(_stat(child)[1]), []).append(int(child))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def work_of(*pids):
    """Seconds of processor time that processes and their dead children used.
    """
    ticks = sum(int(field) for pid in pids for field in _stat(pid)[11:15])
    return ticks / os.sysconf('SC_CLK_TCK')


def run(command, stall_limit=STALL_LIMIT, **kwargs):
    """subprocess.run() of a program that is killed if it makes no progress.

    Its output is captured, and counts as progress; standard error is captured
    apart unless @kwargs redirects it.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        def text(file):
            # No seek: the program shares the file's position.
            size = os.fstat(file.fileno()).st_size
            return os.pread(file.fileno(), size, 0).decode(errors='replace')

        kwargs = {'stdin': subprocess.DEVNULL, 'stderr': err, **kwargs}
        with subprocess.Popen(command, stdout=out, **kwargs) as process:
            watch = Watch(
                ' '.join(command),
                lambda: [os.fstat(f.fileno()).st_size for f in (out, err)],
                lambda: work_of(process.pid, *descendants(process.pid)),
                lambda: repr((text(out) + text(err))[-1000:]), stall_limit)
            with ending(process.kill, watch):
                process.wait()
        return subprocess.CompletedProcess(command, process.returncode,
                                           text(out), text(err))
