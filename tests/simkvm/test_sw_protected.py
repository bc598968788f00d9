# SPDX-License-Identifier: GPL-2.0-or-later
"""Software-protected guests: separate memory (G0), and in place (G2)."""
import errno
import os
import re
import struct

from gmemlab.machine import GUEST_MEMFD, MEMFD
from simtest import SimTest

SET = 'KVM_SET_MEMORY_ATTRIBUTES'
SET2 = 'KVM_SET_MEMORY_ATTRIBUTES2'
SLOTS = 'KVM_SET_USER_MEMORY_REGION2'
# A script that resets the machine cannot end it by a shutdown.
RESET = 'out 0xcf9 1 6'
END = 'out 0xf4 4 1'
ENDED = 3
RESETS = 100


# Of fw_cfg, and of the setup header (boot protocol of Linux, 2.02).
CMDLINE_DATA, SETUP_DATA = 0x15, 0x18
INITRD_ADDR, INITRD_SIZE, INITRD_DATA = 0x0a, 0x0b, 0x12
RAMDISK, CMDLINE, HEADER = 0x218, 0x228, 0x230


class SwpTest(SimTest):
    """Has software-protected guests.  Subclasses have a GENERATION."""

    GENERATION = None

    def run_guest(self, script, properties='', status=ENDED, config='',
                  args=(), **kwargs):
        """Run a guest with that script until it ends."""
        kwargs = {'backend': None, **kwargs}
        sim = self.play(
            f'generation {self.GENERATION}\nvm-types default sw-protected\n'
            f'{config}\nvcpu 0\n{script}\n{END}\n', status,
            confidential='sw-protected-guest' + properties,
            args=['-bios', self.image, '-action', 'reboot=reset', '-device',
                  'isa-debug-exit,iobase=0xf4,iosize=4', *args], **kwargs)
        self.assertIsNone(sim.report.get('violation'))
        return sim

    def refused(self, **kwargs):
        """The error of a guest that does not start."""
        return self.run_guest('', status=1, **kwargs).get_log()

    def loaded(self, gpa):
        """Arguments that load 16 bytes into RAM; the first eight are 1."""
        path = os.path.join(self.dir, 'loaded')
        with open(path, 'wb') as f:
            f.write(bytes([1] + [0] * 15))
        return ['-device', f'loader,file={path},addr={gpa:#x},force-raw=on']

    def open_slots(self, sim):
        """Numbers of memslots at the end of each reset, and of the run.

        A reset follows an exit for port I/O.
        """
        counts, slots = [], set()
        for call in sim.model.log():
            if call['call'] == SLOTS and call['size']:
                slots.add(call['slot'])
            elif call['call'] == SLOTS:
                slots.discard(call['slot'])
            elif call['call'] == 'KVM_EXIT_IO':
                counts.append(len(slots))
        return counts


