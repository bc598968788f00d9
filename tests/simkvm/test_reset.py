# SPDX-License-Identifier: GPL-2.0-or-later
"""Resets.

A confidential guest gets a new VM.  Its RAM, if that is a guest_memfd, becomes
another file at the same address, and the guest is launched as at first.
"""
from concurrent.futures import ThreadPoolExecutor
from collections import Counter
import errno
import os
import re
import shutil
import struct

from gmemlab import measure
from gmemlab.machine import GUEST_MEMFD, wait_for
from gmemlab.simkvm import lacks_tdx, snp
from qemu.qmp import ExecuteError
from simtest import SimTest
from test_hostile import Hostile
from test_in_place_faults import ERRNOS, THREADS
from test_launch import SnpLaunchTest, TdxLaunchTest
from test_launch_ranges import with_table

CONVERT = 'KVM_SET_MEMORY_ATTRIBUTES2'
# Lines that reset a guest, and that end it: a shutdown resets it.
BY_PORT = 'out 0xcf9 1 6'
BY_KEYBOARD = 'out 0x64 1 0xfe'
BY_TRIPLE_FAULT = 'shutdown'
END = 'out 0xf4 4 1'
ENDED = 3
ARGS = ('-action', 'reboot=reset',
        '-device', 'isa-debug-exit,iobase=0xf4,iosize=4')
# Calls for a guest's memory and launch that a fault plan can name
OURS = ('KVM_CREATE_VM', 'KVM_CREATE_GUEST_MEMFD', CONVERT, 'fallocate',
        'KVM_SET_USER_MEMORY_REGION', 'mmap')
ERROR = re.compile(r'^qemu-system-x86_64: (?!info:|warning:)(.*)', re.M)
# QEMU's message after the reason for a failed reset
FOLLOWS = re.compile('.*(unable to rebuild guest|'
                     'failed to create encryption context|SEV-SNP: failed)')
SECRET = 0x5ec2e75ec2e75ec2


def word(value):
    """The bytes that a guest writes for a value."""
    return value.to_bytes(8, 'little')


class Machines:
    """Machines for the tests of all platforms.

    GENERATION: of the kernel
    CONFIG: more lines for the model
    """

    GENERATION = 'g2'
    CONFIG = ''

    def machine_args(self, args=(), **kwargs):
        """Arguments of SimTest.machine()."""
        return self.guest(**{'size': '32M', 'args': [*ARGS, *args],
                             **kwargs})

    def config(self, script, plan=''):
        """Configuration of a guest with that script."""
        if 'vcpu all' not in script:
            script = 'vcpu all\nhalt\n' + script
        return (f'generation {self.GENERATION}\n{self.CONFIG}\n{plan}\n'
                f'{script}\n')

    def run_guest(self, script, plan='', **kwargs):
        """Run a guest that resets itself, until it ends."""
        sim = self.play(self.config(script + '\n' + END, plan),
                        status=ENDED, **self.machine_args(**kwargs))
        self.assertIsNone(sim.report['violation'])
        self.assertEqual(sim.report['host-touches'], 0)
        return sim

    def run_resets(self, script, resets, **kwargs):
        """The same; so many new VMs are made."""
        sim = self.run_guest(script, **kwargs)
        self.assertEqual(sim.report['vms'], self.vms() + resets)
        return sim

    def vms(self):
        """Number of VMs that a guest without a reset needs."""
        cls = type(self)
        if 'VMS' not in vars(cls):
            cls.VMS = self.run_guest('vcpu 0').report['vms']
        return cls.VMS

    def begin(self, script, plan='', args=(), **kwargs):
        """A machine that is driven by QMP, and does not run yet."""
        sim = self.machine(self.config(script, plan),
                           **self.machine_args(args=['-S', *args], **kwargs))
        sim.launch()
        self.addCleanup(self.quit, sim)
        return sim

    def wait_said(self, sim, text, times=1):
        """Wait until the guest has printed that so often."""
        def is_said():
            self.assertTrue(sim.is_running(), sim.get_log())
            sim.assert_runs()
            return sim.output().count(text) >= times
        wait_for(f'the guest to say {text}', is_said, sim)

    def reset(self, sim):
        """Reset by QMP; returns when that is done."""
        sim.cmd('system_reset')
        self.assertTrue(sim.event_wait('RESET'), sim.state())

    def files(self, sim):
        """The guest_memfds that the emulator has open or mapped: the paths
        of their descriptors, by inode.
        """
        directory = f'/proc/{sim.get_pid()}/fd'
        found = {}
        for fd in os.listdir(directory):
            path = os.path.join(directory, fd)
            try:
                if 'simkvm-guest_memfd' in os.readlink(path):
                    found[os.stat(path).st_ino] = path
            except FileNotFoundError:
                pass
        return found

    def resources(self, sim):
        """Resources that must not grow: descriptors by kind, mappings, and
        bytes of guest_memfd.
        """
        directory = f'/proc/{sim.get_pid()}/fd'
        names = Counter(re.sub(r'\d+', 'N', os.readlink(f'{directory}/{fd}'))
                        for fd in os.listdir(directory))
        maps = Counter(re.sub(r'\d+', 'N', line[5]) for line in sim.maps()
                       if len(line) > 5 and 'simkvm' in line[5])
        allocated = sum(os.stat(path).st_blocks * 512
                        for path in self.files(sim).values())
        return names, maps, allocated

    def check_same(self, seen):
        """All results of resources() in @seen are the same."""
        (names, maps, allocated), (names_now, maps_now, allocated_now) = \
            seen[0], seen[-1]
        self.assertEqual((names_now - names, maps_now - maps), ({}, {}))
        self.assertEqual(allocated_now, allocated)
        self.assertEqual(seen, seen[:1] * len(seen))

    def dump(self, sim):
        """The RAM that guests of these tests use, as the monitor reads it."""
        path = os.path.join(self.dir, 'dump')
        sim.cmd('pmemsave', val=0x1000000, size=0x900000, filename=path)
        with open(path, 'rb') as f:
            return f.read()


