# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/emulated-host, from outside."""
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, 'scripts'))
from gmemlab import watch      # noqa: E402

TOOL = os.path.join(ROOT, 'scripts', 'emulated-host')


class EmulatedHost(unittest.TestCase):
    """A command that runs in there."""

    def setUp(self):
        temp = tempfile.TemporaryDirectory(prefix='gmem-')
        self.addCleanup(temp.cleanup)
        self.dir = temp.name

    def start(self, *args, **kwargs):
        process = subprocess.Popen(
            [TOOL, '--share', self.dir, *args], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            **kwargs)
        self.addCleanup(process.kill)
        return process

    def waiting(self, process):
        """A context that kills the process if it makes no progress."""
        return watch.ending(process.kill, watch.Watch(
            'the emulated host', work=lambda: watch.work_of(
                process.pid, *watch.descendants(process.pid))))

    def finish(self, process):
        """Returns (exit status, standard output, standard error)."""
        with self.waiting(process):
            out, err = process.communicate()
        return process.returncode, out, err

    def run_tool(self, *args, **kwargs):
        """The same, of one that it starts."""
        return self.finish(self.start(*args, **kwargs))

    def test_what_a_command_finds(self):
        script = '''
            uname -r; pwd; echo "$GREETING" >&2; test -c /dev/kvm && echo kvm
            touch "$0" 2> /dev/null || echo read-only
            echo shared > "$1/file"; touch /tmp/x && echo writable
            grep -c ^processor /proc/cpuinfo
            cat "$2"
            exit 7'''
        # A file of this machine's, with bytes that a terminal would change.
        path = os.path.join(ROOT, 'configure')
        environment = {**os.environ, 'GREETING': "it's a \n'test'"}
        status, out, err = self.run_tool(
            '--smp', '1', '--', 'sh', '-c', script, path, self.dir, path,
            cwd=os.path.join(ROOT, 'docs'), env=environment)
        with open(path, encoding='utf-8') as f:
            text = f.read()
        lines = out.split('\n', 6)
        self.assertNotEqual(lines[0], os.uname().release)
        self.assertEqual(lines[1:], [os.path.join(ROOT, 'docs'), 'kvm',
                                     'read-only', 'writable', '1', text])
        self.assertEqual(err, "it's a \n'test'\n")
        self.assertEqual(status, 7)
        with open(os.path.join(self.dir, 'file'), encoding='utf-8') as f:
            self.assertEqual(f.read(), 'shared\n')

    def test_several_at_once(self):
        hosts = [self.start('--', 'sh', '-c', f'echo {n}; kill -9 $$')
                 for n in range(3)]
        for number, host in enumerate(hosts):
            status, out, err = self.finish(host)
            self.assertEqual((out, status), (f'{number}\n', 128 + 9), err)

    def emulators(self):
        """Processes that serve our directory, by their command lines."""
        found = []
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                with open(f'/proc/{pid}/cmdline', 'rb') as f:
                    words = f.read()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if f'path={self.dir},'.encode() in words:
                found.append(pid)
        return found

    def test_a_command_that_makes_no_progress(self):
        status, out, err = self.run_tool('--stall-limit', '5', '--', 'sh', '-c',
                                         'echo here; sleep 1000')
        self.assertEqual((status, out), (124, 'here\n'))
        self.assertIn('no sign of progress for 5 s', err)
        self.assertEqual(self.emulators(), [])

    def test_nothing_is_left_when_it_is_killed(self):
        for number in 'TERM', 'KILL':
            host = self.start('--', 'sh', '-c', 'echo here; sleep 1000')
            with self.waiting(host):
                self.assertEqual(host.stdout.readline(), 'here\n')
            pids = self.emulators()
            self.assertEqual(len(pids), 1)
            host.kill() if number == 'KILL' else host.terminate()
            self.finish(host)
            for pid in pids:
                # It sees that its parent has ended, and a zombie is fine.
                watch.run(['tail', '--pid', pid, '-f', '/dev/null'])

    def test_bad_arguments(self):
        for args, message in (
                (['--kernel', '/nonexistent', '--', 'true'],
                 'cannot read the kernel'),
                (['--kernel', TOOL, '--', 'true'], 'not a Linux bzImage'),
                (['--memory', '1X', '--', 'true'], 'not a size such as 3G'),
                ([], 'no command')):
            status, out, err = self.run_tool(*args)
            self.assertIn(message, err)
            self.assertIn(status, (2, 125))
            self.assertEqual(out, '')

    def test_a_command_that_does_not_exist(self):
        status, _, err = self.run_tool('--', 'no-such-command')
        self.assertEqual(status, 127)
        self.assertIn('no-such-command', err)
