# SPDX-License-Identifier: GPL-2.0-or-later
"""Software-protected guests.

Where private memory is separate (G0), on a kernel that has them: make
check-lab.  In place (G2), on the model of the kernel.
"""
import ctypes
import os
import re
import struct
import unittest

from baremetal import BaremetalTest
from firmware import FirmwareTest, Guest
from gmemlab import kernel
from gmemlab.guest import LinuxGuest
from gmemlab.machine import (GUEST_MEMFD, MEMFD, SW_PROTECTED, vm_types,
                             wait_for)
from test_simkvm import KvmModeTest
from testcase import GuestTest

MIB = 1 << 20
PAGE = 4096
# Where the tests convert.
GPA = 0x1000000
# The firmware reads there that RAM is private at first.
STARTS_PRIVATE = ['-chardev', 'null,id=start', '-device',
                  'isa-debugcon,iobase=0x5a8,readback=0x70,chardev=start']
RESETS = 100


def swp(properties='', machine='q35'):
    """Arguments of Guest: a sw-protected-guest, properties as ",a=b"."""
    return {'machine': machine + ',confidential-guest-support=swp',
            'backend': None,
            'args': ['-object', 'sw-protected-guest,id=swp' + properties]}


def starts_private(**kwargs):
    """Arguments of Guest: the same, with all RAM private at first."""
    guest = swp(',initial-state=private', **kwargs)
    return {**guest, 'args': guest['args'] + STARTS_PRIVATE}


def with_flash(firmware):
    """Arguments of Guest: the same as swp(), with firmware in flash."""
    guest = swp()
    return {**guest, 'args': guest['args'] + [
        '-drive', 'if=pflash,format=raw,readonly=on,file=' + firmware]}


def cached_bytes(pid, fd):
    """Bytes that a guest_memfd of another process has in memory."""
    pidfd_getfd, cachestat = 438, 451
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    copy = libc.syscall(pidfd_getfd, pidfd, fd, 0)
    os.close(pidfd)
    assert copy >= 0, os.strerror(ctypes.get_errno())
    counts = (ctypes.c_uint64 * 5)()
    ret = libc.syscall(cachestat, copy, (ctypes.c_uint64 * 2)(0, 0), counts, 0)
    os.close(copy)
    assert ret == 0, os.strerror(ctypes.get_errno())
    return counts[0] * PAGE


class SwpTest(FirmwareTest):
    """Runs software-protected guests."""

    @classmethod
    def setUpClass(cls):
        if not vm_types() & 1 << SW_PROTECTED:
            raise unittest.SkipTest('this KVM has no software-protected VMs: '
                                    'make check-lab')
        super().setUpClass()

    def host_sees(self, guest, gpa, size):
        """Bytes of guest memory, as QEMU has them."""
        path = os.path.join(self.dir, 'saved')
        guest.cmd('pmemsave', val=gpa, size=size, filename=path)
        with open(path, 'rb') as f:
            return f.read()

    def fds(self, guest):
        """{number: what it is} of all files that QEMU has open."""
        directory = f'/proc/{guest.get_pid()}/fd'
        return {int(fd): os.readlink(os.path.join(directory, fd))
                for fd in os.listdir(directory)}

    def private_bytes(self, guest):
        """Bytes that are allocated in guest_memfd."""
        return sum(cached_bytes(guest.get_pid(), fd)
                   for fd, name in self.fds(guest).items()
                   if '[kvm-gmem]' in name)


