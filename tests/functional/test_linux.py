# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux guests on guest_memfd, in the emulated host."""
import re

from testcase import GuestTest, MigrationTests
from gmemlab.guest import LinuxGuest
from gmemlab.machine import GUEST_MEMFD, wait_for

MIB = 1 << 20


class LinuxTest(GuestTest):
    """Runs where Linux guests run on any machine."""

    EMULATED_HOST = ('--memory', '4G')

    def start(self, *args, **kwargs):
        """A LinuxGuest that runs; it has booted unless it waits for more."""
        guest = self.launch(LinuxGuest(self.dir, *args, **kwargs))
        if guest.cmd('query-status')['status'] == 'running':
            guest.wait_ready()
        return guest


class Boot(LinuxTest):
    """All RAM is the guest_memfd, as seen from outside."""

    def check_boot(self, machine, cpus):
        guest = self.start(machine=machine, cpus=cpus)
        block = self.check_that_ram_is_guest_memfd(guest, 512 * MIB)
        report = guest.report()
        self.assertEqual(int(report['cpus']), cpus)
        self.assertGreater(int(report['memory-kib']), 440 << 10)
        self.assertGreater(block['allocated'], 30 * MIB)
        guest.start_memcheck(40, cpus)
        self.assertGreater(guest.block()['allocated'],
                           block['allocated'] + 20 * MIB)
        return guest

    def test_q35_with_1_vcpu(self):
        guest = self.check_boot('q35', 1)
        self.assertTrue(guest.slots('smm'))

    def test_q35_with_2_vcpus(self):
        self.check_boot('q35', 2)

    def test_q35_without_smm(self):
        guest = self.check_boot('q35,smm=off', 1)
        self.assertFalse(guest.slots('smm'))

    def test_pc_with_1_vcpu(self):
        self.check_boot('pc', 1)

    def test_pc_with_2_vcpus(self):
        self.check_boot('pc', 2)

    def test_microvm_with_1_vcpu(self):
        self.check_boot('microvm', 1)

    def test_microvm_with_2_vcpus(self):
        self.check_boot('microvm', 2)

    def test_system_reset(self):
        guest = self.start()
        guest.start_memcheck(40)
        guest.cmd('system_reset')
        guest.wait_ready(2)
        guest.start_memcheck(40)
        self.check_that_ram_is_guest_memfd(guest, 512 * MIB)


class DirtyLog(LinuxTest):
    """Slots, those of SMM too, are replaced while both vCPUs write."""

    def test_dirty_rate_again_and_again(self):
        guest = self.start(cpus=2)
        guest.start_memcheck(40, 2)
        before = guest.block()['counters']['replaced']
        for _ in range(10):
            guest.measure_dirty_rate()
        self.assertGreaterEqual(guest.block()['counters']['replaced'],
                                before + 20)
        guest.assert_works()
        self.check_that_ram_is_guest_memfd(guest, 512 * MIB)


class Migration(MigrationTests, LinuxTest):
    """Migration of a Linux guest."""

    SIZE = 512 * MIB
    FRESH = 'gmem: ready'

    def start(self, *args, **kwargs):
        return super().start(*args, cpus=2, **kwargs)

    def start_checking(self, *args, **kwargs):
        guest = self.start(*args, **kwargs)
        guest.start_memcheck(40, 2)
        return guest


