# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare-metal guest that writes and checks its memory on every vCPU.

It runs wherever there is KVM, also where a Linux guest does not.  The guest
is tests/guest/baremetal; it says on the debug console what it has done.
"""
import os
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.abspath(os.environ.get('BUILD') or os.path.join(ROOT, 'build'))
EMULATOR = os.path.join(BUILD, 'qemu-system-x86_64')

# QEMU's own QMP client and process handling.
sys.path.insert(0, os.path.join(BUILD, 'src', 'python'))
from qemu.machine import QEMUMachine      # noqa: E402

GUEST_MEMFD = 'memory-backend-guest-memfd'
MEMFD = 'memory-backend-memfd'
# What the machine's KVM has to be told, if it runs on shadow paging.
CPU = 'max,-arch-capabilities'
TIMEOUT = 60


def wait_for(what, condition, guest=None):
    """Wait until condition() is true and return its value."""
    end = time.monotonic() + TIMEOUT
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f'waited {TIMEOUT} s for {what}; ' +
                                 (guest.state() if guest else ''))
        time.sleep(0.01)


def host_lacks():
    """Why guest_memfd cannot be used on this machine's KVM; or None."""
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return 'no access to /dev/kvm'
    with QEMUMachine(EMULATOR, args=['-machine', 'none', '-accel', 'kvm',
                                     '-display', 'none']) as vm:
        vm.launch()
        return vm.cmd('query-guest-memfd')['host'].get('missing')


class Guest(QEMUMachine):
    """One virtual machine with 128 MiB; the guest checks 32 MiB a vCPU.

    @backend is the RAM block ram0: a type, and properties if any; or None,
    where @args say what RAM is.
    """

    SIZE = 128 << 20

    def __init__(self, directory, name='guest', machine='q35', cpus=2,
                 backend=GUEST_MEMFD, accel='kvm', args=(), kernel=True):
        super().__init__(EMULATOR, name=name, base_temp_dir=directory)
        self.console = os.path.join(directory, name + '.console')
        self.add_args('-accel', accel, '-cpu', CPU, '-smp', str(cpus),
                      '-m', '128M', '-nodefaults', '-display', 'none',
                      '-debugcon', 'file:' + self.console)
        if backend:
            self.add_args('-machine', machine + ',memory-backend=ram0',
                          '-object', backend + ',id=ram0,size=128M')
        else:
            self.add_args('-machine', machine)
        if kernel:
            self.add_args('-kernel', os.path.join(directory, 'memcheck.elf'),
                          '-append', f'16 32 {cpus}')
        self.add_args(*args)

    def output(self):
        """What the guest has said so far."""
        try:
            with open(self.console, encoding='latin-1') as f:
                return f.read()
        except FileNotFoundError:
            return ''

    def state(self):
        """For an error message."""
        return f'console ends with {self.output()[-200:]!r}; {self.get_log()}'

    def assert_works(self, passes=3):
        """Every vCPU checks all its memory so many times more."""
        cpus = len(self.cmd('query-cpus-fast'))
        before = [self.output().count(f'cpu {n} pass') for n in range(cpus)]
        wait_for('the guest to check its memory', lambda: all(
            self.output().count(f'cpu {n} pass') >= before[n] + passes
            for n in range(cpus)) or 'CORRUPT' in self.output(), self)
        assert 'CORRUPT' not in self.output(), self.state()
        status = self.cmd('query-status')['status']
        assert status == 'running', f'the guest is {status}; {self.state()}'

    def block(self, name='ram0'):
        """What query-guest-memfd says of a RAM block."""
        blocks = self.cmd('query-guest-memfd')['blocks']
        return next(b for b in blocks if b['id'] == name)

    def slots(self, space='memory'):
        """The memslots of ram0 in an address space."""
        return [s for s in self.block()['slots']
                if s['address-space'] == space]

    def bound(self):
        """Are all memslots of ram0 bound?  Or none?  Else None."""
        states = {s['bound'] for s in self.slots()}
        return states.pop() if len(states) == 1 else None

    def maps(self):
        """Its mappings: lists of the columns of /proc/PID/maps."""
        with open(f'/proc/{self.get_pid()}/maps', encoding='utf-8') as f:
            return [line.split(None, 5) for line in f]

    def measure_dirty_rate(self):
        """Turn dirty logging on, and off again."""
        self.cmd('calc-dirty-rate', calc_time=50, mode='dirty-bitmap',
                 calc_time_unit='millisecond')
        wait_for('the dirty rate', lambda:
                 self.cmd('query-dirty-rate')['status'] == 'measured', self)

    def wait_migration(self, status):
        """Wait for a status of the outgoing migration."""
        def reached():
            now = self.cmd('query-migrate')
            assert now['status'] == status or now['status'] not in (
                'failed', 'completed', 'cancelled'), now
            return now['status'] == status
        wait_for(f'migration to be {status}', reached, self)

    def migrate_to(self, uri):
        """Migrate, at a speed at which this guest can be caught up with."""
        self.cmd('migrate-set-parameters', max_bandwidth=10 << 30,
                 downtime_limit=2000)
        self.cmd('migrate', uri=uri)
        self.wait_migration('completed')


class GuestTest(unittest.TestCase):
    """Has a directory, and guests that end with the test."""

    HOST = 'here'

    @classmethod
    def setUpClass(cls):
        lacks = host_lacks()
        if lacks:
            raise unittest.SkipTest(lacks)

    def setUp(self):
        temp = tempfile.TemporaryDirectory(prefix='gmem-')
        self.addCleanup(temp.cleanup)
        self.dir = temp.name
        subprocess.run(['make', '-s', '-C',
                        os.path.join(ROOT, 'tests/guest/baremetal'),
                        'O=' + self.dir], check=True)

    def start(self, *args, **kwargs):
        """A Guest that runs."""
        guest = Guest(self.dir, *args, **kwargs)
        guest.launch()
        self.addCleanup(guest.shutdown, hard=True)
        return guest
