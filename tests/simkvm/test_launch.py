# SPDX-License-Identifier: GPL-2.0-or-later
"""Launches of confidential guests, and their measurements.

QEMU's own code launches with separate memory, as on the kernels of today.  The
model measures what the emulator gives it, gmemlab.measure the firmware's file.
"""
import errno
import os
import struct
import subprocess
import unittest

from gmemlab import ROOT, measure
from gmemlab.simkvm import OVMF, lacks_tdx, snp
from simtest import SimTest, firmware

SCRIPT = '''
    vcpu all
    barrier
    halt
    vcpu 0
    barrier
    state 0 0x10000 private
    read 0xfffffff0 8 expect={reset:#x}
    print launched
    shutdown'''
SPARSE = 'memory-backend-ram,reserve=off'


def debian(kind):
    """Path of an OVMF of Debian's; skips the test without one."""
    done = subprocess.run([os.path.join(ROOT, 'scripts/firmware'), kind],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise unittest.SkipTest(done.stderr.splitlines()[-1])
    return done.stdout.strip()


def ovmf():
    """Path of Debian's package "ovmf"; skips the test without it."""
    if not os.path.exists(OVMF):
        raise unittest.SkipTest(f'there is no {OVMF} (Debian package ovmf)')
    return OVMF


class LaunchTest(SimTest):
    """Launches firmware, by default our own, tests/guest/firmware."""

    LAUNCH = None               # class of gmemlab.measure
    COMMANDS = ()               # in this order; the one for pages is the last
    CONFIDENTIAL = None
    ARGS = ()

    def guest(self, path=None, args=(), confidential=None, size='256M',
              backend=None, **kwargs):
        """The arguments of SimTest.machine() for a guest."""
        return {'size': size, 'backend': backend, **kwargs,
                'args': [*self.ARGS, '-bios', path or self.image, *args],
                'confidential': confidential or self.CONFIDENTIAL}

    def launch(self, config='generation g1', path=None, status=0,
               script=SCRIPT, **kwargs):
        """Launch a guest; it looks at its memory and shuts down."""
        with open(path or self.image, 'rb') as f:
            f.seek(-16, os.SEEK_END)
            reset = struct.unpack('<Q', f.read(8))[0]
        return self.play(config + script.format(reset=reset), status=status,
                         **self.guest(path, **kwargs))

    def check(self, *args, path=None, hashes=None, **kwargs):
        """The measurement is that of the firmware's file.

        @hashes: of a kernel, see gmemlab.measure
        """
        path = path or self.image
        with open(path, 'rb') as f:
            image = f.read()
        wanted = self.LAUNCH(image, hashes) if hashes else self.LAUNCH(image)
        sim = self.launch(*args, path=path, **kwargs)
        self.assertEqual(sim.output(), 'launched\n')
        launched = sim.report['launch']
        self.assertTrue(launched['finished'])
        self.assertEqual(launched['digest'], wanted.digest().hex())
        self.assertEqual(launched['pages'],
                         sum(r.size for r in wanted.ranges) >> 12)
        self.assertEqual(launched['measured-pages'], sum(
            r.size for r in wanted.ranges if r.data) >> 12)
        self.assertEqual(launched['pages'], sim.report['pages-populated'])
        return sim, wanted

    def check_commands(self):
        """The commands come in order, one a range, before the guest runs."""
        sim, wanted = self.check()
        log = sim.model.log()
        names = [call['call'] for call in log]
        *before, page, after = self.COMMANDS
        ranges = [call for call in log if call['call'] == page]
        self.assertEqual([name for name in names if name in self.COMMANDS],
                         [*before, *[page] * len(wanted.ranges), after])
        self.assertLess(names.index(after), names.index('KVM_EXIT_IO'))
        self.assertEqual(
            [(call['gpa'], call['pages'], call['measured'])
             for call in ranges],
            [(r.gpa, r.size >> 12, digest.hex())
             for r, digest in wanted.steps()])
        return ranges, wanted.ranges

    def check_refused(self, call, reason, plan='errno=EIO', **kwargs):
        """A call fails; so the emulator ends, and the guest never runs."""
        with self.subTest(call=call):
            sim = self.launch(f'generation g1\nfault {call} {plan}',
                              status=1, **kwargs)
            self.assertRegex(sim.get_log(), reason)
            self.assertEqual(sim.report['exits'], 0)
        return sim


class SnpLaunchTest(LaunchTest):
    """Launches SEV-SNP guests."""

    LAUNCH = measure.SnpLaunch
    CONFIDENTIAL = snp()
    COMMANDS = ('SEV_INIT2', 'SNP_LAUNCH_START', 'SNP_LAUNCH_UPDATE',
                'SNP_LAUNCH_FINISH')

    def kernel(self, initrd=b'', append=''):
        """A kernel, in files.  Returns it, and QEMU's arguments."""
        kernel = firmware.linux()
        args = []
        for option, data in ('-kernel', kernel), ('-initrd', initrd):
            if data:
                name = os.path.join(self.dir, option)
                with open(name, 'wb') as f:
                    f.write(data)
                args += [option, name]
        if append:
            args += ['-append', append]
        return kernel, args


class TdxLaunchTest(LaunchTest):
    """Launches TDX guests."""

    LAUNCH = measure.TdxLaunch
    CONFIDENTIAL = 'tdx-guest'
    COMMANDS = ('TDX_INIT_VM', 'TDX_INIT_VCPU', 'TDX_INIT_MEM_REGION',
                'TDX_FINALIZE_VM')
    ARGS = ('-cpu', 'host')

    @classmethod
    def setUpClass(cls):
        if lacks_tdx():
            raise unittest.SkipTest(lacks_tdx())
        super().setUpClass()

    def guest(self, *args, machine='q35,kernel-irqchip=split', **kwargs):
        return super().guest(*args, machine=machine, **kwargs)


class Snp(SnpLaunchTest):
    """SEV-SNP."""

    def test_commands(self):
        calls, ranges = self.check_commands()
        self.assertEqual([call['type'] for call in calls],
                         [r.type.lower() for r in ranges])

    def test_ovmf_on_every_machine_and_generation(self):
        for machine in 'q35', 'pc', 'microvm':
            for generation in 'g0', 'g1':
                with self.subTest(machine=machine, generation=generation):
                    self.check('generation ' + generation, path=ovmf(),
                               machine=machine)

    def test_1_to_8_vcpus(self):
        for cpus in range(1, 9):
            with self.subTest(cpus=cpus):
                self.check(cpus=cpus)

    def test_memory_of_any_size(self):
        for size in '256M', '3G', '4G', '64G', '1T':
            with self.subTest(size=size):
                self.check(size=size, backend=SPARSE,
                           args=['-cpu', 'qemu64,phys-bits=48'])

    def test_two_numa_nodes(self):
        self.check(args=[
            '-object', SPARSE + ',id=node0,size=64M', '-numa',
            'node,memdev=node0', '-object', SPARSE + ',id=node1,size=192M',
            '-numa', 'node,memdev=node1'])

    def check_kernel(self, path, initrd=b'', append=''):
        """A kernel that is measured by its hashes, with kernel-hashes=on."""
        kernel, args = self.kernel(initrd, append)
        _, launch = self.check(
            path=path, args=args, confidential=snp(',kernel-hashes=on'),
            hashes=measure.kernel_hashes(kernel, initrd, append))
        self.assertIn(('KERNEL_HASHES', 'normal'),
                      [(r.name, r.type) for r in launch.ranges])

    def test_kernel_hashes(self):
        self.check_kernel(None)
        self.check_kernel(None, b'the initrd' * 1000, 'console=ttyS0')

    def test_kernel_hashes_in_ovmf(self):
        self.check_kernel(debian('amdsev'), b'the initrd', 'console=ttyS0')

    def test_policy_and_features_are_passed_on(self):
        sim, _ = self.check(confidential=snp(',policy=0xb0000'))
        start, = sim.model.log('SNP_LAUNCH_START')
        self.assertEqual(start['policy'], 0xb0000)

    def test_failing_calls_end_it(self):
        for call, reason in (
                ('SEV_INIT2', 'failed to initialize'),
                ('SNP_LAUNCH_START', 'SNP_LAUNCH_START'),
                ('SNP_LAUNCH_UPDATE_PAGE', 'SNP_LAUNCH_UPDATE ret=-5'),
                ('SNP_LAUNCH_FINISH', 'SNP_LAUNCH_FINISH ret=-5'),
                ('SNP_CPUID_REJECT', 'CPUID validation failed'),
                ('KVM_SET_MEMORY_ATTRIBUTES', 'Input/output error'),
                ('KVM_CREATE_GUEST_MEMFD', 'Input/output error')):
            self.check_refused(call, reason)

    def test_a_launch_that_is_interrupted_goes_on(self):
        sim, _ = self.check('''
            generation g1
            fault SNP_LAUNCH_UPDATE_PAGE errno=EAGAIN at=5
            fault SNP_LAUNCH_UPDATE_PAGE errno=EINTR at=9''')
        self.assertEqual(
            [(call['pages'], call['left']) for call in
             sim.model.log('SNP_LAUNCH_UPDATE')][:3],
            [(4, 12), (3, 9), (9, 0)])

    def test_a_signal_at_the_first_page_of_a_range_is_no_failure(self):
        # The first page of the launch, and of its second range.
        for first in 1, 17:
            with self.subTest(first=first):
                sim, _ = self.check(f'''
                    generation g1
                    fault SNP_LAUNCH_UPDATE_PAGE errno=EINTR at={first} times=2
                ''')
                answers = [call['ret'] for call in
                           sim.model.log('SNP_LAUNCH_UPDATE')]
                self.assertEqual(answers.count(-errno.EIO), 2)

    def test_an_error_that_lasts_ends_the_launch(self):
        for call in 'SNP_LAUNCH_UPDATE', 'SNP_LAUNCH_UPDATE_PAGE':
            error = 'EIO' if call == 'SNP_LAUNCH_UPDATE' else 'ENOMEM'
            sim = self.check_refused(call, 'SNP_LAUNCH_UPDATE ret=-5 '
                                     'fw_error=0', f'errno={error} '
                                     'times=forever')
            self.assertEqual(sim.report['calls']['SNP_LAUNCH_UPDATE'], 10)

    def test_a_command_that_the_firmware_refuses_is_not_retried(self):
        sim = self.check_refused('SNP_LAUNCH_UPDATE_PAGE',
                                 'SNP_LAUNCH_UPDATE ret=-5 fw_error=[1-9]')
        self.assertEqual(sim.report['calls']['SNP_LAUNCH_UPDATE'], 1)


class Tdx(TdxLaunchTest):
    """TDX."""

    def test_commands(self):
        calls, ranges = self.check_commands()
        self.assertEqual([call['measure'] for call in calls],
                         [r.type == 'measured' for r in ranges])

    def test_ovmf_in_every_generation(self):
        for generation in 'g0', 'g1':
            with self.subTest(generation=generation):
                self.check('generation ' + generation, path=debian('tdx'))

    def test_1_to_8_vcpus(self):
        for cpus in range(1, 9):
            with self.subTest(cpus=cpus):
                sim, _ = self.check(cpus=cpus)
                self.assertEqual(len(sim.model.log('TDX_INIT_VCPU')), cpus)

    def test_memory_of_any_size(self):
        for size in '256M', '3G', '4G', '64G', '1T':
            with self.subTest(size=size):
                self.check(size=size, backend=SPARSE)

    def test_failing_calls_end_it(self):
        for call, reason in (
                ('TDX_CAPABILITIES', 'KVM_TDX_CAPABILITIES'),
                ('TDX_INIT_VM', 'KVM_TDX_INIT_VM'),
                ('TDX_INIT_VCPU', 'KVM_TDX_INIT_VCPU'),
                ('TDX_INIT_MEM_REGION', 'KVM_TDX_INIT_MEM_REGION'),
                ('TDX_FINALIZE_VM', 'KVM_TDX_FINALIZE_VM')):
            self.check_refused(call, reason)

    def test_a_launch_that_is_interrupted_goes_on(self):
        sim, _ = self.check('''
            generation g1
            fault TDX_INIT_MEM_REGION_PAGE errno=EAGAIN at=5
            fault TDX_INIT_MEM_REGION_PAGE errno=EINTR at=9''')
        self.assertEqual(
            [(call['pages'], call['left']) for call in
             sim.model.log('TDX_INIT_MEM_REGION')][:3],
            [(4, 12), (3, 9), (9, 0)])
