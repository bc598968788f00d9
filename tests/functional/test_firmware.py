# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware that obeys a list of commands, under plain KVM."""
import struct
import tempfile
import unittest
import uuid

from firmware import FirmwareTest, build
from gmemlab.measure import Firmware, SnpLaunch, TdxLaunch, kernel_hashes
from gmemlab.machine import wait_for

MIB = 1 << 20
# Pages of every vCPU, where all write at the same time.
PAGES = 16


def for_each(cpus, command):
    """A command for every vCPU, with its number and its own gpa in it."""
    return ''.join(f'cpu {n}\n' + command.format(
        cpu=n, gpa=MIB + n * PAGES * 4096) + '\n' for n in range(cpus))


class Image(unittest.TestCase):
    """The tables that launches of confidential guests read.

    gmemlab.measure reads them, which knows nothing of how the image is made.
    """

    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory(prefix='gmem-') as directory:
            with open(build(directory), 'rb') as f:
                cls.image = f.read()

    def test_size(self):
        self.assertEqual(len(self.image), 64 << 10)

    def check_sections(self, ranges, image, metadata):
        """Ranges are the whole image, and metadata pages once, below 1 MiB.

        @metadata: the names of the metadata's ranges
        """
        first, *others = ranges
        self.assertEqual((first.name, first.gpa, first.data),
                         (image, 0xffff0000, self.image))
        self.assertEqual([r.name for r in others], metadata)
        end = 4096              # page 0 is not used
        for r in sorted(others, key=lambda r: r.gpa):
            self.assertGreaterEqual(r.gpa, end)
            end = r.gpa + r.size
        self.assertLessEqual(end, 0xa0000)

    def test_snp_sections(self):
        launch = SnpLaunch(self.image)
        self.check_sections(launch.ranges, 'firmware', [
            'SECRETS', 'CPUID', 'KERNEL_HASHES', 'SEC_MEM'])
        for r in launch.ranges[1:4]:
            self.assertEqual(r.size, 4096)

    def test_snp_kernel_hashes(self):
        hashes = kernel_hashes(b'kernel', b'initrd', 'append')
        r, = [r for r in SnpLaunch(self.image, hashes).ranges
              if r.name == 'KERNEL_HASHES']
        self.assertIn(hashes, r.data)
        self.assertEqual(r.type, 'normal')

    def test_tdx_sections(self):
        launch = TdxLaunch(self.image)
        self.check_sections(launch.ranges, 'BFV', ['TD_HOB', 'TEMP_MEM'])
        self.assertEqual([r.type for r in launch.ranges],
                         ['measured', 'added', 'added'])

    def test_reset_vectors(self):
        # The first vCPU: a near jump, from 16 bytes before the end
        jump, distance = struct.unpack_from('<Bh', self.image, 0xfff0)
        self.assertEqual(jump, 0xe9)
        # The other vCPUs of an SEV-ES guest
        self.assertEqual(
            Firmware(self.image).entry(
                uuid.UUID('00f771de-1a7e-4fcb-890e-68c77e2fb44e'), '<I'),
            (0xffff0000 + (0xfff3 + distance) % 0x10000,))


class Boot(FirmwareTest):
    """The firmware starts on every vCPU; all RAM is the guest_memfd."""

    def check_boot(self, machine, cpus):
        guest = self.check_list(
            for_each(cpus, f'write {{gpa}} {PAGES} {{cpu}}\n'
                           f'check {{gpa}} {PAGES} {{cpu}}'),
            machine=machine, cpus=cpus)
        for n in range(cpus):
            self.assertEqual(
                [line.text.split()[0] for line in guest.lines()
                 if line.cpu == n], ['write', 'check'])
        block = self.check_that_ram_is_guest_memfd(guest, 128 * MIB)
        self.assertGreaterEqual(block['allocated'], cpus * PAGES * 4096)

    def test_q35_with_1_vcpu(self):
        self.check_boot('q35', 1)

    def test_q35_with_2_vcpus(self):
        self.check_boot('q35', 2)

    def test_q35_with_8_vcpus(self):
        self.check_boot('q35', 8)

    def test_pc_with_1_vcpu(self):
        self.check_boot('pc', 1)

    def test_pc_with_8_vcpus(self):
        self.check_boot('pc', 8)

    def test_microvm(self):
        self.check_boot('microvm', 2)

    def test_9_vcpus_are_too_many(self):
        guest = self.run_list('cpu all\nbarrier\n', cpus=9)
        self.assertEqual(guest.failures(), ['there are more than 8 vCPUs'])

    def test_a_reset_runs_the_list_again(self):
        guest = self.start('write 0x100000 4 1\ncheck 0x100000 4 1\n'
                           'barrier\ncpu 1\nreset\n', cpus=2)
        wait_for('three resets', lambda:
                 [line.text for line in guest.lines()].count('reset') >= 3,
                 guest)
        self.assertEqual(guest.failures(), [])


