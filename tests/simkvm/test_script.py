# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator on the model in scripted mode, and the model's own promises."""
import errno
import os
import signal

from gmemlab.machine import GUEST_MEMFD, wait_for
from simtest import NOT_MODELLED, VIOLATION, SimTest

MACHINES = 'q35', 'pc', 'microvm'


class Start(SimTest):
    """The unmodified emulator starts, runs and quits without /dev/kvm."""

    def check(self, machine, cpus, config='', **kwargs):
        """Every vCPU runs, and prints that."""
        sim = self.start(f'{config}\nvcpu all\nprint x', machine=machine,
                         cpus=cpus, **kwargs)
        wait_for('all vCPUs', lambda: sim.output().count('x\n') == cpus or
                 sim.output().count('\n') == cpus, sim)
        fds = f'/proc/{sim.get_pid()}/fd'
        files = [os.readlink(f'{fds}/{fd}') for fd in os.listdir(fds)]
        self.assertEqual([f for f in files if f.startswith('/dev/kvm')], [])
        self.assertIn('/memfd:simkvm-kvm (deleted)', files)
        self.assertEqual(sim.output().count('x'), cpus)
        sim.assert_runs()
        self.quit(sim)
        self.assertEqual(sim.get_log(), '')
        return sim

    def check_cpus(self, machine):
        for cpus in range(1, 9):
            with self.subTest(cpus=cpus):
                sim = self.check(machine, cpus)
                self.assertEqual(len(sim.model.log('KVM_CREATE_VCPU')), cpus)

    def test_q35_with_1_to_8_vcpus(self):
        self.check_cpus('q35')

    def test_pc_with_1_to_8_vcpus(self):
        self.check_cpus('pc')

    def test_microvm_with_1_to_8_vcpus(self):
        self.check_cpus('microvm')

    def test_in_every_generation(self):
        for machine in MACHINES:
            for generation in 'g0', 'g1', 'g2':
                with self.subTest(machine=machine, generation=generation):
                    backend = None if generation == 'g0' else GUEST_MEMFD
                    sim = self.check(machine, 2, f'generation {generation}',
                                     backend=backend)
                    self.assertEqual(sim.report['generation'], generation)

    def test_guest_memfd_is_refused_where_it_cannot_be_mapped(self):
        sim = self.play('generation g0', status=1)
        self.assertIn('needs a mappable guest_memfd', sim.get_log())

    def test_with_half_of_the_irqchip_in_the_emulator(self):
        self.check('q35,kernel-irqchip=split', 2)

    def test_reset_stop_and_migration(self):
        sim = self.start('vcpu all\nprint x', cpus=2,
                         args=['-action', 'reboot=reset'])
        sim.cmd('stop')
        sim.cmd('cont')
        sim.cmd('system_reset')
        sim.event_wait('RESET')
        sim.migrate_to('exec:cat > /dev/null')
        sim.cmd('cont')
        wait_for('slots to be bound', sim.bound, sim)
        self.quit(sim)
        self.assertGreater(sim.report['calls']['KVM_GET_DIRTY_LOG'], 0)