class Resets(Machines):
    """Guests that get a new VM."""

    # Contents that a reset must drop, in shared and private memory
    USE = '''
        map-gpa 0x1000000 16 shared
        fill 0x1000000 16 1
        fill 0x1100000 64 2
        map-gpa 0x1200000 4 shared
        map-gpa 0x1200000 4 private
    '''
    # RAM is as a launch leaves it.
    NEW = 'state 0x100000 0x1f00 private'

    def loop(self, times, how):
        """Lines of a guest that uses memory and resets itself so often."""
        return f'''
            vcpu 0
            repeat {times}
            {self.NEW}
            {self.USE}
            {how}
            end
            {self.NEW}
            {self.USE}'''

    def check_launches(self, sim, resets):
        """There were so many launches, with the same digest."""
        with open(self.image, 'rb') as f:
            digest = self.LAUNCH(f.read()).digest().hex()
        launches = sim.report['launches']
        self.assertEqual(len(launches), 1 + resets)
        self.assertEqual(launches, [launches[0]] * len(launches))
        self.assertTrue(launches[0]['finished'])
        self.assertEqual(launches[0]['digest'], digest)
        # Nothing is left of earlier VMs.
        self.assertEqual(sim.report['vms-alive'], 1)

    def test_the_digest_is_the_same_after_1_2_and_100_resets(self):
        alive = []
        for resets in 0, 1, 2, 100:
            with self.subTest(resets=resets):
                sim = self.run_resets(self.loop(resets, BY_PORT), resets) \
                    if resets else self.run_resets(f'vcpu 0\n{self.USE}', 0)
                self.check_launches(sim, resets)
                alive.append([sim.report[name] for name in (
                    'vcpus-alive', 'guest-memfds-alive')] +
                    [sim.report['peak']['guest-memfd']])
        self.assertEqual(alive, [alive[0]] * len(alive))

    def test_the_guest_resets_itself_in_any_way(self):
        for how in BY_KEYBOARD, BY_TRIPLE_FAULT:
            with self.subTest(how=how):
                self.check_launches(
                    self.run_resets(self.loop(2, how), 2), 2)

    def test_1_to_8_vcpus(self):
        for cpus in range(1, 9):
            with self.subTest(cpus=cpus):
                sim = self.run_resets(f'''
                    vcpu all
                    repeat 3
                    barrier
                    end
                    halt
                    vcpu {cpus - 1}
                    repeat 3
                    barrier
                    {self.USE}
                    {BY_TRIPLE_FAULT}
                    {self.NEW}
                    end''', 3, cpus=cpus)
                self.check_launches(sim, 3)
                self.assertEqual(sim.report['vcpus-alive'], cpus)

    # Prints "u" when memory was used; goes on in a new VM.
    USED = '''
        vcpu 0
        repeat 1000
        {0.NEW}
        print n
        {0.USE}
        print u
        new-vm
        end'''

    def test_nothing_grows(self):
        sim = self.begin(self.USED.format(self))
        sim.cmd('cont')
        seen = []
        for n in range(1, 12):
            self.wait_said(sim, 'u', n)
            seen.append(self.resources(sim))
            self.reset(sim)
        # The monitor and the first reset may open files that stay open.
        self.assertEqual(seen[0][1:], seen[1][1:])
        self.check_same(seen[1:])

    def test_answers_to_queries_begin_anew(self):
        if self.GENERATION == 'g0':
            self.skipTest('there are no blocks in place')
        sim = self.begin(f'''
            vcpu 0
            repeat 1000
            print n
            new-vm
            {self.USE}
            print u
            new-vm
            end''')

        def answers():
            info = sim.cmd('query-guest-memfd')
            for block in info['blocks']:
                # Each file has its own.
                del block['inode']
                # Slots come and go while a machine is put together, so their
                # numbers differ, too.
                bound[block['id']] = \
                    block['counters'].pop('bound'), len(block['slots'])
                for slot in block['slots']:
                    del slot['slot']
            return info, sim.cmd('query-launch-measurement')

        bound = {}
        sim.cmd('cont')
        self.wait_said(sim, 'n')
        first = answers()
        inodes = {b['id']: b['inode'] for b in
                  sim.cmd('query-guest-memfd')['blocks']}
        for n in 1, 2:
            self.reset(sim)
            self.wait_said(sim, 'u', n)
            self.assertNotEqual(answers()[0]['blocks'], first[0]['blocks'])
            self.reset(sim)
            self.wait_said(sim, 'n', n + 1)
            self.assertEqual(answers(), first)
            for name, (counted, slots) in bound.items():
                self.assertEqual(counted, slots, name)
            for block in sim.cmd('query-guest-memfd')['blocks']:
                self.assertNotEqual(block['inode'], inodes[block['id']])

    # A word in shared memory, and the same in private memory.
    SECRETS = f'''
        vcpu 0
        map-gpa 0x1000000 16 shared
        write 0x1000008 8 {SECRET}
        write 0x1008008 8 {SECRET}
        write 0x1800008 8 {SECRET}
        print u
        new-vm
        {{0.NEW}}
        read 0x1800008 8
        print n'''

    def check_secret_is_gone(self, sim):
        """No guest_memfd and no monitor has it any more."""
        self.assertNotIn(word(SECRET), self.dump(sim))
        files = self.files(sim)
        self.assertTrue(files)
        for path in files.values():
            with open(path, 'rb') as f:
                self.assertNotIn(word(SECRET), f.read())

    def test_nothing_of_the_old_memory_is_left(self):
        for stop in False, True:
            with self.subTest(stop=stop):
                sim = self.begin(self.SECRETS.format(self))
                sim.cmd('cont')
                self.wait_said(sim, 'u')
                self.assertEqual(self.dump(sim).count(word(SECRET)), 2)
                if stop:
                    sim.cmd('stop')
                self.reset(sim)
                self.check_secret_is_gone(sim)
                if stop:
                    sim.cmd('cont')
                self.wait_said(sim, 'n')
                self.check_secret_is_gone(sim)
                self.quit(sim)
                self.assertEqual(sim.report['host-touches'], 0)

    def test_a_guest_that_is_stopped_is_reset(self):
        sim = self.begin(self.USED.format(self))
        sim.cmd('cont')
        for n in 1, 2:
            self.wait_said(sim, 'u', n)
            sim.cmd('stop')
            for _ in range(n):
                self.reset(sim)
            self.assertNotEqual(sim.cmd('query-status')['status'], 'running')
            self.assertEqual(sim.output().count('n'), n)
            sim.cmd('cont')
        self.wait_said(sim, 'u', 3)
        self.quit(sim)
        self.assertEqual(sim.report['vms'], self.vms() + 3)
        finished = [launch for launch in sim.report['launches']
                    if launch['finished']]
        self.assertGreaterEqual(len(finished), 3)
        self.assertEqual(finished, [finished[0]] * len(finished))

    def test_a_guest_that_has_panicked_is_reset(self):
        sim = self.begin('''
            vcpu 0
            repeat 1000
            {0.NEW}
            {0.USE}
            out 0x505 1 1
            new-vm
            print n
            end'''.format(self), args=['-device', 'pvpanic', '-action',
                                       'panic=pause'])
        sim.cmd('cont')
        for n in 1, 2:
            wait_for('the panic', lambda: sim.cmd('query-status')['status'] ==
                     'guest-panicked', sim)
            self.reset(sim)
            sim.cmd('cont')
            wait_for('the guest', lambda n=n: sim.output().count('n') == n,
                     sim)
        wait_for('the panic', lambda: sim.cmd('query-status')['status'] ==
                 'guest-panicked', sim)
        self.quit(sim)
        self.check_launches(sim, 2)

    def test_vcpus_convert_meanwhile(self):
        sim = self.run_resets(f'''
            vcpu all
            random 5 100000000 0x1000000 256
            vcpu 0
            repeat 20
            random 6 30 0x1000000 256
            {BY_PORT}
            end
            map-gpa 0x800000 256 shared
            state 0x800000 256 shared''', 20, cpus=4)
        self.check_launches(sim, 20)

    def test_qmp_resets_it_while_vcpus_convert(self):
        sim = self.begin('''
            vcpu all
            repeat 1000000
            random 5 20 0x1000000 256
            print r
            end''', cpus=3)
        sim.cmd('cont')
        for _ in range(10):
            self.wait_said(sim, 'r', sim.output().count('r') + 5)
            self.reset(sim)
        self.wait_said(sim, 'r', sim.output().count('r') + 5)
        self.quit(sim)
        self.check_launches(sim, 10)

    def test_somebody_holds_a_page(self):
        """The request for it ends with its VM; the new file is free."""
        sim = self.begin('''
            vcpu 1
            map-gpa 0x1000000 16 shared
            fill 0x1000000 16 1
            pin 0x1005000 1 times=forever
            barrier
            map-gpa 0x1000000 16 private ret=any
            halt
            vcpu 0
            barrier
            new-vm
            {0.NEW}
            map-gpa 0x1000000 16 shared
            fill 0x1000000 16 2
            map-gpa 0x1000000 16 private ret=0
            state 0x1000000 16 private
            print u'''.format(self), cpus=2)
        sim.cmd('cont')
        wait_for('the page to be found busy', lambda: -errno.EAGAIN in
                 {call['ret'] for call in sim.model.log(CONVERT)}, sim)
        self.reset(sim)
        self.wait_said(sim, 'u')
        if self.GENERATION == 'g2':
            self.assertEqual(sum(
                b['counters']['busy'] for b in
                sim.cmd('query-guest-memfd')['blocks']), 0)
        self.quit(sim)
        self.check_launches(sim, 1)

    def test_a_device_that_maps_shared_memory_is_notified(self):
        sim = self.begin(self.USED.format(self), args=[
            '-device', 'guest-memfd-testdev,id=listener'])

        def ask(name):
            return sim.cmd('qom-get', path='/machine/peripheral/listener',
                           property=name)

        def check(mapped):
            self.assertEqual((ask('check'), ask('errors'),
                              ask('mapped-pages')), ('', 0, mapped),
                             sim.get_log())

        check(ask('mapped-pages'))
        sim.cmd('cont')
        for n in 1, 2, 3:
            self.wait_said(sim, 'u', n)
            check(16)
            sim.cmd('stop')
            self.reset(sim)
            check(ask('mapped-pages'))
            sim.cmd('cont')

    def test_memory_keeps_its_properties(self):
        """NUMA policy, preallocation, several blocks."""
        blocks = []
        for node in 'low', 'high':
            blocks += ['-object', f'memory-backend-guest-memfd,id={node},'
                       'size=16M,prealloc=on,dump=off,host-nodes=0,'
                       'policy=bind', '-numa', f'node,memdev={node}']
        if self.GENERATION == 'g0':
            blocks = [arg.replace('guest-memfd', 'ram') for arg in blocks]
        sim = self.begin(self.USED.format(self), args=blocks)

        def properties():
            policies = Counter()
            with open(f'/proc/{sim.get_pid()}/numa_maps',
                      encoding='utf-8') as f:
                for line in f:
                    if 'simkvm-guest_memfd' in line:
                        policies[line.split()[1]] += 1
            flags = Counter()
            with open(f'/proc/{sim.get_pid()}/smaps', encoding='utf-8') as f:
                ours = False
                for line in f:
                    if re.match('[0-9a-f]+-', line):
                        ours = 'simkvm-guest_memfd' in line
                    elif ours and line.startswith('VmFlags'):
                        flags[' '.join(line.split()[1:])] += 1
            return policies, flags, self.resources(sim)[1:]

        sim.cmd('cont')
        self.wait_said(sim, 'u')
        first = properties()
        self.reset(sim)
        self.wait_said(sim, 'u', 2)
        self.assertEqual(properties(), first)


