# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine of ours, driven by QEMU's own Python."""
import fcntl
import os
import sys
import time

from . import build_dir, emulator
from .watch import STALL_LIMIT, Watch, ending, work_of

# QEMU's own QMP client and process handling.
sys.path.insert(0, os.path.join(build_dir(), 'src', 'python'))
from qemu.machine import QEMUMachine      # noqa: E402

GUEST_MEMFD = 'memory-backend-guest-memfd'
MEMFD = 'memory-backend-memfd'
SW_PROTECTED = 1        # KVM's number of that type of VM


def wait_for(what, condition, guest=None, sign=lambda: None,
             stall_limit=STALL_LIMIT):
    """Wait until condition() is true and return its value.

    Raises TimeoutError if there is no progress: neither does the Machine
    @guest make any, nor does the value of sign() change.
    """
    watch = guest.watch(what, sign, stall_limit) if guest else \
        Watch(what, sign, stall_limit=stall_limit)
    pause = 0.01
    while True:
        value = condition()
        if value:
            return value
        watch.check()
        time.sleep(pause)
        # Asking takes time from the guest, much of it in an emulated host.
        pause = min(pause * 1.5, 0.3)


def size(path):
    """Size of a file; 0 if there is none."""
    try:
        return os.path.getsize(path) if path else 0
    except FileNotFoundError:
        return 0


class Emulator(QEMUMachine):
    """Our emulator; killed when it makes no progress, or when we end.

    QEMUMachine's methods wait without a limit, or with a fixed one.
    """

    def __init__(self, args=(), **kwargs):
        super().__init__(emulator(), args=[
            '-run-with', 'exit-with-parent=on', *args], **kwargs)

    def files(self):
        """Paths of files that grow when it makes progress."""
        return [self._qemu_log_path]

    def state(self):
        """For an error message."""
        self._load_io_log()
        return self.get_log()

    def watch(self, what, sign=lambda: None, stall_limit=STALL_LIMIT):
        """A Watch on the emulator, for a wait for @what."""
        def signs():
            return [*map(size, self.files()), len(self._events), sign()]

        def work():
            return work_of(self._popen.pid) if self._popen else 0
        return Watch(what, signs, work, self.state, stall_limit)

    def waiting(self, what):
        """A context that kills the emulator if the wait for @what fails."""
        def end():
            if self._popen:
                self._popen.kill()
        return ending(end, self.watch(what))

    def launch(self):
        with self.waiting('the emulator to start'):
            super().launch()

    def shutdown(self, hard=False, timeout=None):
        with self.waiting('the emulator to end'):
            super().shutdown(hard, timeout=None)

    def qmp(self, cmd, *args, **kwargs):
        with self.waiting('the answer to ' + cmd):
            return super().qmp(cmd, *args, **kwargs)

    def cmd(self, cmd, *args, **kwargs):
        with self.waiting('the answer to ' + cmd):
            return super().cmd(cmd, *args, **kwargs)

    def event_wait(self, name, timeout=None, match=None):
        now = super().event_wait
        return wait_for('the event ' + name, lambda: now(name, 0, match), self)


def ask_host():
    """What query-guest-memfd says of this machine's KVM, for ordinary VMs."""
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return {'generation': 'none', 'flags': [], 'numa-policy': False,
                'missing': ['kvm'],
                'missing-text': 'there is no /dev/kvm' if
                not os.path.exists('/dev/kvm') else 'no access to /dev/kvm'}
    with Emulator(args=['-machine', 'none', '-accel', 'kvm']) as vm:
        vm.launch()
        return vm.cmd('query-guest-memfd')['host']


def vm_types():
    """The types of VMs that this machine's KVM has, as a bit mask."""
    check_extension, cap_vm_types = 0xae03, 235
    try:
        with open('/dev/kvm', 'rb') as kvm:
            return fcntl.ioctl(kvm, check_extension, cap_vm_types)
    except OSError:
        return 0


class Machine(Emulator):
    """A virtual machine whose console goes to a file.

    @backend is the RAM block ram0: a type, and properties if any; or None,
    where @args say what RAM is.
    """

    def __init__(self, directory, name, machine, size, backend, args):
        super().__init__(name=name, base_temp_dir=directory)
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
        return f'console ends with {self.output()[-1000:]!r}; ' \
            f'{super().state()}'

    def files(self):
        return [self.console, *super().files()]

    def assert_runs(self):
        """The guest is not stopped, neither by a user nor by an error."""
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
        """True if all memslots of ram0 are bound, False if none is, or None."""
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
        now = {}

        def reached():
            now.update(self.cmd('query-migrate'))
            assert now['status'] == status or now['status'] not in (
                'failed', 'completed', 'cancelled'), now
            return now['status'] == status
        wait_for(f'migration to be {status}', reached, self,
                 lambda: now.get('ram', {}).get('transferred'))

    def migrate_to(self, uri):
        """Migrate, at a speed at which a busy guest can be caught up with."""
        self.cmd('migrate-set-parameters', max_bandwidth=10 << 30,
                 downtime_limit=2000)
        self.cmd('migrate', uri=uri)
        self.wait_migration('completed')