class Guest(SimTest):
    """Scripts, as the emulator sees them."""

    def test_ports_and_mmio_reach_devices(self):
        # Host bridge; HPET, its vendor and its clock; ROM at the reset vector
        for machine, bridge in ('q35', 0x29c08086), ('pc', 0x12378086):
            sim = self.play(f'''
                vcpu 0
                out 0xcf8 4 0x80000000
                in 0xcfc 4 expect={bridge:#x}
                in 0xcfe 2 expect={bridge >> 16:#x}
                read 0xfed00000 4 expect=0x8086a201
                read 0xfed00004 4 expect=10000000
                read 0xfffffff0 1 expect=0xea
                write 0xfffffff0 1 0
                read 0xfffffff0 1 expect=0xea
                print some words
                shutdown''', machine=machine)
            self.assertEqual(sim.output(), 'some words\n')
            self.assertEqual(len(sim.model.log('KVM_EXIT_MMIO')), 3)

    def test_memory_keeps_what_is_written(self):
        sim = self.start('''
            vcpu 0
            fill 0x100000 16 7
            write 0x200000 8 0x1122334455667788
            read 0x200000 4 expect=0x55667788
            read 0x200007 1 expect=0x11
            write 0x200004 2 0
            read 0x200000 8 expect=0x1122000055667788
            check 0x100000 16 7
            print done''')
        wait_for('the script', lambda: 'done' in sim.output(), sim)
        # The emulator sees the same memory.
        self.assertIn('0x1122000055667788', sim.cmd(
            'human-monitor-command', command_line='xp/1gx 0x200000'))
        self.quit(sim)
        self.assertEqual(sim.model.log('KVM_EXIT_MMIO'), [])

    def test_values_that_are_not_as_expected(self):
        for line, reason in (
                ('read 0x100000 4 expect=1',
                 'read of gpa 0x100000: 0x0, expected 0x1'),
                ('read 0xfed00004 4 expect=1', 'expected 0x1'),
                ('in 0xcf8 4 expect=1', 'port 0xcf8: 0x0, expected 0x1'),
                ('check 0x100000 1 1', 'gpa 0x100000: 0x0, expected'),
                ('check 0xfed00000 1 1', 'gpa 0xfed00000 is not memory'),
                ('map-gpa 0x100000 1 private',
                 'KVM_CAP_EXIT_HYPERCALL is not enabled'),
                ('state 0x100000 1 private', 'gpa 0x100000 is shared')):
            with self.subTest(line=line):
                self.play_violation(f'vcpu 0\n{line}\nshutdown', reason)

    def test_check_sees_a_single_byte(self):
        self.play_violation('''
            vcpu 0
            fill 0x100000 3 7
            write 0x101ff8 1 0
            write 0x101ff9 1 0
            check 0x100000 3 7
            shutdown''', 'gpa 0x101ff8: ')

    def test_loops(self):
        sim = self.play('''
            vcpu 0
            repeat 2
            print a
            repeat 3
            print b
            end
            end
            shutdown''')
        self.assertEqual(sim.output(), 'a\nb\nb\nb\n' * 2)

    def test_vcpus_meet_at_a_barrier(self):
        sim = self.play('''
            vcpu all
            repeat 50
            barrier
            barrier
            end
            barrier
            halt
            vcpu 1
            repeat 50
            write 0x100000 8 1
            barrier
            barrier
            read 0x100000 8 expect=2
            end
            barrier
            halt
            vcpu 0
            repeat 50
            barrier
            read 0x100000 8 expect=1
            write 0x100000 8 2
            barrier
            end
            barrier
            shutdown''', cpus=4)
        self.assertEqual(sim.report['exits'], 1)

    def test_exits_that_are_repeated(self):
        sim = self.play('''
            vcpu 0
            mmio-read 0xfed00004 4 expect=10000000
            mmio-write 0x100000 4 7
            mmio-read 0x100000 4 expect=7
            read 0x100000 4 expect=7
            shutdown''')
        self.assertEqual(len(sim.model.log('KVM_EXIT_MMIO')), 3)

    def test_errors_of_kvm_run(self):
        for line, call, text in (
                ('run-error EIO', 'KVM_RUN', 'Input/output error'),
                ('fault 0x100000 0x1000 private stale errno=EHWPOISON',
                 'KVM_EXIT_MEMORY_FAULT', 'hardware error')):
            sim = self.start(f'vcpu 0\n{line}\nprint goes-on')
            wait_for('the guest to stop', lambda: sim.cmd(
                'query-status')['status'] == 'internal-error', sim)
            self.quit(sim)
            self.assertEqual(len(sim.model.log(call)), 1)
            self.assertIn(text, sim.get_log())

    def test_memory_fault_stops_an_ordinary_guest(self):
        sim = self.start('''
            vcpu 0
            fault 0x100000 0x1000 private
            print goes-on''')
        wait_for('the guest to stop', lambda: sim.cmd(
            'query-status')['status'] == 'internal-error', sim)
        self.quit(sim)
        self.assertIn('0x1000 bytes at gpa 0x100000 for private', sim.get_log())
        self.assertEqual(sim.output(), '')