class Conversions(SwpTest):
    """Shared and private memory, and hypercalls that convert."""

    def check_boot(self, machine, cpus, **kwargs):
        self.check_list(''.join(f'''
            cpu {n}
            write {GPA + n * 16 * PAGE} 16 {n}
            convert {GPA + n * 16 * PAGE} 8 private
            check-zero {GPA + n * 16 * PAGE} 8
            check {GPA + (n * 16 + 8) * PAGE} 8 {n}
        ''' for n in range(cpus)), cpus=cpus, **swp(machine=machine), **kwargs)

    def test_q35_with_2_vcpus(self):
        self.check_boot('q35', 2)

    def test_pc_with_1_vcpu(self):
        self.check_boot('pc', 1)

    def test_microvm(self):
        self.check_boot('microvm', 2)

    def test_above_4_gib(self):
        self.check_list('convert 0x100000000 16 private\n'
                        'write 0x100000000 16 1\n'
                        'check 0x100000000 16 1\n', size='2816M', **swp())

    def test_shared_and_private_bytes_are_two_memories(self):
        guest = self.check_list(f'''
            write {GPA} 4 1
            convert {GPA} 2 private
            check-zero {GPA} 2
            check {GPA + 2 * PAGE} 2 1
            write {GPA} 2 2
            check {GPA} 2 2
        ''', **swp())
        self.assertEqual(self.host_sees(guest, GPA, 2 * PAGE),
                         bytes(2 * PAGE))
        self.assertNotIn(0, struct.unpack(
            '<1024Q', self.host_sees(guest, GPA + 2 * PAGE, 2 * PAGE)))
        self.assertEqual(self.private_bytes(guest), 2 * PAGE)

    def test_a_page_that_is_shared_again_is_empty(self):
        guest = self.check_list(f'''
            write {GPA} 4 1
            convert {GPA} 4 private
            write {GPA} 4 2
            convert {GPA + PAGE} 2 shared
            check-zero {GPA + PAGE} 2
            write {GPA + PAGE} 2 3
            check {GPA} 1 2
            check {GPA + PAGE} 2 3
            convert {GPA} 4 shared
            check-zero {GPA} 1
        ''', **swp())
        self.assertEqual(self.private_bytes(guest), 0)

    def test_vcpus_that_convert_at_the_same_time(self):
        guest = self.check_list(''.join(
            f'cpu {n}\nrandom {n} 300 {GPA + n * MIB} 64\n'
            for n in range(2)), cpus=2, **swp())
        for line in guest.lines():
            self.assertRegex(line.text, r', [1-9]\d+ converted, 0 busy$')

    def test_ram_is_private_at_first(self):
        guest = self.check_list(f'''
            check-zero {GPA} 4
            write {GPA} 4 1
            check {GPA} 4 1
            convert {GPA + 2 * PAGE} 2 shared
            check-zero {GPA + 2 * PAGE} 2
            write {GPA + 2 * PAGE} 2 2
            cpu 1
            write {GPA + MIB} 4 3
            check {GPA + MIB} 4 3
        ''', cpus=2, **starts_private())
        self.assertEqual(self.host_sees(guest, GPA, 2 * PAGE),
                         bytes(2 * PAGE))
        self.assertEqual(self.host_sees(guest, GPA + MIB, 4 * PAGE),
                         bytes(4 * PAGE))
        self.assertNotEqual(self.host_sees(guest, GPA + 2 * PAGE, 8), bytes(8))
        self.assertEqual(self.private_bytes(guest), 6 * PAGE)

    def test_firmware_from_flash(self):
        guest = self.check_list(f'convert {GPA} 4 private\n'
                                f'write {GPA} 4 1\ncheck {GPA} 4 1\n',
                                **with_flash(self.firmware))
        self.assertIn('system.flash0', guest.cmd(
            'human-monitor-command', command_line='info mtree -f'))


class Hostile(SwpTest):
    """Guests whose vCPUs all make odd requests at the same time."""

    # Requests that convert, by the number of vCPUs: 100,000 in all.
    WANTED = {1: 20000, 2: 30000, 4: 50000}

    def check_requests(self, cpus):
        # Half of all requests can convert.
        steps = self.WANTED[cpus] * 2 // cpus + 1000
        guest = self.start(f'''
            convert {GPA} 64 shared
            write {GPA + MIB} 16 1
            convert {GPA + 2 * MIB} 16 private
            write {GPA + 2 * MIB} 16 2
            cpu all
            barrier
            ''' + ''.join(f'cpu {n}\nhostile {n} {steps} {GPA} 64\n'
                          for n in range(cpus)) + f'''
            cpu all
            barrier
            cpu 0
            check {GPA + MIB} 16 1
            check {GPA + 2 * MIB} 16 2
            convert {GPA} 64 shared
            convert {GPA} 64 private
            check-zero {GPA} 64
            write {GPA} 64 3
            convert {GPA} 64 shared
            check-zero {GPA} 64
        ''', cpus=cpus, **swp())
        wait_for('the end of the commands', lambda:
                 ' done, ' in guest.output() or not guest.is_running() or
                 guest.cmd('query-status')['status'] != 'running', guest,
                 lambda: self.private_bytes(guest))
        guest.assert_runs()
        self.assertEqual(guest.failures(), [], guest.output())
        converted = [int(n) for n in re.findall(
            r': (\d+) requests converted', guest.output())]
        self.assertEqual(len(converted), cpus)
        self.assertGreaterEqual(sum(converted), self.WANTED[cpus])
        # Shared pages take no private memory.
        self.assertEqual(self.private_bytes(guest), 16 * PAGE)

    def test_1_vcpu(self):
        self.check_requests(1)

    def test_2_vcpus(self):
        self.check_requests(2)

    def test_4_vcpus(self):
        self.check_requests(4)