class Memory(FirmwareTest):
    """The firmware's writes and checks"""

    def check_above_4_gib(self, machine, end):
        last = end - 16 * 4096
        guest = self.check_list(
            f'write 0x100000000 16 1\nwrite {last:#x} 16 2\n'
            f'write {MIB} 16 3\n'
            f'check 0x100000000 16 1\ncheck {last:#x} 16 2\n'
            f'check {MIB} 16 3\n', machine=machine, size='5G')
        block = self.check_that_ram_is_guest_memfd(guest, 5 << 30)
        self.assertLess(block['allocated'], 4 * MIB)

    def test_above_4_gib_on_q35(self):
        self.check_above_4_gib('q35', 7 << 30)

    def test_above_4_gib_on_pc(self):
        self.check_above_4_gib('pc', 6 << 30)

    def test_wrong_contents_are_reported(self):
        guest = self.run_list('write 0x100000 2 1\n'
                              'check 0x100000 2 2\n'
                              'check 0x101000 1 1\n'
                              'check-zero 0x101000 1\n'
                              'check-zero 0x102000 1\n'
                              'check 0x102000 1 0\n')
        a, b, c = guest.failures()
        number = '(0x[0-9a-f]+)'
        self.assertRegex(a, '^line 2: check 0x100000 2 2: gpa 0x100000 '
                            f'wanted {number} found {number}$')
        self.assertRegex(b, '^line 4: check-zero 0x101000 1: gpa 0x101000 '
                            f'wanted 0x0 found {number}$')
        self.assertRegex(c, f'^line 6: .* wanted {number} found 0x0$')
        self.assertEqual([line.text for line in guest.lines() if line.ok], [
            'write 0x100000 2 1', 'check 0x101000 1 1',
            'check-zero 0x102000 1'])
        self.assertIn('[cpu0] done, 3 failed\n', guest.output())

    def test_every_word_differs(self):
        guest = self.check_list('write 0x100000 16 1\n'
                                'write 0x110000 16 1\n'
                                'write 0x120000 32 2\n')
        path = self.dir + '/saved'
        guest.cmd('pmemsave', val=MIB, size=64 * 4096, filename=path)
        with open(path, 'rb') as f:
            words = struct.unpack('<32768Q', f.read())
        self.assertEqual(len(set(words)), len(words))

    def test_random_steps(self):
        guest = self.check_list(for_each(
            8, f'random {{cpu}} 500 {{gpa}} {PAGES} no-convert'), cpus=8)
        said = {line.text.split(': ')[1] for line in guest.lines()}
        # Other seeds, other steps.
        self.assertEqual(len(said), 8)
        for text in said:
            self.assertRegex(text, r'^\d{3,} pages written, \d{3,} checked, '
                                   '0 converted, 0 busy$')

    def test_random_steps_notice_lost_contents(self):
        # There is no memory.
        guest = self.run_list('random 1 100 0xc0000000 4 no-convert\n')
        text, = guest.failures()
        self.assertRegex(text, '^line 1: random .*: gpa 0xc000.000 wanted '
                               '0x[0-9a-f]+ found 0x0, written by step')