class FaultPlan(SimTest):
    """Calls fail as planned, in the emulator and elsewhere."""

    def test_create_guest_memfd(self):
        # With its first call the emulator only probes for guest_memfd.
        sim = self.play('fault KVM_CREATE_GUEST_MEMFD errno=ENOMEM at=2',
                        status=1)
        self.assertRegex(sim.get_log(),
                         'cannot create a guest_memfd.*Cannot allocate memory')
        self.assertEqual([c['ret'] for c in
                          sim.model.log('KVM_CREATE_GUEST_MEMFD')][1:],
                         [-errno.ENOMEM])

    def test_bind_a_memslot(self):
        calls = [call for call in self.play('vcpu 0\nshutdown').model.log()
                 if 'KVM_SET_USER_MEMORY_REGION' in call['call']]
        first = [bool(call['flags'] & 4) for call in calls].index(True) + 1
        # The emulator makes it a plain one, with a warning.
        sim = self.start(
            f'fault KVM_SET_USER_MEMORY_REGION errno=EIO at={first}')
        self.quit(sim)
        self.assertIn('KVM does not bind a memslot', sim.get_log())
        self.assertEqual(sim.report['faults-injected'], 1)

    def test_memslots_for_ever(self):
        sim = self.play('''
            fault KVM_SET_USER_MEMORY_REGION errno=ENOMEM times=forever''',
                        status=-signal.SIGABRT, backend=None)
        self.assertEqual(sim.model.log()[-1]['ret'], -errno.ENOMEM)
        self.assertIn('error registering slot: Cannot allocate memory',
                      sim.get_log())

    def test_preallocation(self):
        for plan, text in (('errno=ENOMEM', 'Cannot allocate memory'),
                           ('errno=EINTR', None)):
            sim = self.machine(f'fault fallocate {plan}\nvcpu 0\nshutdown',
                               backend=GUEST_MEMFD + ',prealloc=on')
            self.assertEqual(sim.play(), 1 if text else 0, sim.get_log())
            self.assertIn(text or '', sim.get_log())
            self.assertEqual(sim.model.log('fallocate')[0]['ret'],
                             -getattr(errno, plan[6:]))

    def test_at_and_times(self):
        printed, report = self.ask('''
            generation g2
            fault KVM_SET_MEMORY_ATTRIBUTES2 errno=EAGAIN at=2 offset=0x3000
            fault KVM_SET_MEMORY_ATTRIBUTES2 errno=ENOMEM at=4 times=2''', '''
            gmem = Vm().guest_memfd(0x8000)
            for page in range(7):
                print(*convert(gmem, page << 12, 0x1000, PRIVATE))''')
        self.assertEqual(printed.splitlines(), [
            '0 1', f'{errno.EAGAIN} {0x3000}', '0 1', f'{errno.ENOMEM} 1',
            f'{errno.ENOMEM} 1', '0 1', '0 1'])
        self.assertEqual((report['faults-injected'], report['conversions'],
                          report['pages-to-private']), (3, 4, 4))

    def test_every_call(self):
        for call, config, program in (
                ('KVM_CREATE_GUEST_MEMFD', '', 'vm.guest_memfd(0x1000)'),
                ('KVM_SET_USER_MEMORY_REGION', '',
                 'vm.set_slot(0, 0x1000, 0x10000)'),
                ('KVM_SET_MEMORY_ATTRIBUTES', 'generation g1',
                 'vm.set_attributes(0, 0x1000, PRIVATE)'),
                ('KVM_PRE_FAULT_MEMORY', '',
                 'pre_fault(vm.vcpu(), 0, 0x1000)')):
            with self.subTest(call=call):
                printed, _ = self.ask(f'{config}\nfault {call} errno=EIO', f'''
                    vm = Vm()
                    try:
                        {program}
                    except OSError as err:
                        print(err.errno)''')
                self.assertEqual(printed, f'{errno.EIO}\n')


class Pins(SimTest):
    """Pages that somebody else holds."""

    def test_conversion_to_private_waits_for_them(self):
        printed, report = self.ask('''
            generation g2
            pin 0x3000 0x2000 times=2
            pin 0x6000 0x1000 times=forever
            pin 0x1000 0x1000 file=1''', '''
            gmem = Vm().guest_memfd(0x8000)
            for offset in 0, 0x4000, 0x2000, 0x5000, 0x6000, 0x7000:
                print(*convert(gmem, offset, 0x2000 if offset < 0x7000
                               else 0x1000, PRIVATE))
            # No page of a call that failed has changed, and no other file.
            print(*convert(gmem, 0, 0x8000, 0))''')
        self.assertEqual(printed.splitlines(), [
            '0 1', f'11 {0x4000}', f'11 {0x3000}', f'11 {0x6000}',
            f'11 {0x6000}', '0 1', '0 1'])
        self.assertEqual((report['pages-to-private'],
                          report['pages-to-shared']), (3, 3))


