# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests on the model of the kernel have in common."""
import itertools
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
ROOT = os.path.dirname(TESTS)
sys.path[:0] = [os.path.join(ROOT, 'scripts'),
                os.path.join(TESTS, 'functional')]
import firmware                                           # noqa: E402
from gmemlab import watch                                 # noqa: E402
from gmemlab.simkvm import Model, SimMachine              # noqa: E402

NOT_MODELLED = 86               # exit status
VIOLATION = -signal.SIGABRT

# No warnings and no core files of machines that are meant to abort
logging.getLogger('qemu.machine').setLevel(logging.ERROR)
resource.setrlimit(resource.RLIMIT_CORE,
                   (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


class Server(threading.Thread):
    """Serves one connection to the Unix socket at @path: run() accepts it."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen(1)
        self.start()


class SimTest(unittest.TestCase):
    """Has a directory, and machines and programs on the model.

    docs/testing.md lists what a configuration may have.  A test fails if a
    planned fault is not met.

    image: path of the firmware of tests/guest/firmware
    """

    image = None

    @classmethod
    def setUpClass(cls):
        if not SimTest.image:
            # Built once for all classes; removed when the process ends.
            SimTest.directory = tempfile.TemporaryDirectory(prefix='gmem-')
            SimTest.image = firmware.build(SimTest.directory.name)

    def setUp(self):
        temp = tempfile.TemporaryDirectory(prefix='gmem-')
        self.addCleanup(temp.cleanup)
        self.dir = temp.name
        # Several threads may ask for a name.
        self._runs = itertools.count(1)

    def _name(self):
        return f'run{next(self._runs)}'

    def _check_end(self, model, status, wanted, output):
        """Returns the report."""
        try:
            report = model.report()
        except FileNotFoundError:
            report = {}
        self.assertEqual(status, wanted, output)
        if not wanted:
            self.assertIsNone(report['violation'])
        plan = model.config.partition('vcpu')[0]
        if report and re.search(r'^\s*fault ', plan, re.M):
            self.assertGreater(report['faults-injected'], 0,
                               'no planned fault was met')
        return report

    def machine(self, config='', **kwargs):
        """A SimMachine that is not launched yet; see there for @kwargs."""
        return SimMachine(self.dir, textwrap.dedent(config),
                          name=self._name(), **kwargs)

    def play(self, config, status=0, **kwargs):
        """Run a machine until it ends by itself, with that exit status.

        Some vCPU has to shut down.  Returns the machine, whose report is
        sim.report.  If @status is None, the caller looks at sim.exitcode().
        """
        sim = self.machine(config, **kwargs)
        ended = sim.play()
        sim.report = self._check_end(
            sim.model, ended, ended if status is None else status,
            sim.get_log())
        return sim

    def play_violation(self, config, reason, **kwargs):
        """The same, for a run that the model ends with a violation."""
        sim = self.play(config, VIOLATION, **kwargs)
        self.assertRegex(str(sim.report['violation']), reason)
        return sim

    def start(self, config='', **kwargs):
        """A machine that runs, to be driven by QMP, and quits at the end."""
        sim = self.machine(config, **kwargs)
        # QEMU's client fails if an event arrives during QMP's greeting.
        sim.add_args('-S')
        sim.launch()
        self.addCleanup(self.quit, sim)
        sim.cmd('cont')
        return sim

    def quit(self, sim):
        """End a machine that runs."""
        if sim.is_running():
            sim.shutdown()
            sim.report = self._check_end(sim.model, sim.exitcode(), 0,
                                         sim.get_log())

    def ask(self, config, program, status=0):
        """Run Python on the model, which has all of kernel.py.

        Returns what it printed, and the report.
        """
        model = Model(self.dir, self._name(), textwrap.dedent(config))
        # Unbuffered: what it printed before a signal ends it counts.
        done = watch.run(
            [*model.wrapper(), 'PYTHONPATH=' + HERE, sys.executable, '-Bu',
             '-c', 'from kernel import *\n' + textwrap.dedent(program)],
            stderr=subprocess.STDOUT)
        return done.stdout, self._check_end(model, done.returncode, status,
                                            done.stdout)