class List(FirmwareTest):
    """How commands are read and run."""

    def test_loops(self):
        guest = self.check_list('repeat 3\n repeat 2\n  repeat 0\n'
                                '   in 0x402 1\n  end\n  check-zero 0x100000 '
                                '1\n end\n check-zero 0x200000 1\nend\n')
        inner, outer = 'check-zero 0x100000 1', 'check-zero 0x200000 1'
        self.assertEqual([line.text for line in guest.lines()],
                         [inner, inner, outer] * 3)

    def test_no_vcpu_passes_a_barrier_alone(self):
        cpus, rounds = 8, 20
        guest = self.check_list(f'cpu all\nrepeat {rounds}\nin 0x402 1\n'
                                'barrier\nend\n', cpus=cpus)
        arrived, passed = [0] * cpus, [0] * cpus
        for line in guest.lines():
            if line.text == 'barrier':
                passed[line.cpu] += 1
                self.assertGreaterEqual(min(arrived), passed[line.cpu])
            else:
                arrived[line.cpu] += 1
        self.assertEqual(passed, [rounds] * cpus)

    def test_one_vcpu_sees_what_another_wrote(self):
        self.check_list('repeat 10\n'
                        'cpu 0\nwrite 0x100000 4 1\nbarrier\n'
                        'cpu 1\ncheck 0x100000 4 1\nwrite 0x100000 4 2\n'
                        'barrier\n'
                        'cpu 0\ncheck 0x100000 4 2\n'
                        'end\n', cpus=2)

    def test_mistakes_end_the_run(self):
        for text, mistake in (
                ('', 'fw_cfg has nothing in opt/guest-memfd/commands'),
                ('fly', 'line 1: no such command: fly'),
                ('# fly\n\n \tfly # away', 'line 3: no such command: fly'),
                ('in 0x402', 'line 1: there should be more words'),
                ('in 0x402 1 2', 'line 1: too many words: 2'),
                ('in 0x402 1 expect', 'line 1: there should be more words'),
                ('in 0x402 3', 'line 1: not a size: 3'),
                ('in 0x402 8', 'line 1: not a size: 8'),
                ('exit 0xg', 'line 1: not a number: 0xg'),
                ('exit 0x', 'line 1: not a number: 0x'),
                ('exit 12a', 'line 1: not a number: 12a'),
                ('exit 18446744073709551616',
                 'line 1: not a number: 18446744073709551616'),
                ('write 0x100001 1 1',
                 'line 1: not the gpa of a page: 0x100001'),
                ('write 0x9f000 1 1',
                 'line 1: no such range for this command: 0x9f000'),
                ('check 0xfffffffffffff000 1 1', 'line 1: no such range for '
                 'this command: 0xfffffffffffff000'),
                ('check 0 0 1', 'line 1: no such range for this command: 0'),
                ('convert 0 1 open', 'line 1: no such choice: open'),
                ('cpu 2', 'line 1: no such vCPU: 2'),
                ('end', 'line 1: no loop to end'),
                ('in 0x402 1\nrepeat 1', 'line 2: this loop has no end'),
                ('repeat 1\n' * 5, 'line 5: too many loops in each other'),
                ('hlt\n' * 1025, 'line 1025: too many commands: hlt'),
                ('#' * 32769, 'the list has more than 32768 bytes')):
            with self.subTest(text=text[:40]):
                guest = self.run_list(text, cpus=2)
                self.assertEqual([line.text for line in guest.lines()],
                                 [mistake])
                guest.shutdown(hard=True)

    def test_ports_and_mmio(self):
        guest = self.run_list('in 0x402 1 expect 0xe9\n'
                              # One register of several sizes
                              'out 0x70 1 0xf\nout 0x71 1 0x5a\n'
                              'in 0x71 1 expect 0x5a\n'
                              'in 0x71 1 expect 0x5b\n'
                              # the APIC's version and task priority
                              'mmio-read 0xfee00030 4 expect 0x50014\n'
                              'mmio-write 0xfee00080 4 0x20\n'
                              'mmio-read 0xfee00080 4 expect 0x20\n')
        self.assertEqual(guest.failures(), [
            'line 5: in 0x71 1 expect 0x5b: found 0x5a'])
        self.assertIn('in 0x402 1 expect 0xe9: 0xe9',
                      [line.text for line in guest.lines()])

    def test_an_exception_ends_the_run(self):
        guest = self.run_list('cpu 1\nmmio-read 0x8000000000 1\n'
                              'cpu all\nbarrier\nexit 1\n', cpus=2)
        text, = guest.failures()
        self.assertRegex(text, '^exception 14 error 0x0 at 0xffff[0-9a-f]{4}, '
                               'cr2 0x8000000000$')
        self.assertEqual(guest.lines()[0].cpu, 1)

    def test_exit_gives_a_status(self):
        guest = self.start('exit 5\n')
        self.assertEqual(guest.wait_exit(), 5)
        self.assertEqual([line.text for line in guest.lines()], ['exit 5'])

    def test_hlt(self):
        guest = self.start('hlt\nexit 1\n')
        wait_for('the vCPU to halt', lambda: 'HLT=1' in guest.cmd(
            'human-monitor-command', command_line='info registers'), guest)
        self.assertEqual([line.text for line in guest.lines()], ['hlt'])

    def test_shutdown_is_a_triple_fault(self):
        guest = self.start('shutdown\n', args=['-no-shutdown', '-action',
                                               'reboot=shutdown'])
        wait_for('the shutdown', lambda: guest.cmd(
            'query-status')['status'] == 'shutdown', guest)
        self.assertEqual([line.text for line in guest.lines()], ['shutdown'])

    def test_without_a_model(self):
        guest = self.run_list('access 0x100000 1 private\n'
                              'state 0x100000 1 none\n'
                              'hypercall-by port\n'
                              'convert 0x100000 1 private\n'
                              'random 1 1 0x100000 1\n')
        self.assertEqual([text.split(': ')[-1] for text in guest.failures()],
                         ['there is no model'] * 4)


class Hypercall(FirmwareTest):
    """KVM refuses conversions if the emulator did not ask for the exit."""

    EMULATED_HOST = ()

    def test_enosys_is_reported(self):
        guest = self.run_list('cpu all\n'
                              'convert 0x100000 1 private\n'
                              'convert 0x100000 1 shared expect ENOSYS\n'
                              'convert 0x100000 1 shared expect any\n'
                              'convert 0x100000 1 shared expect EINVAL\n'
                              'hypercall-by vmmcall\n'
                              'convert 0x100000 1 private expect ENOSYS\n'
                              'random 1 100 0x100000 1\n', cpus=2)
        for n in range(2):
            self.assertEqual(
                [line.text for line in guest.lines() if line.cpu == n], [
                    'line 2: convert 0x100000 1 private: returned -1000',
                    'convert 0x100000 1 shared expect ENOSYS: -1000',
                    'convert 0x100000 1 shared expect any: -1000',
                    'line 5: convert 0x100000 1 shared expect EINVAL: '
                    'returned -1000',
                    'convert 0x100000 1 private expect ENOSYS: -1000',
                    'line 8: random 1 100 0x100000 1: gpa 0x100000, 1 pages '
                    'to shared: returned -1000'], guest.output())