class BothWays:
    """Tests for separate memory and for memory in place."""

    def test_ram_is_shared_at_first(self):
        sim = self.run_guest('''
            state 0x100000 0x7f00 shared
            fill 0x100000 16 1
            map-gpa 0x104000 4 private
            state 0x103000 1 shared
            state 0x104000 4 private
            state 0x108000 1 shared
            check 0x100000 4 1
            fill 0x104000 4 2
            check 0x104000 4 2
            map-gpa 0x104000 4 shared
            state 0x104000 4 shared
        ''')
        self.assertEqual(sim.report['pages-to-private'], 4)
        self.assertEqual(sim.report['pages-to-shared'], 4)

    def test_ram_is_private_at_first(self):
        self.run_guest('''
            state 0x100000 0x7f00 private
            fill 0x100000 16 1
            map-gpa 0x104000 4 shared
            state 0x103000 1 private
            state 0x104000 4 shared
            check 0x100000 4 1
        ''', ',initial-state=private')

    def test_firmware_is_shared_rom(self):
        for state in 'shared', 'private':
            for machine in 'q35', 'pc', 'microvm':
                with self.subTest(state=state, machine=machine):
                    # The reset vector: a near jump.
                    self.run_guest('read 0xfffffff0 1 expect=0xe9',
                                   ',initial-state=' + state, machine=machine)

    def test_reset_to_shared(self):
        sim = self.run_guest(f'''
            repeat {RESETS}
            state 0x0 0xa0 shared
            state 0x100000 0x7f00 shared
            map-gpa 0x100000 0x1000 private
            map-gpa 0x4000000 16 private
            fill 0x100000 16 1
            state 0x100000 0x1000 private
            {RESET}
            end
            state 0x100000 0x7f00 shared
        ''')
        self.check_leaks(sim)

    def test_reset_to_private(self):
        sim = self.run_guest(f'''
            repeat {RESETS}
            state 0x100000 0x7f00 private
            map-gpa 0x100000 0x1000 shared
            map-gpa 0x4000000 16 shared
            fill 0x100000 16 1
            state 0x4000000 16 shared
            {RESET}
            end
            state 0x100000 0x7f00 private
        ''', ',initial-state=private')
        self.check_leaks(sim)

    def test_reset_with_two_nodes(self):
        nodes = []
        for n in range(2):
            nodes += ['-object', f'memory-backend-ram,id=node{n},size=64M',
                      '-numa', f'node,memdev=node{n}']
        for state, other in ('shared', 'private'), ('private', 'shared'):
            with self.subTest(state=state):
                self.run_guest(f'''
                    state 0x100000 0x7f00 {state}
                    map-gpa 0x3000000 16 {other}
                    map-gpa 0x5000000 16 {other}
                    {RESET}
                    state 0x100000 0x7f00 {state}
                ''', ',initial-state=' + state, args=nodes)

    def check_leaks(self, sim):
        """Resets leave neither files nor memslots, nor pages."""
        slots = self.open_slots(sim)
        self.assertGreaterEqual(len(slots), RESETS)
        self.assertEqual(len(set(slots[1:])), 1, slots)
        self.assertLess(sim.report['calls']['KVM_CREATE_GUEST_MEMFD'], 8)
        # Firmware, video memory and what the guest has written.
        self.assertLess(sim.report['peak']['total'], 64 << 20)

    def files(self):
        """Arguments for a bzImage, a command line and an initrd."""
        # One sector of setup, protocol 2.11.
        kernel = bytearray(b'A' * 1024 + b'the kernel' * 1000)
        struct.pack_into('<B', kernel, 0x1f1, 1)
        struct.pack_into('<4sH', kernel, 0x202, b'HdrS', 0x20b)
        struct.pack_into('<I', kernel, 0x22c, 0x7fffffff)
        args = ['-append', 'console=ttyS0']
        for option, data in ('-kernel', kernel), ('-initrd', b'the initrd'):
            path = os.path.join(self.dir, option)
            with open(path, 'wb') as f:
                f.write(data)
            args += [option, path]
        return args

    def fw_cfg(self, sim, key, size):
        """Bytes of an fw_cfg item, as the firmware reads them."""
        def hmp(line):
            return sim.cmd('human-monitor-command', command_line=line)

        hmp(f'o /h 0x510 {key:#x}')
        return bytes(int(re.search('= *(0x[0-9a-f]+)', hmp('i /b 0x511'))[1],
                         16) for _ in range(size))

    def check_kernel(self, **kwargs):
        """Firmware boots it; returns the setup header."""
        sim = self.start(f'generation {self.GENERATION}\nvcpu 0\nhalt\n',
                         backend=None, args=['-bios', self.image,
                                             *self.files()], **kwargs)
        setup = self.fw_cfg(sim, SETUP_DATA, HEADER)
        for key, value in (CMDLINE_DATA, b'console=ttyS0\0'), (
                INITRD_DATA, b'the initrd'):
            self.assertEqual(self.fw_cfg(sim, key, len(value)), value)
        self.assertEqual(setup[RAMDISK:RAMDISK + 8],
                         self.fw_cfg(sim, INITRD_ADDR, 4) +
                         self.fw_cfg(sim, INITRD_SIZE, 4))
        self.assertTrue(any(setup[CMDLINE:CMDLINE + 4]))
        return setup

    def test_a_kernel_finds_command_line_and_initrd(self):
        wanted = self.check_kernel()
        for state in 'shared', 'private':
            with self.subTest(state=state):
                self.assertEqual(wanted, self.check_kernel(
                    confidential='sw-protected-guest,initial-state=' + state))

    def test_four_vcpus(self):
        self.run_guest('''
            random 1 300 0x100000 512
            barrier
        ''', cpus=4, config='vcpu 1\nrandom 2 300 0x100000 512\nbarrier\n'
             'vcpu 2\nrandom 3 300 0x100000 512\nbarrier\n'
             'vcpu 3\nrandom 4 300 0x100000 512\nbarrier\n')

    def test_smm_is_refused(self):
        self.assertIn('do not ask for smm=on',
                      self.refused(machine='q35,smm=on'))

    def test_type_is_not_offered(self):
        text = self.refused(config='vm-types default')
        self.assertIn('KVM_CAP_VM_TYPES', text)
        self.assertIn('CONFIG_KVM_SW_PROTECTED_VM=y', text)