class Mappings(SimTest):
    """An emulator maps other memory over pages that it must not touch."""

    def test_holes_in_a_mapping_and_back(self):
        # ctypes calls mmap() by its name, and so the model.
        printed, report = self.ask('generation g2', '''
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t,
                                  ctypes.c_int, ctypes.c_int, ctypes.c_int,
                                  ctypes.c_long]
            SHARED, FIXED, ANONYMOUS = 1, 0x10, 0x22
            PAGES = 64
            gmem = Vm().guest_memfd(PAGES << 12)
            base = libc.mmap(None, PAGES << 12, 3, SHARED, gmem, 0)
            byte = [ctypes.c_char.from_address(base + (n << 12))
                    for n in range(PAGES)]
            def seen():
                return b''.join(b.value.replace(bytes(1), b'0')
                                for b in byte)
            def maps():
                return sum('simkvm-' in line for line in open(
                    '/proc/self/maps') if int(line.split('-')[0], 16)
                    in range(base, base + (PAGES << 12)))
            for n in range(PAGES):
                byte[n].value = b'x'
            convert(gmem, 0, PAGES << 12, PRIVATE)
            # A hole in every other page.
            for n in range(0, PAGES, 2):
                libc.mmap(base + (n << 12), 4096, 3, FIXED | ANONYMOUS, -1, 0)
            # What is mapped from now on is not what is in the holes.
            convert(gmem, 0, PAGES << 12, 0)
            print(seen().decode())
            # The file again: all of it, page by page, while that is private.
            convert(gmem, 0, PAGES << 11, PRIVATE)
            for n in range(PAGES - 1, -1, -1):
                libc.mmap(base + (n << 12), 4096, 3, FIXED | SHARED, gmem,
                          n << 12)
            convert(gmem, 0, PAGES << 12, 0)
            print(seen().decode(), maps())
            convert(gmem, 0, 4096, PRIVATE)
            byte[0].value''', -signal.SIGBUS)
        self.assertEqual(printed.splitlines()[:2],
                         ['0x' * 32, 'x' * 64 + ' 1'])
        self.assertEqual(report['host-touches'], 1)


    def test_private_memory_behind_a_mapping(self):
        """A slot that is not bound: EFAULT without an exit."""
        printed, _ = self.ask('''
            generation g2
            vcpu 0
            read 0x100000 4 expect=0
            out 0x80 1 0''', '''
            import ctypes, mmap
            vm = Vm()
            gmem = vm.guest_memfd(0x1000)
            view = mmap.mmap(gmem, 0x1000)
            vm.set_slot(0x100000, 0x1000, ctypes.addressof(
                ctypes.c_char.from_buffer(view)))
            vcpu = vm.vcpu()
            run = mmap.mmap(vcpu, 0x3000)
            for state in PRIVATE, PRIVATE, 0:
                convert(gmem, 0, 0x1000, state)
                try:
                    print(ioctl(vcpu, 0x80, 0), run[8])
                except OSError as err:
                    print(err.errno, run[8])''')
        # KVM_EXIT_UNKNOWN, and KVM_EXIT_IO.
        self.assertEqual(printed.splitlines(), [
            f'{errno.EFAULT} 0', f'{errno.EFAULT} 0', '0 2'])


