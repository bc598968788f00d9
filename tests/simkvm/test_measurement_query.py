# SPDX-License-Identifier: GPL-2.0-or-later
"""query-launch-measurement, and the launch in query-guest-memfd.

QEMU computes them from what it gives to the platform, the model from what the
platform gets, and gmemlab.measure from the firmware's file.
"""
import hashlib

from gmemlab import measure
from gmemlab.simkvm import snp
from qemu.qmp import ExecuteError
from simtest import SimTest
import test_launch

HALT = '''
    vcpu all
    halt'''
SEPARATE, IN_PLACE = 'g1', 'g2'


class QueryTest(SimTest):
    """Compares the queries with the launch.

    LAUNCH: class of gmemlab.measure
    KIND: type in query-launch-measurement
    OPTIONS: of the machine
    """

    LAUNCH = KIND = None
    OPTIONS = {}

    def stopped(self, generation, path=None, **kwargs):
        """A machine that waits for "cont"."""
        options = dict(self.OPTIONS, size='256M', backend=None)
        options['args'] = [*options.get('args', []), '-S',
                           '-bios', path or self.image]
        sim = self.machine(f'generation {generation}' + HALT,
                           **{**options, **kwargs})
        sim.launch()
        self.addCleanup(self.quit, sim)
        return sim

    @staticmethod
    def wanted_type(r):
        """The name in query-guest-memfd for the pages of a Range."""
        return r.type.lower()

    def check_refused(self, sim, reason):
        """query-launch-measurement fails with that reason."""
        with self.assertRaisesRegex(ExecuteError, reason):
            sim.cmd('query-launch-measurement')
        self.assertRegex(
            sim.cmd('human-monitor-command',
                    command_line='info launch-measurement'), reason)

    def check(self, generation, path=None, **kwargs):
        """All three agree.  Returns query-guest-memfd."""
        path = path or self.image
        sim = self.stopped(generation, path, **kwargs)
        sim.cmd('cont')
        answer = sim.cmd('query-launch-measurement')
        text = sim.cmd('human-monitor-command',
                       command_line='info launch-measurement')
        info = sim.cmd('query-guest-memfd')
        self.quit(sim)

        with open(path, 'rb') as f:
            launch = self.LAUNCH(f.read())
        self.assertEqual(answer, {'type': self.KIND,
                                'digest': launch.digest().hex()})
        self.assertEqual(sim.report['launch']['digest'], answer['digest'])
        self.assertIn(f"{self.KIND}: {answer['digest']}", text)

        wanted = []
        for r in launch.ranges:
            pages = {'gpa': r.gpa, 'size': r.size, 'measured': bool(r.data),
                     'type': self.wanted_type(r)}
            if r.data:
                pages['digest'] = hashlib.sha384(r.data).hexdigest()
            wanted.append(pages)
        self.assertEqual(info['launch'], wanted)
        return info, text

    def check_blocks(self, info):
        """All blocks are private as a whole."""
        self.assertGreater(len(info['blocks']), 1)
        for block in info['blocks']:
            self.assertEqual(
                [block[name] for name in
                 ('state', 'shared', 'private', 'private-runs')],
                ['private', 0, block['size'], 1])
            self.assertEqual(block['counters']['pages-to-private'] << 12,
                             block['size'])


class Snp(QueryTest):
    """An SEV-SNP guest, which is launched when it first runs."""

    LAUNCH = measure.SnpLaunch
    KIND = 'sev-snp'
    OPTIONS = {'confidential': snp()}

    def test_separate_memory(self):
        info, text = self.check(SEPARATE)
        self.assertEqual(info['blocks'], [])
        self.assertIn("before the vCPUs' VMSAs", text)

    def test_in_place(self):
        info, _ = self.check(IN_PLACE)
        self.check_blocks(info)

    def test_ovmf(self):
        for generation in SEPARATE, IN_PLACE:
            with self.subTest(generation=generation):
                self.check(generation, test_launch.ovmf())

    def test_there_is_no_measurement_before_the_launch(self):
        for generation in SEPARATE, IN_PLACE:
            with self.subTest(generation=generation):
                sim = self.stopped(generation)
                self.check_refused(sim, r'not launched yet.*cont')
                self.assertEqual(sim.cmd('query-guest-memfd')['launch'], [])


class Tdx(QueryTest):
    """A TDX guest, which is launched before QEMU can be asked."""

    LAUNCH = measure.TdxLaunch
    KIND = 'tdx'
    OPTIONS = {'confidential': 'tdx-guest', 'args': ['-cpu', 'host'],
               'machine': 'q35,kernel-irqchip=split'}

    @classmethod
    def setUpClass(cls):
        test_launch.Tdx.setUpClass()
        super().setUpClass()

    @staticmethod
    def wanted_type(r):
        return r.name.lower().replace('_', '-')

    def test_separate_memory(self):
        info, text = self.check(SEPARATE)
        self.assertEqual(info['blocks'], [])
        self.assertNotIn('VMSA', text)

    def test_in_place(self):
        info, _ = self.check(IN_PLACE)
        self.check_blocks(info)

    def test_ovmf(self):
        for generation in SEPARATE, IN_PLACE:
            with self.subTest(generation=generation):
                self.check(generation, test_launch.debian('tdx'))


class Ordinary(QueryTest):
    """A guest without a launch."""

    def test_nothing_is_measured(self):
        sim = self.start(f'generation {SEPARATE}' + HALT)
        self.check_refused(sim, 'not a confidential guest')
        self.assertEqual(sim.cmd('query-guest-memfd')['launch'], [])
