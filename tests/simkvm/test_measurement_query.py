# SPDX-License-Identifier: GPL-2.0-or-later
"""query-launch-measurement, and the launch in query-guest-memfd.

QEMU computes them from what it gives to the platform, the model from what the
platform gets, and gmemlab.measure from the firmware's file.
"""
import base64
import os
import shlex
import subprocess

from gmemlab import ROOT, measure
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

    OPTIONS: of the machine
    GIVEN: members of the answer that no firmware has
    """

    OPTIONS = GIVEN = {}

    def stopped(self, generation, path=None, **kwargs):
        """A machine that waits for "cont"."""
        options = {'size': '256M', 'backend': None, **self.OPTIONS, **kwargs}
        options['args'] = [*options.get('args', []), '-S',
                           '-bios', path or self.image]
        sim = self.machine(f'generation {generation}' + HALT, **options)
        sim.launch()
        self.addCleanup(self.quit, sim)
        return sim

    def check_refused(self, sim, reason):
        """query-launch-measurement fails with that reason."""
        with self.assertRaisesRegex(ExecuteError, reason):
            sim.cmd('query-launch-measurement')
        self.assertRegex(
            sim.cmd('human-monitor-command',
                    command_line='info launch-measurement'), reason)

    def check(self, generation, path=None, **kwargs):
        """All three agree.  Returns query-guest-memfd, and info's text."""
        path = path or self.image
        sim = self.stopped(generation, path, **kwargs)
        sim.cmd('cont')
        answer = sim.cmd('query-launch-measurement')
        text = sim.cmd('human-monitor-command',
                       command_line='info launch-measurement')
        info = sim.cmd('query-guest-memfd')
        self.quit(sim)

        with open(path, 'rb') as f:
            launch = self.wanted(f.read())
        self.assertEqual(answer, {**launch.answer(), **self.GIVEN})
        self.check_model(sim.report['launch'], answer)
        self.assertEqual(info['launch'], launch.entries())
        for query in answer, info:
            self.assertIsNone(measure.first_difference(launch, query))
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


class Snp(QueryTest, test_launch.SnpLaunchTest):
    """An SEV-SNP guest, which is launched when it first runs."""

    OPTIONS = {'confidential': snp(), 'cpus': 3}
    VCPUS = measure.Vcpus(3, measure.cpu_signature('qemu64'))
    GIVEN = {'policy': 0x30000}         # QEMU's default
    hashes = None

    def wanted(self, image):
        return measure.SnpLaunch(image, self.hashes, self.VCPUS)

    def check_model(self, launch, answer):
        self.assertEqual(launch['digest'], answer['digest-before-vmsas'])
        self.assertEqual(launch['digest-after-vmsas'],
                         answer['digest-after-vmsas'])

    def check_text(self, text, path, options=''):
        """Info has the digest, and a line that a tool takes."""
        *_, line = text.splitlines()
        self.assertEqual(
            line, 'to compute it: sev-snp-measure --mode snp --vcpus 3 '
            f'--vcpu-sig 0x60fb1 --guest-features 0x1 --ovmf {path!r}' +
            options)
        # Ours takes the same, but for these.
        words = shlex.split(line.partition('--mode snp')[2])
        at = words.index('--ovmf')
        del words[at:at + 2]
        done = subprocess.run(
            [os.path.join(ROOT, 'scripts/launch-digest'), 'snp', path, *words],
            stdout=subprocess.PIPE, text=True, check=True)
        self.assertIn('sev-snp launch digest, as in the attestation report: ' +
                      done.stdout.strip(), text.splitlines()[0])

    def test_separate_memory(self):
        info, text = self.check(SEPARATE)
        self.assertEqual(info['blocks'], [])
        self.check_text(text, self.image)

    def test_in_place(self):
        info, text = self.check(IN_PLACE)
        self.check_blocks(info)
        self.check_text(text, self.image)

    def test_ovmf(self):
        for generation in SEPARATE, IN_PLACE:
            with self.subTest(generation=generation):
                self.check(generation, test_launch.ovmf())

    def test_kernel_hashes(self):
        append = "console=ttyS0 it's"
        kernel, args = self.kernel(b'the initrd', append)
        self.hashes = measure.kernel_hashes(kernel, b'the initrd', append)
        files = [f'{name} {path!r}' for name, path in
                 zip(args[0:4:2], args[1:4:2])]
        for generation in SEPARATE, IN_PLACE:
            _, text = self.check(generation, args=args,
                                 confidential=snp(',kernel-hashes=on'))
            self.check_text(
                text, self.image,
                ' ' + ' '.join(files).replace('-kernel', '--kernel', 1)
                .replace('-initrd \'', '--initrd \'', 1) +
                " --append 'console=ttyS0 it'\\''s'")

    def test_there_is_no_measurement_before_the_launch(self):
        for generation in SEPARATE, IN_PLACE:
            with self.subTest(generation=generation):
                sim = self.stopped(generation)
                self.check_refused(sim, r'not launched yet.*cont')
                self.assertEqual(sim.cmd('query-guest-memfd')['launch'], [])


class Tdx(QueryTest):
    """A TDX guest, which is launched before QEMU can be asked."""

    DIGESTS = {name: bytes(range(n, n + 48)) for n, name in
               enumerate(('mrconfigid', 'mrowner', 'mrownerconfig'))}
    GIVEN = {name: digest.hex() for name, digest in DIGESTS.items()}
    OPTIONS = {'confidential': 'tdx-guest' + ''.join(
                   f',{name}={base64.b64encode(digest).decode()}'
                   for name, digest in DIGESTS.items()),
               'args': ['-cpu', 'host'],
               'machine': 'q35,kernel-irqchip=split'}

    @classmethod
    def setUpClass(cls):
        test_launch.Tdx.setUpClass()
        super().setUpClass()

    def wanted(self, image):
        return measure.TdxLaunch(image)

    def check_model(self, launch, answer):
        self.assertEqual(launch['digest'], answer['mrtd'])

    def test_separate_memory(self):
        info, text = self.check(SEPARATE)
        self.assertEqual(info['blocks'], [])
        self.assertTrue(text.startswith('tdx MRTD: '), text)
        for name, digest in self.GIVEN.items():
            self.assertIn(f'{name.upper()}: {digest}', text)
        self.assertIn(f"launch-digest tdx '{self.image}'", text)

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
