# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest code that asks for conversions of any shape, and accesses anything.

As an ordinary guest, and on the model of the kernel.  On a kernel with private
memory: test_swp.Hostile.
"""
import re

from firmware import FirmwareTest
from gmemlab.machine import GUEST_MEMFD, wait_for
from gmemlab.simkvm import lacks_tdx
from test_simkvm import KvmModeTest
from test_swp import swp

MIB = 1 << 20
# Pages that all vCPUs convert at the same time, and pages that none does
GPA, PAGES = 16 * MIB, 64
KEPT = 32 * MIB

# ROM, a hole, PCI configuration, the I/O APIC, the APIC, the firmware, the
# last page that is mapped.
ODD = (0xc0000, 0xf0000, 0xa0000000, 0xb0000000, 0xfec00000, 0xfee00000,
       0xffff0000, 0xfffffff8, 0xffffff000)


def accesses(at):
    """Accesses of all sizes that do not harm the firmware itself."""
    lines = ''.join(f'mmio-read {at:#x} {size} expect any\n'
                    for size in (1, 2, 4, 8))
    if at < 0xfec00000:
        lines += ''.join(f'mmio-write {at + 64:#x} {size} 0x5a\n'
                         for size in (1, 2, 4, 8))
    return lines


def requests(cpus, steps, expect=''):
    """Every vCPU makes that many requests."""
    return ''.join(f'cpu {n}\nhostile {n} {steps} {GPA} {PAGES} {expect}\n'
                   for n in range(cpus))


def wait_end(guest):
    """All vCPUs have come to the end of the list, or the guest has ended."""
    wait_for('the end of the commands', lambda: ' done, ' in guest.output() or
             not guest.is_running() or
             guest.cmd('query-status')['status'] != 'running', guest)


class Hostile:
    """Guests whose memory outside of GPA has to stay as it is."""

    def list_of(self, commands):
        """A list that writes, does @commands, and checks."""
        return f'write {KEPT} 16 1\ncpu all\nbarrier\n{commands}' \
               f'cpu all\nbarrier\ncpu 0\ncheck {KEPT} 16 1\n'

    def converted(self, guest):
        """Requests of all vCPUs that were answered with 0."""
        return sum(int(n) for n in re.findall(r': (\d+) requests converted',
                                              guest.output()))


class Ordinary(Hostile, FirmwareTest):
    """An ordinary guest on this machine's KVM."""

    def test_odd_accesses(self):
        guest = self.check_list(
            self.list_of(''.join(map(accesses, ODD))), cpus=2)
        guest.assert_runs()


class OrdinaryOnAnotherKvm(Hostile, FirmwareTest):
    """The same in the emulated host, whose KVM knows the hypercall."""

    EMULATED_HOST = ()

    def test_requests_are_not_offered(self):
        for machine in 'q35', 'pc':
            guest = self.check_list(
                self.list_of(requests(2, 500, 'expect ENOSYS') +
                             ''.join(map(accesses, ODD))),
                machine=machine, cpus=2, name=machine)
            self.assertEqual(self.converted(guest), 0)
            guest.assert_runs()


class OnTheModel(Hostile, KvmModeTest):
    """Converted in place."""

    CONFIG = 'generation g2'
    BACKEND = GUEST_MEMFD
    STEPS = 1000

    def check_requests(self, start, cpus, **kwargs):
        guest = self.launch(start(
            self.list_of(requests(cpus, self.STEPS)) +
            f'convert {GPA} {PAGES} private\nstate {GPA} {PAGES} private\n',
            cpus=cpus, name=f'{start.__name__}{cpus}', **kwargs))
        wait_end(guest)
        guest.assert_runs()
        self.assertEqual(guest.failures(), [], guest.output())
        self.assertGreater(self.converted(guest), self.STEPS * cpus // 4)
        report = guest.end()
        self.assertIsNone(report['violation'])
        self.assertEqual(report['host-touches'], 0)

    def test_snp(self):
        for cpus in 1, 4:
            with self.subTest(cpus=cpus):
                self.check_requests(self.snp, cpus)

    def test_tdx(self):
        if lacks_tdx():
            self.skipTest(lacks_tdx())
        self.check_requests(self.tdx, 2)


class SoftwareProtectedOnTheModel(OnTheModel):
    """The same, with software-protected guests."""

    # A KVM that emulates every instruction would not see private pages.
    EMULATED_HOST = ()
    STEPS = 200
    test_snp = test_tdx = None

    def test_sw_protected(self):
        def swp_guest(commands, **kwargs):
            return self.sim(commands, self.CONFIG, **{**swp(), **kwargs})
        self.check_requests(swp_guest, 4)
