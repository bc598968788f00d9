# SPDX-License-Identifier: GPL-2.0-or-later
"""guest_memfd on this machine's own KVM, under SeaBIOS and bare-metal code."""
import os
import signal
import socket
import struct
import subprocess

from baremetal import BaremetalTest, Guest
from testcase import MigrationTests
from gmemlab import build_dir
from gmemlab.machine import GUEST_MEMFD, MEMFD, wait_for


class Boot(BaremetalTest):
    """All RAM is the guest_memfd, as seen from outside."""

    def check_boot(self, machine, cpus, backend=GUEST_MEMFD):
        guest = self.start(machine=machine, cpus=cpus, backend=backend)
        guest.assert_works()
        block = self.check_that_ram_is_guest_memfd(guest, Guest.SIZE)
        self.assertGreaterEqual(block['allocated'], cpus * (32 << 20))

    def test_q35_with_1_vcpu(self):
        self.check_boot('q35', 1)

    def test_q35_with_2_vcpus(self):
        self.check_boot('q35', 2)

    def test_q35_without_smm(self):
        self.check_boot('q35,smm=off', 2)

    def test_pc(self):
        self.check_boot('pc', 2)

    def test_microvm(self):
        self.check_boot('microvm', 2)

    def test_memfd_spelling(self):
        self.check_boot('q35', 2, MEMFD + ',guest-memfd=on')

    def test_prealloc(self):
        guest = self.start(backend=GUEST_MEMFD + ',prealloc=on')
        self.assertEqual(guest.block()['allocated'], Guest.SIZE)
        guest.assert_works()

    def test_two_numa_nodes(self):
        guest = self.start(backend=None, args=[
            '-object', GUEST_MEMFD + ',id=node0,size=64M',
            '-object', GUEST_MEMFD + ',id=node1,size=64M',
            '-numa', 'node,memdev=node0', '-numa', 'node,memdev=node1'])
        guest.assert_works()
        for name in 'node0', 'node1':
            block = guest.block(name)
            self.assertTrue(all(s['bound'] for s in block['slots']))
            self.assertGreater(block['allocated'], 0)

    def test_system_reset(self):
        guest = self.start()
        for _ in range(2):
            guest.assert_works(1)
            guest.cmd('system_reset')
        guest.assert_works()
        self.assertTrue(guest.bound())


class NewVm(BaremetalTest):
    """A reset that makes a new VM, which takes another file."""

    MACHINE = 'q35,x-change-vmfd-on-reset=on'

    def check_resets(self, guest, times=2):
        for _ in range(times):
            guest.assert_works(1)
            inode = guest.block()['inode']
            guest.cmd('system_reset')
            guest.event_wait('RESET')
            self.assertNotEqual(guest.block()['inode'], inode)
        guest.assert_works()
        self.assertTrue(guest.bound())

    def test_1_and_2_vcpus(self):
        for cpus in 1, 2:
            guest = self.start(machine=self.MACHINE, cpus=cpus)
            self.check_resets(guest)
            self.check_that_ram_is_guest_memfd(guest, Guest.SIZE)
            guest.shutdown()

    def test_microvm(self):
        self.check_resets(self.start(
            machine='microvm,x-change-vmfd-on-reset=on'))

    def save(self, guest):
        """Contents of a part of the memory that the guest checks."""
        path = os.path.join(self.dir, 'memory')
        guest.cmd('pmemsave', val=40 << 20, size=1 << 20, filename=path)
        with open(path, 'rb') as f:
            return f.read()

    def test_memory_keeps_its_contents(self):
        """As with any other backend."""
        for backend in GUEST_MEMFD, MEMFD:
            guest = self.start(machine=self.MACHINE, backend=backend)
            guest.assert_works()
            guest.cmd('stop')
            before = self.save(guest)
            self.assertTrue(any(before))
            guest.cmd('system_reset')
            guest.event_wait('RESET')
            self.assertEqual(self.save(guest), before)
            guest.cmd('cont')
            guest.assert_works()
            guest.shutdown()

    def test_migration_afterwards(self):
        source = self.start('source', machine=self.MACHINE)
        self.check_resets(source, 1)
        target = self.start('target', machine=self.MACHINE,
                            args=['-incoming', 'defer'])
        path = os.path.join(self.dir, 'migration')
        target.cmd('migrate-incoming', uri='unix:' + path)
        source.migrate_to('unix:' + path)
        wait_for('the target to run', lambda:
                 target.cmd('query-status')['status'] == 'running', target)
        target.assert_works()
        self.check_resets(target, 1)


class DirtyLog(BaremetalTest):
    """Slots are replaced while vCPUs run, and no access is lost."""

    def check_toggle(self, machine, times):
        guest = self.start(machine=machine)
        guest.assert_works()
        for _ in range(times):
            guest.measure_dirty_rate()
        counters = guest.block()['counters']
        self.assertEqual(counters['replaced'],
                         2 * times * len(guest.slots()))
        guest.assert_works()
        self.assertTrue(guest.bound())

    def test_q35_a_hundred_times(self):
        self.check_toggle('q35', 100)

    def test_microvm(self):
        self.check_toggle('microvm', 20)