class Separate(BothWays, SwpTest):
    """Separate memory: each conversion empties a page."""

    GENERATION = 'g0'

    def test_contents_go_with_a_conversion(self):
        sim = self.run_guest('''
            fill 0x100000 2 1
            map-gpa 0x100000 2 private
            read 0x100000 8 expect=0
            fill 0x100000 2 2
            map-gpa 0x100000 1 shared
            read 0x100000 8 expect=0
            check 0x101000 1 2
        ''')
        self.assertEqual([(call['gpa'], call['size'], call['attributes'])
                          for call in sim.model.log(SET)
                          if call['gpa'] >= 0x100000],
                         [(0x100000, 0x2000, 8), (0x100000, 0x1000, 0)])

    def test_private_memory_goes_at_a_reset(self):
        self.run_guest(f'''
            fill 0x100000 2 1
            map-gpa 0x101000 2 private
            fill 0x101000 2 2
            {RESET}
            check 0x100000 1 1
            read 0x101000 8 expect=0
            map-gpa 0x101000 2 private
            read 0x101000 8 expect=0
        ''')

    def test_listeners_are_notified_of_a_reset(self):
        sim = self.run_guest(f'''
            map-gpa 0x100000 2 private
            {RESET}
            map-gpa 0x100000 2 private
        ''', args=['-trace', 'ram_block_attributes_state_change'])
        convert = "offset 0x100000 size 0x2000 from 'populated' to 'discarded'"
        self.assertEqual(sim.get_log().count(convert), 2, sim.get_log())

    def test_memory_that_is_hidden_after_its_conversion(self):
        # The host bridge's register for 0xc0000 to 0xc7fff
        hide = 'out 0xcf8 4 0x80000090\nout 0xcfd 1 0\n'
        show = 'out 0xcf8 4 0x80000090\nout 0xcfd 1 0x33\n'
        self.run_guest(show + 'map-gpa 0xc0000 8 private\n'
                       'fill 0xc0000 8 1\nstate 0xc0000 8 private\n' + hide +
                       RESET + '\nread 0xc0000 8 expect=0\n' + show +
                       'state 0xc0000 8 shared\nread 0xc0000 8 expect=0\n')

    def test_failures_end_the_emulator(self):
        before = len(self.run_guest('').model.log(SET))
        for plan in f'{SET} errno=ENOMEM at={before + 1}', \
                    'fallocate errno=EIO at=1':
            with self.subTest(plan=plan):
                sim = self.run_guest(RESET, status=1, config='fault ' + plan)
                self.assertIn('cannot make all RAM of the sw-protected-guest '
                              'shared', sim.get_log())


class InPlace(BothWays, SwpTest):
    """One memory, and a conversion keeps its contents."""

    GENERATION = 'g2'

    def test_contents_stay(self):
        sim = self.run_guest(f'''
            fill 0x100000 4 1
            map-gpa 0x100000 4 private
            check 0x100000 4 1
            map-gpa 0x102000 2 shared
            check 0x100000 4 1
            {RESET}
            check 0x100000 4 1
        ''')
        self.assertEqual(sim.report['host-touches'], 0)

    def test_what_is_loaded_is_there(self):
        for state in 'shared', 'private':
            with self.subTest(state=state):
                self.run_guest(f'''
                    state 0x200000 1 {state}
                    read 0x200000 8 expect=1
                    write 0x200000 8 2
                    map-gpa 0x200000 1 private
                    read 0x200000 8 expect=2
                    {RESET}
                    state 0x200000 1 {state}
                    read 0x200000 8 expect=1
                ''', ',initial-state=' + state, args=self.loaded(0x200000))

    def test_one_conversion_a_block(self):
        few = self.run_guest('', ',initial-state=private', size='128M')
        many = self.run_guest('', ',initial-state=private', size='64G')
        for sim in few, many:
            self.assertEqual(sim.report['conversions'], 1)

    def test_backends(self):
        for backend in None, GUEST_MEMFD, MEMFD:
            with self.subTest(backend=backend):
                self.run_guest('''
                    fill 0x100000 4 1
                    map-gpa 0x100000 4 private
                    check 0x100000 4 1
                ''', backend=backend)

    def test_busy_pages_are_waited_for(self):
        sim = self.run_guest('state 0x100000 4 private',
                             ',initial-state=private',
                             config='pin 0x100000 4096 file=1 times=3')
        answers = [call['ret'] for call in sim.model.log(SET2)
                   if call['attributes']]
        self.assertEqual(answers[:3], [-errno.EAGAIN] * 3)
        self.assertEqual(set(answers[3:]), {0})

    def test_pages_that_stay_busy_end_the_emulator(self):
        sim = self.run_guest('', ',initial-state=private', status=1,
                             config='pin 0x100000 4096 file=1 times=forever')
        self.assertIn('cannot make all RAM of the sw-protected-guest private',
                      sim.get_log())