class Size(LinuxTest):
    """Memory that is plugged, unplugged or ballooned."""

    def memory(self, guest):
        """Size of the guest's memory in bytes, as the guest sees it."""
        return int(re.search(r'MemTotal: *(\d+)',
                             guest.run('cat /proc/meminfo'))[1]) << 10

    def allocated(self, guest, name):
        return guest.block(name)['allocated']

    def use_it(self, guest, megabytes):
        """Check so much memory, some of it in mem1, for a while."""
        guest.run(f'memcheck {megabytes} & true')
        guest.wait_for('mem1 to be used', lambda:
                       self.allocated(guest, 'mem1') > 100 * MIB)
        guest.assert_works()
        guest.run('killall memcheck')

    def test_balloon_returns_memory(self):
        guest = self.start(args=['-device', 'virtio-balloon-pci'])
        guest.start_memcheck(250)
        guest.run('killall memcheck')
        before = self.allocated(guest, 'ram0')
        self.assertGreater(before, 250 * MIB)
        guest.cmd('balloon', value=200 * MIB)
        guest.wait_for('pages to be freed', lambda:
                       self.allocated(guest, 'ram0') < before - 150 * MIB)
        guest.start_memcheck(40)
        guest.cmd('balloon', value=512 * MIB)
        guest.wait_for('the balloon to be empty', lambda:
                       guest.cmd('query-balloon')['actual'] == 512 * MIB)
        guest.start_memcheck(200)
        self.check_that_ram_is_guest_memfd(guest, 512 * MIB)

    def test_pc_dimm(self):
        guest = self.start(args=['-m', 'slots=2,maxmem=2G'])
        before = self.memory(guest)
        guest.cmd('object-add', qom_type=GUEST_MEMFD, id='mem1',
                  size=256 * MIB)
        guest.cmd('device_add', driver='pc-dimm', id='dimm1',
                  memdev='mem1')
        guest.wait_for('the guest to take it', lambda:
                       self.memory(guest) == before + 256 * MIB)
        self.use_it(guest, 400)
        self.assertTrue(all(s['bound'] for s in
                            guest.slots(name='mem1')))
        guest.cmd('device_del', id='dimm1')
        guest.event_wait('DEVICE_DELETED')
        guest.cmd('object-del', id='mem1')
        wait_for('its memory to be gone', lambda:
                 'mem1' not in guest.blocks(), guest)
        self.assertEqual(self.memory(guest), before)

    def test_virtio_mem(self):
        guest = self.start(args=[
            '-m', 'maxmem=2G',
            '-object', GUEST_MEMFD + ',id=mem1,size=512M',
            '-device', 'virtio-mem-pci,id=vm1,memdev=mem1'])
        before = self.memory(guest)
        self.assertEqual(self.allocated(guest, 'mem1'), 0)
        guest.cmd('qom-set', path='vm1', property='requested-size',
                  value=256 * MIB)
        guest.wait_for('the guest to take it', lambda:
                       self.memory(guest) == before + 256 * MIB)
        self.use_it(guest, 500)
        guest.cmd('qom-set', path='vm1', property='requested-size', value=0)
        guest.wait_for('the guest to give it back', lambda:
                       guest.cmd('qom-get', path='vm1', property='size') == 0)
        self.assertEqual(self.allocated(guest, 'mem1'), 0)


class Numa(LinuxTest):
    """A NUMA policy decides where the guest's pages come from."""

    EMULATED_HOST = ('--memory', '4G', '--numa', '2')

    @staticmethod
    def free(node):
        """Free memory of a node of the host, in bytes."""
        with open(f'/sys/devices/system/node/node{node}/meminfo',
                  encoding='utf-8') as f:
            return int(re.search(r'MemFree: *(\d+)', f.read())[1]) << 10

    def used(self, properties):
        """Bytes of each node that a guest takes by writing its memory."""
        guest = self.start(backend=f'{GUEST_MEMFD},{properties}')
        allocated = guest.block()['allocated']
        before = [self.free(node) for node in (0, 1)]
        guest.start_memcheck(200)
        used = [b - self.free(node) for node, b in enumerate(before)]
        self.assertGreater(guest.block()['allocated'], allocated + 170 * MIB)
        return used

    def test_bind(self):
        # The host's processor is on the other one.
        used = self.used('host-nodes=1,policy=bind')
        self.assertGreater(used[1], 150 * MIB, used)
        self.assertLess(used[0], 60 * MIB, used)

    def test_interleave(self):
        used = self.used('host-nodes=0-1,policy=interleave')
        self.assertGreater(min(used), 70 * MIB, used)

    def test_prealloc_on_a_node(self):
        before = self.free(1)
        guest = self.start(backend=GUEST_MEMFD + ',host-nodes=1,policy=bind,'
                           'prealloc=on,prealloc-threads=2', args=['-S'])
        self.assertEqual(guest.block()['allocated'], 512 * MIB)
        self.assertGreater(before - self.free(1), 400 * MIB)