class Reset(SwpTest):
    """A reset brings all RAM back to its initial state, and leaks nothing."""

    def resources(self, guest):
        """QEMU's files and private bytes, when a guest stops at its reset."""
        slots = guest.cmd('human-monitor-command', command_line='info mtree '
                          '-f').count('\n')
        return len(self.fds(guest)), slots, self.private_bytes(guest)

    def wait_resets(self, guest, times):
        """Wait for that many resets; the guest is stopped after each."""
        wait_for(f'{times} resets', lambda:
                 [line.text for line in guest.lines()].count('reset') >= times
                 or guest.failures(), guest)
        guest.cmd('stop')
        guest.cmd('system_reset')
        # The reset is over when QEMU reads the next command.
        wait_for('the reset', lambda: guest.cmd('query-status')['status'] in (
            'paused', 'prelaunch'), guest)
        self.assertEqual(guest.failures(), [], guest.output())

    def check_resets(self, commands, **kwargs):
        guest = self.start(commands + 'barrier\ncpu 1\nreset\n', cpus=2,
                           **kwargs)
        self.wait_resets(guest, 2)
        before = self.resources(guest)
        self.assertEqual(before[2], 0)
        guest.cmd('cont')
        self.wait_resets(guest, RESETS)
        self.assertEqual(self.resources(guest), before)
        self.assertGreaterEqual(guest.output().count('reset\n'), RESETS)

    def test_to_shared_100_times(self):
        # The guest wrote to private pages only.
        self.check_resets(f'''
            check-zero {GPA} 16
            convert {GPA} 16 private
            write {GPA} 16 1
            check {GPA} 16 1
        ''', **swp())

    def test_to_private_100_times(self):
        # The guest wrote to shared pages only.
        self.check_resets(f'''
            check-zero {GPA} 16
            convert {GPA} 16 shared
            check-zero {GPA} 16
            write {GPA} 16 1
        ''', **starts_private())

    def test_memory_that_is_hidden_after_its_conversion(self):
        # A register of q35's host bridge maps RAM at 0xc0000 to 0xc7fff, or
        # what the bus has there.
        guest = self.start('''
            mmio-read 0xc0000 4 expect 0
            out 0xcf8 4 0x80000090
            out 0xcfd 1 0x33
            write 0xc0000 1 1
            convert 0xc0000 1 private
            write 0xc0000 1 2
            check 0xc0000 1 2
            out 0xcf8 4 0x80000090
            out 0xcfd 1 0
            reset
        ''', **swp())
        self.wait_resets(guest, 3)
        self.assertEqual(self.private_bytes(guest), 0)

    def test_of_a_stopped_guest(self):
        guest = self.check_list(f'check-zero {GPA} 4\n'
                                f'convert {GPA} 4 private\n'
                                f'write {GPA} 4 1\n', **swp())
        for times in 2, 3:
            guest.cmd('system_reset')
            guest.wait_done(times)
            self.assertEqual(guest.failures(), [], guest.output())


class SeaBios(BaremetalTest):
    """Firmware and a kernel that know nothing of private memory."""

    setUpClass = SwpTest.setUpClass

    def test_a_kernel_runs(self):
        args = swp()
        self.start(cpus=2, **args).assert_works()


class Linux(GuestTest):
    """A stock kernel, which knows nothing of private memory.

    It reports that it is ready only if it found its command line and initramfs.
    """

    setUpClass = SwpTest.setUpClass

    def boot(self, machine='q35', cpus=1, **kwargs):
        """A LinuxGuest that has booted."""
        guest = self.launch(LinuxGuest(self.dir, cpus=cpus, size='256M',
                                       **swp(machine=machine), **kwargs))
        guest.wait_ready()
        self.assertEqual(int(guest.report()['cpus']), cpus)
        self.assertIn('gmem.mode=command', guest.run('cat /proc/cmdline'))
        guest.start_memcheck(40, cpus)
        return guest

    def test_bzimage_on_q35(self):
        guest = self.boot(cpus=2)
        guest.cmd('system_reset')
        guest.wait_ready(2)

    def test_bzimage_on_pc(self):
        self.boot('pc')

    def test_vmlinux_by_pvh(self):
        path = os.path.join(self.dir, 'vmlinux')
        with open(path, 'wb') as f:
            f.write(kernel.elf_of(kernel.chosen()))
        self.boot(image_path=path)