class Migration(MigrationTests, BaremetalTest):
    """Migration of a bare-metal guest."""

    SIZE = Guest.SIZE
    FRESH = 'pass 1\n'

    def start_checking(self, *args, **kwargs):
        guest = self.start(*args, **kwargs)
        guest.assert_works()
        return guest

    def test_from_memfd(self):
        self.check_migration(MEMFD, GUEST_MEMFD)

    def test_with_a_dirty_ring(self):
        # Large enough for what a vCPU writes, as a full one stops it.
        self.check_migration(GUEST_MEMFD, GUEST_MEMFD,
                             accel='kvm,dirty-ring-size=65536')

    def test_slots_are_bound_again_after_a_failed_one(self):
        guest = self.start_checking()
        guest.cmd('migrate-set-parameters', max_bandwidth=1 << 20)
        guest.cmd('migrate', uri='exec:head -c 100000 > /dev/null')
        wait_for('migration to fail', lambda:
                 guest.cmd('query-migrate')['status'] == 'failed', guest)
        wait_for('slots to be bound', guest.bound, guest)
        guest.assert_works()

    def test_postcopy_to_guest_memfd_is_refused(self):
        # It has no userfaultfd; the source does not need one.
        guest = self.start(args=['-incoming', 'defer'])
        reply = guest.qmp('migrate-set-capabilities', capabilities=[
            {'capability': 'postcopy-ram', 'state': True}])
        self.assertIn('error', reply)


class Inspection(BaremetalTest):
    """Other ways to look at the guest's memory."""

    def setUp(self):
        super().setUp()
        with open(os.path.join(self.dir, 'memcheck.elf'), 'rb') as f:
            elf = f.read()
        # First program header: where its bytes are, and where they go.
        header = struct.unpack_from('<I', elf, 28)[0]
        offset, _, self.address = struct.unpack_from('<III', elf, header + 4)
        self.code = elf[offset:offset + 256]

    def test_pmemsave(self):
        guest = self.start()
        guest.assert_works()
        path = os.path.join(self.dir, 'saved')
        guest.cmd('pmemsave', val=self.address, size=256, filename=path)
        with open(path, 'rb') as f:
            self.assertEqual(f.read(), self.code)

    def test_dump_guest_memory(self):
        guest = self.start()
        guest.assert_works()
        path = os.path.join(self.dir, 'dump')
        guest.cmd('dump-guest-memory', paging=False, protocol='file:' + path)
        with open(path, 'rb') as f:
            dump = f.read()
        self.assertGreater(len(dump), Guest.SIZE)
        self.assertIn(self.code, dump)

    def test_gdbstub(self):
        path = os.path.join(self.dir, 'gdb')
        guest = self.start(args=['-gdb', f'unix:{path},server=on,wait=off'])
        guest.assert_works()
        with socket.socket(socket.AF_UNIX) as gdb, \
             guest.waiting('the debug server'):
            gdb.connect(path)
            command = f'm{self.address:x},40'
            gdb.sendall(f'${command}#{sum(command.encode()) % 256:02x}'
                        .encode())
            reply = b''
            while b'#' not in reply[2:]:
                data = gdb.recv(4096)
                self.assertTrue(data, 'the debug server has hung up')
                reply += data
        text = reply[reply.index(b'$') + 1:reply.rindex(b'#')]
        self.assertEqual(bytes.fromhex(text.decode()), self.code[:64])


class VhostUser(BaremetalTest):
    """Another process gets the fd, and maps it."""

    def test_seabios_boots_from_a_vhost_user_disk(self):
        backend = os.path.join(build_dir(), 'qemu/gmem/tests/vhost-user-blk')
        disk = os.path.join(self.dir, 'disk')
        path = os.path.join(self.dir, 'vhost')
        # mov al,'V'; out 0xe9,al; hlt; jmp back to hlt
        code = b'\xb0V\xe6\xe9\xf4\xeb\xfd'
        with open(disk, 'wb') as f:
            f.write(code.ljust(510, b'\0') + b'\x55\xaa')
            f.truncate(1 << 20)
        with subprocess.Popen([backend, '-s', path, '-b', disk],
                              stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as process:
            self.addCleanup(process.wait)
            self.addCleanup(process.send_signal, signal.SIGKILL)
            wait_for('the back end', lambda: os.path.exists(path))
            guest = self.start(kernel=False, args=[
                '-chardev', 'socket,id=c,path=' + path,
                '-device', 'vhost-user-blk-pci,chardev=c,bootindex=0'])
            wait_for('the boot sector to run',
                     lambda: guest.output().endswith('V'), guest)
            with open(f'/proc/{process.pid}/maps', encoding='utf-8') as f:
                mapped = [line for line in f if 'kvm-gmem' in line]
            self.assertTrue(mapped)
            self.assertIn(f' {guest.block()["inode"]} ', mapped[0])
            guest.shutdown()
