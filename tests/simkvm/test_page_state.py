# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers to guests' requests for page-state changes, in place.

A test for each row of docs/page-state-changes.md.
"""
import errno
import unittest

from gmemlab.machine import wait_for
from gmemlab.simkvm import lacks_tdx, snp
from simtest import SimTest

CONVERT = 'KVM_SET_MEMORY_ATTRIBUTES2'
PAGE = 4096
# RAM is below 0x8000000 and at 4 GiB, so many bytes each.
HALF = 0x8000000
HIGH = 0x100000000
LAYOUT = 'q35,max-ram-below-4g=128M'
# Two files; the second begins in the middle of the lower half.
NODES = ['-object', 'memory-backend-guest-memfd,id=low,size=64M',
         '-object', 'memory-backend-guest-memfd,id=high,size=192M',
         '-numa', 'node,memdev=low', '-numa', 'node,memdev=high']
BORDER = 0x4000000
MANY = 0x10000000000000         # so many pages are 2^64 bytes


class Guests:
    """All platforms.

    CONFIDENTIAL: the object
    STATES: the state of RAM at first, and the other one
    CONFIG, MACHINE, ARGS: more that such a guest needs
    """

    CONFIDENTIAL = None
    STATES = 'private', 'shared'
    CONFIG = ''
    MACHINE = LAYOUT
    ARGS = ()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.launched = None

    def guest(self, args=(), **kwargs):
        """Arguments of SimTest.machine()."""
        return {'size': '256M', 'backend': None, 'machine': self.MACHINE,
                'confidential': self.CONFIDENTIAL, **kwargs,
                'args': ['-bios', self.image, *self.ARGS, *args]}

    def config(self, script, plan=''):
        """Configuration of a guest with that script for vCPU 0."""
        return (f'generation g2\n{self.CONFIG}\n{plan}\nvcpu all\nhalt\n'
                f'vcpu 0\n{script}\n')

    def run_guest(self, script, plan='', **kwargs):
        """The script ends, and no private page was touched."""
        sim = self.play(self.config(script + '\nshutdown', plan),
                        **self.guest(**kwargs))
        self.assertEqual(sim.report['host-touches'], 0)
        return sim

    def before(self, **kwargs):
        """Number of conversions that a launch makes."""
        return self.run_guest('', **kwargs).report['calls'].get(CONVERT, 0)

    def conversions(self, sim, **kwargs):
        """Conversions after the launch: (offset, size, attributes, ret)."""
        return [(call['offset'], call['size'], call['attributes'], call['ret'])
                for call in sim.model.log(CONVERT)[self.before(**kwargs):]]

    def plan(self, error, call=1, times=1, **kwargs):
        """A plan: conversions fail, from the N-th after the launch on."""
        return (f'fault {CONVERT} errno={error} times={times} '
                f'at={self.before(**kwargs) + call}')

    @staticmethod
    def changes(gpa, pages, state):
        """Lines: a request that changes something is granted."""
        return (f'map-gpa {gpa:#x} {pages} {state} ret=0\n'
                f'state {gpa:#x} {pages} {state}\n')

    def refused(self, *requests):
        """Requests, "GPA PAGES" each, are answered EINVAL and change nothing.
        """
        for there, wanted in self.STATES, self.STATES[::-1]:
            script = ''.join(f'map-gpa {request} {state} ret=EINVAL\n'
                             for request in requests
                             for state in ('private', 'shared'))
            before = self.changes(0x1000000, 16, there) \
                if there == self.STATES[1] else ''
            sim = self.run_guest(
                before + script + f'state 0x1000000 16 {there}\n' +
                self.changes(0x1000000, 16, wanted))
            self.assertEqual(len(self.conversions(sim)), 1 + bool(before))

    def stops(self, script, reason, plan='', **kwargs):
        """The guest stops; the emulator says why, and answers QMP."""
        sim = self.start(self.config(script + '\nprint goes-on', plan),
                         **self.guest(**kwargs))
        wait_for('the guest to stop', lambda: sim.cmd(
            'query-status')['status'] == 'internal-error', sim)
        self.assertTrue(sim.cmd('query-guest-memfd')['blocks'])
        self.quit(sim)
        self.assertRegex(sim.get_log(), reason)
        self.assertEqual(sim.output(), '')
        self.assertEqual(sim.report['host-touches'], 0)
        return sim


class Requests(Guests):
    """Hypercalls."""

    def test_unaligned(self):
        self.refused('0x1000800 4', '0x1000001 1', '0xfffffffffffff801 1')

    def test_no_pages(self):
        self.refused('0x1000000 0', '0xfec00000 0', '0 0')

    def test_a_range_that_wraps_around(self):
        self.refused('0x1000000 0xffffffffffffffff', f'0x1000000 {MANY:#x}',
                     f'0x1000000 {MANY - 0x1000:#x}', f'0 {MANY:#x}',
                     f'0x1000000 {MANY + 1:#x}', '0xfffffffffffff000 2',
                     f'0xfffffffffffff000 {MANY:#x}', '0xfffffffffffff000 1')

    def test_reserved_bits(self):
        script = ''.join(
            f'map-gpa 0x1000000 1 {state} attributes={1 << bit:#x} '
            'ret=EINVAL\n' for state in self.STATES for bit in (5, 31, 63))
        sim = self.run_guest(script)
        self.assertEqual(self.conversions(sim), [])

    def test_a_hint_of_page_sizes_is_only_that(self):
        there, wanted = self.STATES
        sim = self.run_guest(f'''
            map-gpa 0x1001000 3 {wanted} attributes=1 ret=0
            state 0x1000000 1 {there}
            state 0x1001000 3 {wanted}
            state 0x1004000 1 {there}''')
        self.assertEqual(len(self.conversions(sim)), 1)

    def test_where_nothing_is(self):
        nothing = ('0x8000000 1', '0xb0000000 0x1000', '0x108000000 1',
                   '0x1000000000 0x40000', '0xffffffffffffe000 1')
        sim = self.run_guest('\n'.join(
            f'map-gpa {where} shared ret=0\n'
            f'map-gpa {where} private ret=EINVAL' for where in nothing))
        self.assertEqual(self.conversions(sim), [])

    def test_device_registers(self):
        sim = self.run_guest('\n'.join(
            f'map-gpa {where} shared ret=0\n'
            f'map-gpa {where} private ret=EINVAL'
            for where in ('0xfec00000 1', '0xfed00000 1', '0xfee00000 1')))
        self.assertEqual(self.conversions(sim), [])

    def test_a_range_that_leaves_memory(self):
        there, wanted = self.STATES
        for first, pages, memory in ((HALF - 4 * PAGE, 8, 0),
                                     (HIGH + HALF - 4 * PAGE, 100, 0)):
            sim = self.run_guest(f'''
                map-gpa {first} 2 {wanted}
                map-gpa {first} {pages} private ret=EINVAL
                state {first} 2 {wanted}
                state {first + 2 * PAGE} 2 {there}
                map-gpa {first} {pages} shared ret=0
                state {first} 4 shared
                state {first - PAGE} 1 {there}''')
            size = (PAGE * 2, 0)
            self.assertEqual([c[1:] for c in self.conversions(sim)],
                             [(*size, 0)] * 2 if there == 'private' else
                             [(PAGE * 2, 8, 0), (PAGE * 2, 0, 0)])

    def test_a_range_with_a_hole_is_all_or_nothing(self):
        there, wanted = self.STATES
        first = HALF - 2 * PAGE
        pages = (HIGH + 2 * PAGE - first) // PAGE
        sim = self.run_guest(f'''
            map-gpa {first} 1 {wanted}
            map-gpa {HIGH + PAGE:#x} 1 {wanted}
            map-gpa {first} {pages} private ret=EINVAL
            state {first} 1 {wanted}
            state {first + PAGE} 1 {there}
            state {HIGH:#x} 1 {there}
            state {HIGH + PAGE:#x} 1 {wanted}
            map-gpa {first} {pages} shared ret=0
            state {first} 2 shared
            state {HIGH:#x} 2 shared
            state {first - PAGE} 1 {there}
            state {HIGH + 2 * PAGE:#x} 1 {there}''')
        self.assertEqual({c[3] for c in self.conversions(sim)}, {0})

    def test_several_ram_blocks(self):
        there, wanted = self.STATES
        sim = self.run_guest(
            self.changes(BORDER - 2 * PAGE, 5, wanted) +
            self.changes(BORDER - 2 * PAGE, 5, there), args=NODES)
        self.assertEqual(
            sorted(c[:2] for c in self.conversions(sim, args=NODES)),
            [(0, 3 * PAGE)] * 2 + [(BORDER - 2 * PAGE, 2 * PAGE)] * 2)

    def test_several_ram_blocks_half_way(self):
        """Converted pages stay converted, and the guest may ask again."""
        there, wanted = self.STATES
        sim = self.run_guest(f'''
            map-gpa {BORDER - 2 * PAGE} 5 {wanted} ret=EAGAIN
            state {BORDER - 2 * PAGE} 2 {wanted}
            state {BORDER} 3 {there}
            map-gpa {BORDER - 2 * PAGE} 5 {wanted} ret=0
            state {BORDER - 2 * PAGE} 5 {wanted}''', args=NODES,
            plan=self.plan('ENOMEM', 2, args=NODES))
        calls = self.conversions(sim, args=NODES)
        self.assertEqual([c[3] for c in calls], [0, -errno.ENOMEM, 0])
        self.assertEqual(calls[1][:2], calls[2][:2])

    def test_what_is_so_already_costs_no_call(self):
        there, wanted = self.STATES
        sim = self.run_guest(
            f'map-gpa 0x1000000 16 {there} ret=0\n' +
            self.changes(0x1000000, 16, wanted) +
            f'map-gpa 0x1000000 16 {wanted} ret=0\n'
            f'map-gpa 0x1004000 4 {wanted} ret=0')
        self.assertEqual(len(self.conversions(sim)), 1)

    def test_opposite_requests_from_two_vcpus(self):
        """Each is granted, as a whole, in some order."""
        ask = ('repeat 300\n'
               'map-gpa 0x1000000 16 {} ret=0 contended\nend\nbarrier\n')
        there, wanted = self.STATES
        sim = self.play(f'''
            generation g2
            {self.CONFIG}
            vcpu 1
            {ask.format(wanted)}
            halt
            vcpu 0
            {ask.format(there)}
            map-gpa 0x1000000 16 shared
            state 0x1000000 16 shared
            map-gpa 0x1000000 16 private
            state 0x1000000 16 private
            shutdown''', **self.guest(cpus=2))
        calls = self.conversions(sim)
        self.assertEqual({c[:2] for c in calls}, {(0x1000000, 16 * PAGE)})
        # A request that changes nothing makes no call.
        self.assertTrue(all(a[2] != b[2] for a, b in zip(calls, calls[1:])))

    INTERRUPTED = 'forever', 'EAGAIN'

    def test_errors_of_the_kernel(self):
        there, wanted = self.STATES
        for error, times, answer in (
                ('ENOMEM', 1, 'EAGAIN'), ('EINTR', *self.INTERRUPTED),
                ('EINVAL', 1, 'EINVAL'), ('EIO', 1, 'EINVAL'),
                ('EPERM', 1, 'EINVAL')):
            with self.subTest(error=error):
                script = f'''
                    map-gpa 0x1000000 16 {wanted} ret={answer}
                    state 0x1000000 16 {there if answer else wanted}
                    '''
                if times != 'forever':
                    script += self.changes(0x1000000, 16, wanted)
                sim = self.run_guest(script, self.plan(error, times=times))
                self.assertEqual(self.conversions(sim)[0][3],
                                 -getattr(errno, error))

    def test_an_error_in_the_midst_of_a_mixed_range(self):
        there, wanted = self.STATES
        sim = self.run_guest(f'''
            map-gpa 0x1004000 4 {wanted}
            map-gpa 0x1000000 16 {wanted} ret=EAGAIN
            state 0x1000000 4 {there}
            state 0x1004000 4 {wanted}
            state 0x1008000 8 {there}
            map-gpa 0x1000000 16 {wanted} ret=0
            state 0x1000000 16 {wanted}''', self.plan('ENOMEM', 2))
        self.assertEqual([c[3] for c in self.conversions(sim)],
                         [0, -errno.ENOMEM, 0])

    def test_a_page_that_is_held_for_a_moment(self):
        sim = self.run_guest('''
            map-gpa 0x1000000 16 shared
            pin 0x1005000 1 times=5
            map-gpa 0x1000000 16 private ret=0
            state 0x1000000 16 private''')
        self.assertEqual([c[3] for c in self.conversions(sim)].count(
            -errno.EAGAIN), 5)

    # So many tries, with pauses that grow to 10 ms, take more than a second.
    LONG = 250

    def test_a_page_that_stays_held(self):
        sim = self.run_guest(f'''
            map-gpa 0x1000000 16 shared
            pin 0x1005000 1 times={self.LONG}
            map-gpa 0x1000000 16 private ret={self.HELD}
            state 0x1000000 5 private
            state 0x1005000 11 {'shared' if self.HELD else 'private'}
            map-gpa 0x1006000 10 private ret=0
            state 0x1006000 10 private''')
        tries = [c[3] for c in self.conversions(sim)].count(-errno.EAGAIN)
        self.assertGreater(tries, 50)
        if not self.HELD:
            self.assertEqual(tries, self.LONG)

    # Far more than a second, but less than SEV-SNP's limit.
    LONGER = 1500

    def test_a_page_that_stays_held_keeps_nobody_else(self):
        """QMP answers, other vCPUs are served, and it can be stopped."""
        sim = self.start(f'''
            generation g2
            {self.CONFIG}
            vcpu 0
            map-gpa 0x1000000 16 shared
            pin 0x1005000 1 times={self.LONGER}
            barrier
            map-gpa 0x1000000 16 private ret={self.HELD}
            state 0x1000000 5 private
            state 0x1005000 11 {'shared' if self.HELD else 'private'}
            print a
            halt
            vcpu 1
            barrier
            repeat 100
            map-gpa 0x2000000 16 shared
            map-gpa 0x2000000 16 private
            end
            print s
            halt''', **self.guest(cpus=2))

        def tries():
            return len([call for call in sim.model.log(CONVERT)
                        if call['ret'] == -errno.EAGAIN])

        wait_for('the other vCPU', lambda: 's' in sim.output(), sim)
        wait_for('the page to be found busy', tries, sim)
        sim.assert_runs()
        self.assertGreater(sum(b['counters']['busy'] for b in sim.cmd(
            'query-guest-memfd')['blocks']), 0)
        for _ in range(2):
            before = tries()
            sim.cmd('stop')
            self.assertEqual(sim.cmd('query-status')['status'], 'paused')
            if not self.HELD:
                # "stop" did not wait for the page.
                self.assertLess(tries(), self.LONGER)
            sim.cmd('cont')
            if not self.HELD:
                wait_for('more tries', lambda: tries() > before, sim)
        wait_for('the answer', lambda: 'a' in sim.output(), sim)
        self.quit(sim)

    def test_quit_while_a_page_stays_held(self):
        sim = self.start(self.config('''
            map-gpa 0x1000000 16 shared
            pin 0x1005000 1 times=forever
            map-gpa 0x1000000 16 private ret=any
            print answered'''), **self.guest())
        wait_for('the page to be found busy', lambda: -errno.EAGAIN in
                 {call['ret'] for call in sim.model.log(CONVERT)}, sim)
        self.quit(sim)
        if not self.HELD:
            self.assertEqual(sim.output(), '')


class Exits(Guests):
    """KVM_RUN ends with an error, or with an access that it cannot serve."""

    def test_an_access_fault_that_is_stale_changes_nothing(self):
        there, wanted = self.STATES
        sim = self.run_guest(f'''
            fault 0x1000000 0x1000 {there} stale
            state 0x1000000 1 {there}
            ''' + self.changes(0x1000000, 1, wanted) + f'''
            fault 0x1000000 0x1000 {wanted} stale
            state 0x1000000 1 {wanted}''')
        self.assertEqual(len(self.conversions(sim)), 1)

    def test_an_access_fault_now_and_then(self):
        """The guest runs in between, so QEMU does not give up."""
        self.run_guest(f'''
            repeat 15
            fault 0x1000000 0x1000 {self.STATES[0]} stale
            repeat 100000
            in 0x80 1
            end
            end''')

    def test_an_access_fault_without_end(self):
        sim = self.stops(f'fault 0x1000000 0x1000 {self.STATES[0]} '
                         'times=forever', '0x0*1000000')
        self.assertEqual(self.conversions(sim), [])

    def test_an_access_fault_where_nothing_is(self):
        for where in f'{HALF:#x}', '0xfec00000', '0xffffffffffff0000':
            self.stops(f'fault {where} 0x1000 private times=forever', where)

    def test_an_access_fault_with_unknown_flags(self):
        for flags in 1, 1 << 63:
            self.stops(f'fault 0x1000000 0x1000 shared flags={flags:#x} '
                       'times=forever', f'Unknown flag {flags:#x}')

    def test_an_access_fault_at_no_page(self):
        for where in '0x1000800 0x1000', '0x1000000 0x123', '0x1000000 0', \
                     '0xfffffffffffff000 0x2000':
            for state in self.STATES:
                sim = self.stops(f'fault {where} {state} times=forever',
                                 where.split()[0])
                self.assertEqual(self.conversions(sim), [])

    def test_an_access_fault_in_poisoned_memory(self):
        for state in self.STATES:
            sim = self.stops(f'fault 0x1000000 0x1000 {state} times=forever '
                             'errno=EHWPOISON', 'hardware error')
            self.assertEqual(self.conversions(sim), [])

    def test_an_emulated_access_to_private_memory(self):
        private = self.changes(0x1000000, 1, 'private') \
            if self.STATES[0] == 'shared' else ''
        for line in ('mmio-read 0x1000010 4', 'mmio-write 0x1000ffc 4 1',
                     'mmio-read 0x1000ff8 8', 'mmio-write 0x1000000 1 1'):
            self.stops(private + line, '0x0*' + line.split()[1][2:])

    def test_an_emulated_access_to_shared_memory(self):
        shared = self.changes(0x1000000, 1, 'shared') \
            if self.STATES[0] == 'private' else ''
        self.run_guest(shared + '''
            mmio-write 0x1000010 4 0x12345678
            read 0x1000010 4 expect=0x12345678
            mmio-read 0x1000010 4 expect=0x12345678''')

    def test_no_memory_for_a_moment(self):
        self.run_guest('run-error EFAULT times=5\nprint goes-on')

    def test_no_memory_for_ever(self):
        self.stops('run-error EFAULT times=forever', '(?i)bad address|EFAULT')

    def test_any_other_error(self):
        self.stops('run-error EIO times=forever', 'Input/output error')


class Encrypted(Requests, Exits):
    """Platforms on which an access asks for a state of the page."""

    def test_an_access_fault_converts(self):
        sim = self.run_guest('''
            fault 0x1000000 0x1000 shared
            state 0xfff000 1 private
            state 0x1000000 1 shared
            state 0x1001000 1 private
            fault 0x1000000 0x1000 private
            state 0x1000000 1 private
            fault 0x1000000 0x3000 shared
            state 0x1000000 3 shared''')
        self.assertEqual([c[:3] for c in self.conversions(sim)], [
            (0x1000000, PAGE, 0), (0x1000000, PAGE, 8),
            (0x1000000, 3 * PAGE, 0)])

    def test_an_access_fault_at_a_page_that_is_held(self):
        sim = self.run_guest('''
            fault 0x1000000 0x1000 shared
            pin 0x1000000 1 times=5
            fault 0x1000000 0x1000 private
            state 0x1000000 1 private''')
        self.assertEqual([c[3] for c in self.conversions(sim)].count(
            -errno.EAGAIN), 5)

    def test_an_access_fault_when_the_kernel_lacks_memory(self):
        sim = self.run_guest('''
            fault 0x1000000 0x1000 shared
            state 0x1000000 1 shared''', self.plan('ENOMEM', times=3))
        self.assertEqual([c[3] for c in self.conversions(sim)],
                         [-errno.ENOMEM] * 3 + [0])

    def test_an_access_fault_that_cannot_be_served(self):
        self.stops('fault 0x1000000 0x1000 shared', '0x0*1000000',
                   self.plan('EIO', times='forever'))


class Snp(Encrypted, SimTest):
    """SEV-SNP: a guest gives up after a refusal, so QEMU tries for long."""

    CONFIDENTIAL = snp()
    HELD = 0
    INTERRUPTED = 100, 0


class Tdx(Encrypted, SimTest):
    """TDX: a guest asks again."""

    CONFIDENTIAL = 'tdx-guest'
    HELD = 'EAGAIN'
    MACHINE = LAYOUT + ',kernel-irqchip=split'
    ARGS = '-cpu', 'host'

    @classmethod
    def setUpClass(cls):
        if lacks_tdx():
            raise unittest.SkipTest(lacks_tdx())
        super().setUpClass()


class SwProtected(Requests, Exits, SimTest):
    """Software-protected: the guest takes a page to be what it is."""

    CONFIDENTIAL = 'sw-protected-guest'
    STATES = 'shared', 'private'
    CONFIG = 'vm-types default sw-protected'
    HELD = 'EAGAIN'

    def test_an_access_fault_converts_nothing(self):
        sim = self.run_guest('''
            fault 0x1000000 0x1000 private times=3
            state 0x1000000 1 shared
            map-gpa 0x1000000 1 private
            fault 0x1000000 0x1000 shared times=3
            state 0x1000000 1 private''')
        self.assertEqual(len(self.conversions(sim)), 1)

    def test_rom(self):
        sim = self.run_guest('\n'.join(
            f'map-gpa {where} shared ret=0\n'
            f'map-gpa {where} private ret=EINVAL'
            for where in ('0xffff0000 16', '0xf0000 16', '0xc0000 32')))
        self.assertEqual(self.conversions(sim), [])

    def test_a_range_with_rom_in_it(self):
        sim = self.run_guest('''
            map-gpa 0xb0000 0x100 private ret=EINVAL
            state 0 0x200 shared
            map-gpa 0xe0000 8 private
            map-gpa 0xe0000 32 private ret=EINVAL
            state 0xe0000 8 private
            state 0xe8000 8 shared
            map-gpa 0xb0000 0x100 shared ret=0
            state 0 0x200 shared''')
        self.assertEqual([c[:3] for c in self.conversions(sim)], [
            (0xe0000, 8 * PAGE, 8), (0xe0000, 8 * PAGE, 0)])


del Guests, Requests, Exits, Encrypted