class Errors(SwpTest):
    """Configurations that are refused, and the reasons."""

    def start_error(self, args, machine='', **kwargs):
        """QEMU's error when it refuses to start."""
        guest = Guest(self.dir, self.firmware, '', machine='q35' + machine +
                      ',confidential-guest-support=swp', args=args,
                      **{'backend': None, **kwargs})
        return self.refused(guest)

    def refused(self, guest):
        """QEMU's error when it refuses to start a Guest."""
        guest.set_qmp_monitor(False)
        guest.launch()
        guest.wait()
        self.assertEqual(guest.exitcode(), 1, guest.get_log())
        return guest.get_log()

    def test_smm(self):
        self.assertIn('do not ask for smm=on', self.start_error(
            ['-object', 'sw-protected-guest,id=swp'], machine=',smm=on'))

    def test_convert_in_place(self):
        text = self.start_error(
            ['-object', 'sw-protected-guest,id=swp,convert-in-place=on'])
        self.assertIn("'convert-in-place=on' is not possible", text)
        self.assertIn('kvm.gmem_in_place_conversion=1', text)

    def test_guest_memfd_as_ram(self):
        self.assertIn(GUEST_MEMFD + ' can be memory of a confidential guest '
                      'only where', self.start_error(
                          ['-object', 'sw-protected-guest,id=swp'],
                          backend=GUEST_MEMFD))

    def test_no_such_state(self):
        self.assertIn("does not accept value 'open'", self.start_error(
            ['-object', 'sw-protected-guest,id=swp,initial-state=open']))

    def test_migration(self):
        guest = self.check_list('barrier\n', **{**swp(), 'backend': MEMFD})
        with self.assertRaisesRegex(Exception, 'cannot be migrated'):
            guest.cmd('migrate', uri='exec:cat > /dev/null')
        self.assertIn('cannot be migrated', guest.cmd(
            'human-monitor-command', command_line='savevm x'))


class OnTheModel(KvmModeTest):
    """Guest code on a real KVM, with the model of a kernel above it.

    A KVM that emulates every instruction would not see private pages.
    """

    EMULATED_HOST = ()

    def run_sim(self, commands, generation='g2', **kwargs):
        """Run a guest to the end of its list; it still runs then."""
        return self.play(self.sim(commands, 'generation ' + generation,
                                  name=generation, **{**swp(), **kwargs}))

    def test_a_conversion_keeps_contents(self):
        guest = self.run_sim(f'''
            state {GPA} 16 shared
            write {GPA} 16 1
            convert {GPA} 8 private
            state {GPA} 8 private
            state {GPA + 8 * PAGE} 8 shared
            check {GPA} 16 1
            write {GPA} 8 2
            convert {GPA + PAGE} 2 shared
            check {GPA} 8 2
            check {GPA + 8 * PAGE} 8 1
        ''')
        report = guest.end()
        self.assertEqual((report['pages-to-private'],
                          report['pages-to-shared']), (8, 2))

    def test_the_same_where_memory_is_separate(self):
        self.run_sim(f'''
            write {GPA} 16 1
            convert {GPA} 8 private
            state {GPA} 8 private
            check-zero {GPA} 8
            check {GPA + 8 * PAGE} 8 1
        ''', 'g0').end()

    def test_vcpus_that_convert_at_the_same_time(self):
        guest = self.run_sim('preserve on\n' + ''.join(
            f'cpu {n}\nrandom {n} 500 {GPA + n * 64 * PAGE} 64\n'
            for n in range(4)), cpus=4)
        self.assertGreater(guest.end()['conversions'], 100)

    def test_ram_is_private_at_first(self):
        self.run_sim(f'''
            state {GPA} 16 private
            write {GPA} 16 1
            convert {GPA} 8 shared
            check {GPA} 16 1
            cpu 1
            write {GPA + MIB} 16 2
            check {GPA + MIB} 16 2
            state {GPA + MIB} 16 private
        ''', cpus=2, **starts_private()).end()

    def test_firmware_from_flash(self):
        self.run_sim(f'convert {GPA} 4 private\nwrite {GPA} 4 1\n'
                     f'check {GPA} 4 1\n', **with_flash(self.firmware)).end()

    def check_resets(self, guest):
        self.launch(guest)
        wait_for(f'{RESETS} resets', lambda:
                 [line.text for line in guest.lines()].count('reset') > RESETS
                 or guest.failures(), guest)
        self.assertEqual(guest.failures(), [], guest.output())

    def test_100_resets_to_shared(self):
        self.check_resets(self.sim(f'''
            state {GPA} 16 shared
            convert {GPA} 16 private
            write {GPA} 16 1
            check {GPA} 16 1
            barrier
            cpu 1
            reset
        ''', 'generation g2', cpus=2, **swp()))

    def test_100_resets_to_private(self):
        self.check_resets(self.sim(f'''
            state {GPA} 16 private
            convert {GPA} 16 shared
            write {GPA} 16 1
            check {GPA} 16 1
            barrier
            cpu 1
            reset
        ''', 'generation g2', cpus=2, **starts_private()))


class NotOffered(FirmwareTest):
    """A kernel without such VMs."""

    def test_error_says_what_to_do(self):
        if vm_types() & 1 << SW_PROTECTED:
            self.skipTest('this KVM has software-protected VMs')
        guest = Guest(self.dir, self.firmware, '', **swp())
        text = Errors.refused(self, guest)
        self.assertIn('KVM_CAP_VM_TYPES', text)
        self.assertIn('CONFIG_KVM_SW_PROTECTED_VM=y', text)