class Strict(SimTest):
    """Calls that kernels refuse, or that are not modelled, end the run."""

    BAD = 'print(*convert(Vm().guest_memfd(0x1000), 0, 0x1000, PRIVATE, 1))'

    def test_bad_arguments_are_a_violation(self):
        printed, report = self.ask('', self.BAD, VIOLATION)
        self.assertEqual(report['violation'],
                         'conversion: flags or reserved not zero')
        self.assertIn('simkvm: ' + report['violation'], printed)

    def test_bad_arguments_are_an_error_if_the_model_is_not_strict(self):
        printed, _ = self.ask('strict off', self.BAD)
        self.assertEqual(printed, f'{errno.EINVAL} 1\n')

    def test_a_call_that_is_not_modelled(self):
        for program, what in (
                ('ioctl(Vm().fd, 0xb7, 0)', 'KVM_SMI .* on a VM'),
                ('ioctl(Vm().vcpu(), 0xab, structure("2Q", 0, 0), WRITE)',
                 '.*KVM_GET_ONE_REG .* on a vCPU'),
                ('ioctl(Vm().kvm, 0xfe, 0)', 'an unknown call .*0xaefe'),
                ('ioctl(Vm().fd, 0xe0, structure("3I", 4, 0, 0), 3)',
                 'KVM_CREATE_DEVICE of type 4')):
            with self.subTest(program=program):
                _, report = self.ask('', program, NOT_MODELLED)
                self.assertRegex(report['violation'], 'not modelled: ' + what)

    def test_mistakes_in_the_configuration(self):
        for line, about in (
                ('generation g3', "generation g0, g1 or g2, not 'g3'"),
                ('vm-types snp sgx', "'sgx' is no VM type"),
                ('fault fallocate', 'fault CALL errno=NAME'),
                ('fault KVM_RUN errno=EIO', "no call named 'KVM_RUN'"),
                ('fault fallocate errno=EMAGIC', "'EMAGIC' is not an errno"),
                ('pin 0x1000', 'pin OFFSET SIZE'),
                ('pin 0x1000 0x10g0', "'0x10g0' is not a number"),
                ('sometimes', "'sometimes' is not known here"),
                ('vcpu 0\njump 0', "a vCPU cannot 'jump'"),
                ('vcpu 0\nread 0x1000 3', 'a size of 1, 2, 4 or 8 bytes'),
                ('vcpu 0\nfill 0 private', 'fill GPA PAGES SEED')):
            with self.subTest(line=line):
                printed, _ = self.ask(line, '', 2)
                number = 3 + line.count('\n')
                self.assertRegex(printed, rf'^simkvm: \S+:{number}: ')
                self.assertIn(about, printed)


class Record(SimTest):
    """The log and the report."""

    def test_log(self):
        sim = self.play('vcpu 0\nin 0x402 1\nshutdown')
        log = sim.model.log()
        self.assertEqual([line['n'] for line in log], list(range(len(log))))
        self.assertEqual(log[0]['call'], 'KVM_GET_API_VERSION')
        self.assertEqual(log[0]['ret'], 12)
        ram = [line for line in sim.model.log('KVM_CREATE_GUEST_MEMFD')
               if line['size'] == 128 << 20]
        self.assertEqual([line['flags'] for line in ram], [3])
        self.assertGreater(ram[0]['ret'], 2)
        slot = sim.model.log('KVM_SET_USER_MEMORY_REGION2')[-1]
        self.assertLessEqual({'slot', 'flags', 'gpa', 'size', 'offset'},
                             set(slot))
        self.assertEqual([line['vcpu'] for line in
                          sim.model.log('KVM_EXIT_IO')], [0])
        self.assertEqual(
            [line['call'] for line in log if 'EXIT' in line['call']],
            ['KVM_EXIT_IO', 'KVM_EXIT_SHUTDOWN'])

    def test_report(self):
        sim = self.play('vcpu 0\nin 0x402 1\nshutdown')
        report, log = sim.report, sim.model.log()
        self.assertEqual(report['calls'],
                         {name: len(sim.model.log(name))
                          for name in {line['call'] for line in log}})
        self.assertEqual((report['generation'], report['exits'],
                          report['launch'], report['conversions']),
                         ('g2', 2, None, 0))

    def test_report_counts_conversions(self):
        _, report = self.ask('generation g2', '''
            gmem = Vm().guest_memfd(0x8000)
            convert(gmem, 0, 0x4000, PRIVATE)
            convert(gmem, 0x2000, 0x4000, PRIVATE)
            convert(gmem, 0x1000, 0x2000, PRIVATE)
            convert(gmem, 0x5000, 0x3000, 0)''')
        self.assertEqual((report['conversions'], report['pages-to-private'],
                          report['pages-to-shared']), (3, 6, 1))

    def test_a_touch_of_private_memory(self):
        _, report = self.ask('generation g2', '''
            import mmap
            gmem = Vm().guest_memfd(0x2000)
            view = mmap.mmap(gmem, 0x2000)
            view[0x1000] = 1
            convert(gmem, 0x1000, 0x1000, PRIVATE)
            view[0] = 1
            view[0x1fff] = 1''', -signal.SIGBUS)
        self.assertEqual(report['host-touches'], 1)
