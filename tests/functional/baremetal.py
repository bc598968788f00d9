# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare-metal guest that writes and checks its memory on every vCPU.

It runs wherever there is KVM, also where a Linux guest does not.  The guest
is tests/guest/baremetal; it reports its passes on the debug console.
"""
import os
import subprocess

from testcase import GuestTest
from gmemlab import ROOT
from gmemlab.machine import GUEST_MEMFD, Machine, wait_for

# An option that KVM needs on shadow paging
CPU = 'max,-arch-capabilities'


class Guest(Machine):
    """One virtual machine with 128 MiB; the guest checks 32 MiB a vCPU."""

    SIZE = 128 << 20

    def __init__(self, directory, name='guest', machine='q35', cpus=2,
                 backend=GUEST_MEMFD, accel='kvm', args=(), kernel=True):
        super().__init__(directory, name, machine, '128M', backend,
                         ['-accel', accel, '-cpu', CPU, '-smp', str(cpus)])
        self.add_args('-debugcon', 'file:' + self.console)
        if kernel:
            self.add_args('-kernel', os.path.join(directory, 'memcheck.elf'),
                          '-append', f'16 32 {cpus}')
        self.add_args(*args)

    def assert_works(self, passes=3):
        """Every vCPU checks all its memory so many times more."""
        cpus = len(self.cmd('query-cpus-fast'))
        before = [self.output().count(f'cpu {n} pass') for n in range(cpus)]
        wait_for('the guest to check its memory', lambda: all(
            self.output().count(f'cpu {n} pass') >= before[n] + passes
            for n in range(cpus)) or 'CORRUPT' in self.output(), self)
        assert 'CORRUPT' not in self.output(), self.state()
        self.assert_runs()


class BaremetalTest(GuestTest):
    """Has the guest's code in its directory."""

    def setUp(self):
        super().setUp()
        subprocess.run(['make', '-s', '-C',
                        os.path.join(ROOT, 'tests/guest/baremetal'),
                        'O=' + self.dir], check=True)

    def start(self, *args, **kwargs):
        """A Guest that runs."""
        return self.launch(Guest(self.dir, *args, **kwargs))