class InPlace(Resets):
    """In place only: failures on the way.

    PAGES: the name under which a fault plan knows a page of a command
    """

    PAGES = None
    FAULTS = '''
        vcpu 0
        print u
        new-vm
        {0.NEW}
        print n'''

    def counted(self, sim, first_vm):
        """Faults that a plan can name after that VM's creation."""
        log = sim.model.log()
        at = [n for n, call in enumerate(log)
              if call['call'] == 'KVM_CREATE_VM'][first_vm - 1]
        names = Counter(re.sub('REGION2$', 'REGION', call['call'])
                        for call in log[at + 1:])
        plan = [(name, n) for name in (*OURS[1:], *self.COMMANDS)
                for n in range(1, names[name] + 1)]
        # The first and last of a command's pages, and one in between
        pages = sum(call['pages'] for call in log[at + 1:]
                    if call['call'] == self.COMMANDS[-2])
        return plan + [(self.PAGES, n)
                       for n in sorted({1, pages // 2, pages})]

    def outcome(self, plan, digest):
        """Reset with these lines of a plan.  Returns what is wrong, or None."""
        sim = self.machine(self.config(self.FAULTS.format(self), plan),
                           **self.machine_args(args=['-S']))
        sim.launch()
        try:
            sim.cmd('cont')
            self.wait_said(sim, 'u')
            sim.cmd('system_reset')

            def over():
                return 'n' in sim.output() or \
                    sim.cmd('query-status')['status'] == 'internal-error'
            wait_for('the reset', over, sim)
            status = sim.cmd('query-status')['status']
            sim.cmd('query-guest-memfd')
            sim.shutdown()
        except Exception as err:        # pylint: disable=broad-except
            sim.shutdown(hard=True)
            return f'{plan}: {type(err).__name__}: {err}; status ' \
                f'{sim.exitcode()}; {sim.get_log()}'
        report = sim.model.report()
        errors = [e for e in ERROR.findall(sim.get_log())
                  if not FOLLOWS.match(e)]
        said_n = 'n' in sim.output()
        if report['violation'] or sim.exitcode() or \
                not report['faults-injected']:
            return f'{plan}: {report["violation"]}, status ' \
                f'{sim.exitcode()}, {report["faults-injected"]} faults'
        if status == 'running':
            if errors or not said_n or report['launch']['digest'] != digest:
                return f'{plan}: it runs, but: {errors}'
        elif len(errors) != 1 or said_n:
            return f'{plan}: {len(errors)} errors: {errors}, {said_n}'
        return None

    def test_a_reset_that_fails_leaves_the_guest_stopped(self):
        """Every call for memory, slots or launch fails, with every error."""
        vms = self.vms()
        clean = self.begin(self.FAULTS.format(self))
        clean.cmd('cont')
        self.wait_said(clean, 'u')
        self.reset(clean)
        self.wait_said(clean, 'n')
        self.quit(clean)
        plans = [f'fault KVM_CREATE_VM errno={error} at={vms + 1}'
                 for error in ERRNOS]
        for call, at in self.counted(clean, vms + 1):
            plans += [f'fault {call} errno={error} vm={vms + 1} at={at}'
                      for error in ERRNOS]
        self.assertGreater(len(plans), 80)
        digest = clean.report['launch']['digest']
        with ThreadPoolExecutor(THREADS) as pool:
            wrong = [o for o in pool.map(
                lambda plan: self.outcome(plan, digest), plans) if o]
        self.assertEqual(wrong, [], f'{len(wrong)} of {len(plans)}:\n' +
                         '\n'.join(wrong))

    def test_a_call_that_qemu_makes_for_any_vm_fails(self):
        """It runs all the same, or stops with QEMU's one error."""
        vms = self.vms()
        digest = self.run_guest('vcpu 0').report['launch']['digest']
        for call in ('KVM_SET_CPUID2', 'KVM_SET_TSS_ADDR',
                     'KVM_SET_IDENTITY_MAP_ADDR'):
            for error in 'ENOMEM', 'EINVAL':
                plan = f'fault {call} errno={error} vm={vms + 1}'
                with self.subTest(plan=plan):
                    # No reason of ours, just QEMU's message after it
                    self.assertIn(self.outcome(plan, digest),
                                  (None, f'{plan}: 0 errors: [], False'))

    @staticmethod
    def errors(sim):
        """Reasons for which resets have failed so far."""
        sim.state()
        return [error for error in ERROR.findall(sim.get_log())
                if not FOLLOWS.match(error)]

    def fail_to_reset(self, sim, times=1):
        """A reset that fails, after @times - 1 others.  The guest does not
        run on.
        """
        sim.cmd('system_reset')
        wait_for('the reset to fail',
                 lambda: len(self.errors(sim)) >= times, sim)
        self.assertEqual(sim.cmd('query-status')['status'], 'internal-error')
        with self.assertRaisesRegex(ExecuteError, 'Resetting the Virtual '
                                    'Machine is required'):
            sim.cmd('cont')

    def test_a_guest_that_was_not_reset_can_be_reset_again(self):
        vms = self.vms()
        clean = self.run_guest('vcpu 0').report['launch']['digest']
        for plan in (f'KVM_CREATE_VM errno=ENOMEM at={vms + 1}',
                     f'KVM_CREATE_GUEST_MEMFD errno=ENOMEM vm={vms + 1} at=2',
                     f'{CONVERT} errno=EIO vm={vms + 1} at=2',
                     f'{self.COMMANDS[-1]} errno=EIO vm={vms + 1} at=1'):
            with self.subTest(plan=plan):
                sim = self.begin(self.FAULTS.format(self), 'fault ' + plan)
                sim.cmd('cont')
                self.wait_said(sim, 'u')
                self.fail_to_reset(sim)
                self.reset(sim)
                sim.cmd('cont')
                self.wait_said(sim, 'n')
                self.quit(sim)
                self.assertEqual(sim.report['launch']['digest'], clean)
                self.assertIsNone(sim.report['violation'])

    def test_firmware_of_another_size_is_not_loaded(self):
        path = os.path.join(self.dir, 'firmware')
        shutil.copy(self.image, path)
        sim = self.begin(self.FAULTS.format(self), path=path)
        sim.cmd('cont')
        self.wait_said(sim, 'u')
        with open(path, 'ab') as f:
            f.write(bytes(0x10000))
        self.fail_to_reset(sim)
        os.unlink(path)
        self.fail_to_reset(sim, 2)
        shutil.copy(self.image, path)
        self.reset(sim)
        sim.cmd('cont')
        self.wait_said(sim, 'n')
        log = sim.get_log()
        self.assertIn('has 0x20000 bytes now, and had 0x10000', log)
        self.assertIn(f"'{path}' cannot be read any more", log)

    def test_firmware_with_other_tables(self):
        path = os.path.join(self.dir, 'firmware')
        shutil.copy(self.image, path)
        with open(path, 'rb') as f:
            first = f.read()
        # The tables are elsewhere; what stood there before stays.
        other = with_table(first, *self.TABLE)
        sim = self.begin(self.FAULTS.format(self), path=path, cpus=2)
        sim.cmd('cont')
        self.wait_said(sim, 'u')
        with open(path, 'wb') as f:
            f.write(other.replace(self.TABLE[0], b'gone'))
        self.fail_to_reset(sim)
        self.assertRegex(sim.get_log(), f"cannot be reset.*firmware '{path}': "
                         'at offset .* there is no')
        os.unlink(path)
        os.mkfifo(path)
        self.fail_to_reset(sim, 2)
        os.unlink(path)
        with open(path, 'wb') as f:
            f.write(other)
        self.reset(sim)
        sim.cmd('cont')
        self.wait_said(sim, 'n')
        answer = sim.cmd('query-launch-measurement')
        self.assertIsNone(measure.first_difference(self.wanted(other), answer))
        self.assertIsNotNone(measure.first_difference(self.wanted(first),
                                                      answer))


class Snp(InPlace, SnpLaunchTest):
    """SEV-SNP."""

    PAGES = 'SNP_LAUNCH_UPDATE_PAGE'
    TABLE = (b'ASEV', '<3I', [(0x7000, 4096, 2), (0x8000, 4096, 3)])

    @staticmethod
    def wanted(image):
        """Its launch, with two vCPUs."""
        return measure.SnpLaunch(image, vcpus=measure.Vcpus(
            2, measure.cpu_signature('qemu64')))

    def test_firmware_where_vcpus_start_elsewhere(self):
        path = os.path.join(self.dir, 'firmware')
        with open(self.image, 'rb') as f:
            first = f.read()
        at = first.index(measure.SEV_ES_RESET_BLOCK.bytes_le) - 6
        other = first[:at] + struct.pack('<I', 0xfffff123) + first[at + 4:]
        shutil.copy(self.image, path)
        sim = self.begin(self.FAULTS.format(self), path=path, cpus=2)
        sim.cmd('cont')
        self.wait_said(sim, 'u')
        with open(path, 'wb') as f:
            f.write(other)
        self.reset(sim)
        sim.cmd('cont')
        self.wait_said(sim, 'n')
        self.assertIsNone(measure.first_difference(
            self.wanted(other), sim.cmd('query-launch-measurement')))


class Tdx(InPlace, TdxLaunchTest):
    """TDX."""

    PAGES = 'TDX_INIT_MEM_REGION_PAGE'
    TABLE = (b'TDVF', '<2I2Q2I',
             [(0, 0x10000, 0xffff0000, 0x10000, 0, 1),
              (0, 0, 0x4000, 4096, 2, 0), (0, 0, 0x6000, 4096, 3, 0)])

    @staticmethod
    def wanted(image):
        """Its launch."""
        return measure.TdxLaunch(image)


class HostileGuests(Hostile):
    """Resets while hostile guests ask for conversions."""

    def compare(self, sim, digest, to_private, to_shared):
        """QEMU counts for each VM, the model for all."""
        listener = '/machine/peripheral/listener'
        for name, value in ('digest', digest), ('check', ''), ('errors', 0):
            self.assertEqual(sim.cmd('qom-get', path=listener, property=name),
                             value)

    def check(self, guest):
        """Every second batch ends with a reset."""
        batches = 0

        def batch(done):
            nonlocal batches
            batches += 1
            if done < self.CONVERSIONS:
                if batches % 2:
                    sim = self.sim
                    sim.cmd('system_reset')
                    self.assertTrue(sim.event_wait('RESET'))
            else:
                # The next shutdown ends the emulator.
                self.sim.cmd('set-action', reboot='shutdown')

        guest['args'] = ['-action', 'reboot=reset', *guest.get('args', ())]
        sim = self.attack(guest, self.CONVERSIONS, requests=100, batch=batch)
        self.assertGreater(len(sim.report['launches']), 5)
        self.assertEqual(sim.report['launches'],
                         [sim.report['launch']] * len(sim.report['launches']))

    CONVERSIONS = 6000

    def machine(self, *args, **kwargs):
        self.sim = super().machine(*args, **kwargs)
        return self.sim

    def test_snp(self):
        self.check({'confidential': snp()})

    def test_tdx(self):
        if lacks_tdx():
            self.skipTest(lacks_tdx())
        self.check({'confidential': 'tdx-guest', 'args': ['-cpu', 'host'],
                    'machine': 'q35,max-ram-below-4g=128M,'
                               'kernel-irqchip=split'})


class Ordinary(Machines, SimTest):
    """Guests without private memory, with x-change-vmfd-on-reset=on."""

    CHANGE = 'q35,x-change-vmfd-on-reset=on'

    def guest(self, backend=GUEST_MEMFD, machine=CHANGE, args=(), **kwargs):
        """The arguments of SimTest.machine() for a guest."""
        return {'backend': backend, 'machine': machine, **kwargs,
                'args': [*args, '-bios', self.image]}

    SCRIPT = '''
        vcpu 0
        repeat {0}
        fill 0x1000000 64 1
        write 0x1800000 8 0x1234
        {1}
        check 0x1000000 64 1
        read 0x1800000 8 expect=0x1234
        end'''

    def test_memory_is_kept_as_with_any_backend(self):
        for generation in 'g1', 'g2':
            for backend in 'memory-backend-ram', GUEST_MEMFD:
                with self.subTest(generation=generation, backend=backend):
                    self.GENERATION = generation
                    self.run_resets(self.SCRIPT.format(10, BY_PORT), 10,
                                    backend=backend)

    def test_1_to_8_vcpus(self):
        for cpus in range(1, 9):
            with self.subTest(cpus=cpus):
                self.run_resets(f'''
                    vcpu all
                    repeat 3
                    barrier
                    end
                    halt
                    vcpu {cpus - 1}
                    repeat 3
                    barrier
                    {BY_TRIPLE_FAULT}
                    end''', 3, cpus=cpus)

    def test_without_the_property_the_vm_stays(self):
        self.run_resets(self.SCRIPT.format(10, BY_PORT), 0, machine='q35')

    def test_nothing_grows(self):
        sim = self.begin('''
            vcpu 0
            repeat 1000
            fill 0x1000000 64 1
            print u
            new-vm
            check 0x1000000 64 1
            end''')
        sim.cmd('cont')
        seen = []
        for n in range(1, 8):
            self.wait_said(sim, 'u', n)
            seen.append(self.resources(sim))
            self.reset(sim)
        self.check_same(seen[1:])

    def test_dirty_pages_are_measured_after_a_reset(self):
        sim = self.begin('vcpu 0\nprint u\nnew-vm\nprint n')
        sim.cmd('cont')
        self.wait_said(sim, 'u')
        self.reset(sim)
        self.wait_said(sim, 'n')
        sim.measure_dirty_rate()

    def test_migration_to_a_file_after_a_reset(self):
        sim = self.begin('''
            vcpu 0
            fill 0x1000000 64 1
            print u
            new-vm
            check 0x1000000 64 1
            fill 0x1100000 64 2
            print n''')
        sim.cmd('cont')
        self.wait_said(sim, 'u')
        self.reset(sim)
        self.wait_said(sim, 'n')
        sim.cmd('stop')
        before = self.dump(sim)
        path = os.path.join(self.dir, 'state')
        sim.migrate_to('file:' + path)
        self.quit(sim)
        new = self.begin('vcpu 0\nhalt', args=['-incoming', 'file:' + path])
        wait_for('the migration', lambda: new.cmd('query-migrate').get(
            'status') == 'completed', new)
        self.assertEqual(self.dump(new), before)


class SoftwareProtected(Machines, SimTest):
    """Software-protected guests keep their VM, but with that property."""

    CONFIG = 'vm-types default sw-protected'

    def guest(self, machine='q35', backend=None, args=(), properties='',
              **kwargs):
        """The arguments of SimTest.machine() for a guest."""
        return {'backend': backend, 'machine': machine,
                'confidential': 'sw-protected-guest' + properties, **kwargs,
                'args': [*args, '-bios', self.image]}

    def script(self, times, state):
        """A guest that uses both kinds of memory before a reset."""
        other = {'shared': 'private', 'private': 'shared'}[state]
        return f'''
            vcpu 0
            repeat {times}
            state 0x100000 0x1f00 {state}
            map-gpa 0x1000000 16 {other}
            fill 0x1000000 16 1
            {BY_PORT}
            end
            state 0x100000 0x1f00 {state}'''

    def test_the_vm_stays(self):
        for state in 'shared', 'private':
            with self.subTest(state=state):
                self.run_resets(self.script(10, state), 0,
                                properties=',initial-state=' + state)

    def test_a_new_vm(self):
        for state in 'shared', 'private':
            with self.subTest(state=state):
                sim = self.run_resets(
                    self.script(10, state), 10,
                    machine='q35,x-change-vmfd-on-reset=on',
                    properties=',initial-state=' + state)
                self.assertEqual(sim.report['vms-alive'], 1)


del Machines, Resets, InPlace, Hostile
