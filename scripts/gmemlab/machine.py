# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine of ours, driven by QEMU's own Python."""
import fcntl
import os
import sys
import time

from . import build_dir, emulator

# QEMU's own QMP client and process handling.
sys.path.insert(0, os.path.join(build_dir(), 'src', 'python'))
from qemu.machine import QEMUMachine      # noqa: E402

GUEST_MEMFD = 'memory-backend-guest-memfd'
MEMFD = 'memory-backend-memfd'
SW_PROTECTED = 1        # KVM's number of that type of VM
TIMEOUT = 60            # seconds


def wait_for(what, condition, guest=None, seconds=TIMEOUT):
    """Wait until condition() is true and return its value."""
    end = time.monotonic() + seconds
    pause = 0.01
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f'waited {seconds} s for {what}' +
                               (f'; {guest.state()}' if guest else ''))
        time.sleep(pause)
        # Asking takes time from the guest, much of it in an emulated host.
        pause = min(pause * 1.5, 0.3)


def ask_host():
    """What query-guest-memfd says of this machine's KVM, for ordinary VMs."""
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return {'generation': 'none', 'flags': [], 'numa-policy': False,
                'missing': 'there is no /dev/kvm' if
                not os.path.exists('/dev/kvm') else 'no access to /dev/kvm'}
    with QEMUMachine(emulator(), args=['-machine', 'none',
                                       '-accel', 'kvm']) as vm:
        vm.launch()
        return vm.cmd('query-guest-memfd')['host']


def vm_types():
    """The types of VMs that this machine's KVM has, a bit each."""
    check_extension, cap_vm_types = 0xae03, 235
    try:
        with open('/dev/kvm', 'rb') as kvm:
            return fcntl.ioctl(kvm, check_extension, cap_vm_types)
    except OSError:
        return 0


class Machine(QEMUMachine):
    """A virtual machine whose console goes to a file.

    @backend is the RAM block ram0: a type, and properties if any; or None,
    where @args say what RAM is.
    """

    def __init__(self, directory, name, machine, size, backend, args):
        super().__init__(emulator(), name=name, base_temp_dir=directory)
        self.console = os.path.join(directory, name + '.console')
        if backend:
            machine += ',memory-backend=ram0'
            self.add_args('-object', f'{backend},id=ram0,size={size}')
        self.add_args('-machine', machine, '-m', size, '-nodefaults', *args)

    def output(self):
        """What the guest has said so far."""
        try:
            with open(self.console, encoding='latin-1') as f:
                return f.read().replace('\r\n', '\n')
        except FileNotFoundError:
            return ''

    def state(self):
        """For an error message."""
        return f'console ends with {self.output()[-1000:]!r}; {self.get_log()}'

    def assert_runs(self):
        """The guest is neither stopped nor did KVM give up on it."""
        status = self.cmd('query-status')['status']
        assert status == 'running', \
            f'the guest was stopped ({status}); {self.state()}'

    def blocks(self):
        """What query-guest-memfd says of RAM blocks, by their names."""
        return {block['id']: block
                for block in self.cmd('query-guest-memfd')['blocks']}

    def block(self, name='ram0'):
        """What query-guest-memfd says of a RAM block."""
        return self.blocks()[name]

    def slots(self, space='memory', name='ram0'):
        """The memslots of a RAM block in an address space."""
        return [s for s in self.block(name)['slots']
                if s['address-space'] == space]

    def bound(self):
        """Are all memslots of ram0 bound?  Or none?  Else None."""
        states = {s['bound'] for s in self.slots()}
        return states.pop() if len(states) == 1 else None

    def maps(self):
        """Its mappings: lists of the columns of /proc/PID/maps."""
        with open(f'/proc/{self.get_pid()}/maps', encoding='utf-8') as f:
            return [line.strip().split(None, 5) for line in f]

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
        """Migrate, at a speed at which a busy guest can be caught up with."""
        self.cmd('migrate-set-parameters', max_bandwidth=10 << 30,
                 downtime_limit=2000)
        self.cmd('migrate', uri=uri)
        self.wait_migration('completed')
