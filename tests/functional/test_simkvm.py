# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware on the model of the kernel, in kvm mode: guest code is real.

SNP and TDX guests are launched with private memory apart (generation g0), and
in place (g2); the guest then asks for page-state changes, and sees their
effect.
"""
from baremetal import CPU
from firmware import FirmwareTest, Guest
from gmemlab.machine import GUEST_MEMFD, MEMFD
from gmemlab.measure import SnpLaunch, TdxLaunch
from gmemlab.simkvm import Model, lacks_tdx, snp

PAGE = 4096
CONVERT = """
    write 0x1000000 16 1
    convert 0x1000000 4 shared
    write 0x1000000 4 2
    check 0x1000000 4 2
    check 0x1004000 12 1
    access 0x1000000 4 private
    write 0x1000000 4 3
    access 0x1000000 2 shared
    check 0x1002000 2 3
    check 0x1004000 12 1
"""


class SimGuest(Guest):
    """A guest whose KVM has the model above it."""

    def __init__(self, directory, firmware, commands, config, name='sim',
                 **kwargs):
        super().__init__(directory, firmware, commands, name=name, **kwargs)
        self.model = Model(directory, name, 'mode kvm\n' + config)
        self._wrapper = self.model.wrapper()

    def end(self):
        """Quit; returns the report of the model."""
        self.shutdown()
        assert not self.exitcode(), self.state()
        return self.model.report()


class KvmModeTest(FirmwareTest):
    """Starts guests on the model, with private memory apart.

    CONFIG: of the model
    BACKEND: of RAM
    PROPERTIES: of an SNP guest, ",name=value..."
    """

    CONFIG = 'generation g0'
    BACKEND = MEMFD
    PROPERTIES = ''

    def sim(self, commands, config, **kwargs):
        """A SimGuest that is not launched yet."""
        return SimGuest(self.dir, self.firmware, commands, config, **kwargs)

    def snp(self, commands, args=(), **kwargs):
        """An SNP guest."""
        return self.sim(
            commands, self.CONFIG, backend=self.BACKEND,
            machine='q35,confidential-guest-support=cgs',
            args=['-object', snp(self.PROPERTIES + ',id=cgs'), *args], **kwargs)

    def tdx(self, commands, **kwargs):
        """A TDX guest."""
        return self.sim(
            commands, self.CONFIG, backend=self.BACKEND,
            machine='q35,confidential-guest-support=cgs',
            # A real KVM without TDX may lack these.
            cpu=CPU + ',phys-bits=48,guest-phys-bits=48',
            args=['-object', 'tdx-guest,id=cgs'], **kwargs)

    def play(self, guest):
        """Run the guest's list; there is no failure, and the guest runs."""
        self.launch(guest)
        guest.wait_done()
        self.assertEqual(guest.failures(), [], guest.output())
        return guest

    def play_snp(self, commands, **kwargs):
        """The same, with an SNP guest."""
        return self.play(self.snp(commands, **kwargs))

    def image(self):
        """Returns the firmware's bytes."""
        with open(self.firmware, 'rb') as f:
            return f.read()

    def check_conversions(self, guest):
        """CONVERT was run, once.  Returns the report."""
        report = guest.end()
        # 4 pages by a hypercall; of these 4, and then 2, by memory faults.
        self.assertEqual(report['calls']['KVM_EXIT_HYPERCALL'], 1)
        self.assertEqual(report['calls']['KVM_EXIT_MEMORY_FAULT'], 6)
        self.assertEqual(report['pages-to-shared'], 4 + 2)
        self.assertIsNone(report['violation'])
        return report


class KvmMode(KvmModeTest):
    """On this machine's KVM."""

    def test_ordinary_guests(self):
        for generation in 'g1', 'g2':
            for machine in 'q35', 'pc':
                with self.subTest(generation=generation, machine=machine):
                    guest = self.play(self.sim(
                        'cpu all\nbarrier\ncpu 1\nwrite 0x1000000 64 1\n'
                        'cpu all\nbarrier\ncpu 0\ncheck 0x1000000 64 1\n',
                        'generation ' + generation, machine=machine, cpus=2,
                        name=f'{machine}-{generation}'))
                    self.assertTrue(guest.bound())
                    peak = guest.end()['peak']
                    self.assertGreaterEqual(peak['guest-memfd'], 64 * PAGE)

    def test_snp_launch_and_conversions(self):
        report = self.check_conversions(self.play_snp(CONVERT))
        launch = report['launch']
        self.assertTrue(launch['finished'])
        self.assertEqual(launch['digest'],
                         SnpLaunch(self.image()).digest().hex())
        # Pages that were written in both states are in both memories.
        self.assertGreater(report['peak']['guest-memfd'], 16 * PAGE)

    def test_tdx_launch_and_conversions(self):
        if lacks_tdx():
            self.skipTest(lacks_tdx())
        report = self.check_conversions(self.play(self.tdx(CONVERT)))
        self.assertEqual(report['launch']['digest'],
                         TdxLaunch(self.image()).digest().hex())

    def test_states(self):
        self.play_snp('''
            state 0x1000000 1 private
            convert 0x1000000 8 shared
            state 0x1000000 8 shared
            state 0x1008000 1 private
            convert 0x1002000 4 private
            state 0x1000000 2 shared
            state 0x1002000 4 private
            state 0x1006000 2 shared
        ''')

    def test_the_wrong_state_is_a_failure(self):
        guest = self.launch(self.snp('state 0x1000000 2 shared'))
        guest.wait_done()
        self.assertEqual(len(guest.failures()), 1, guest.output())

    def test_vcpus_that_convert_at_the_same_time(self):
        cpus = 4
        report = self.play_snp(
            ''.join(f'cpu {n}\nrandom {n} 200 {0x2000000 + (n << 20)} 64\n'
                    for n in range(cpus)), cpus=cpus).end()
        self.assertGreater(report['conversions'], cpus * 10)

    def test_vcpus_that_convert_next_to_each_other(self):
        cpus = 4
        # Pages of one slot belong to the vCPUs in turn.
        self.play_snp(''.join(f'''
            cpu {n}
            repeat 40
            convert {0x2000000 + n * PAGE} 1 shared
            write {0x2000000 + n * PAGE} 1 {n}
            check {0x2000000 + n * PAGE} 1 {n}
            convert {0x2000000 + n * PAGE} 1 private
            write {0x2000000 + n * PAGE} 1 {n + 8}
            check {0x2000000 + n * PAGE} 1 {n + 8}
            end
        ''' for n in range(cpus)), cpus=cpus)

    def test_a_reset_launches_the_guest_again(self):
        for start in self.snp, self.tdx:
            if start == self.tdx and lacks_tdx():
                self.skipTest(lacks_tdx())
            with self.subTest(start=start.__name__):
                guest = self.play(start(CONVERT, name=start.__name__))
                for times in 2, 3:
                    guest.cmd('system_reset')
                    guest.wait_done(times)
                self.assertEqual(guest.failures(), [], guest.output())
                report = guest.end()
                self.assertEqual(report['launches'], [report['launch']] * 3)
                self.assertEqual(report['vms-alive'], 1)
                self.assertIsNone(report['violation'])


class KvmModeInPlace(KvmMode):
    """The same, converted in place."""

    CONFIG = 'generation g2'
    BACKEND = GUEST_MEMFD
    test_ordinary_guests = None

    def check_conversions(self, guest):
        self.assertTrue(guest.bound())
        launch = guest.cmd('query-guest-memfd')['launch']
        report = super().check_conversions(guest)
        # VMSAs are no pages of the guest's.
        self.assertEqual(sum(r['size'] for r in launch
                             if r['type'] != 'vmsa'),
                         report['launch']['pages'] * PAGE)
        self.assertEqual(report['host-touches'], 0)
        self.assertEqual(report['peak']['other'], 0)
        return report

    def test_contents_are_lost_by_a_conversion(self):
        guest = self.launch(self.snp('''
            write 0x1000000 8 1
            convert 0x1002000 4 shared
            check 0x1000000 2 1
            check 0x1006000 2 1
            check 0x1002000 1 1
        '''))
        guest.wait_done()
        self.assertEqual(len(guest.failures()), 1, guest.output())
        self.assertIn('0x1002000', guest.failures()[0])


class KvmModeOnAnotherKvm(KvmModeTest):
    """On a KVM that passes hypercalls on."""

    EMULATED_HOST = ()

    def test_hypercalls(self):
        guest = self.play_snp('hypercall-by vmmcall\n' + CONVERT)
        self.check_conversions(guest)

    def test_port(self):
        guest = self.play_snp('hypercall-by port\n' + CONVERT)
        self.check_conversions(guest)

    def test_vcpus_that_convert_at_the_same_time(self):
        self.play_snp(''.join(
            f'cpu {n}\nrandom {n} 60 {0x2000000 + (n << 20)} 64\n'
            for n in range(2)), cpus=2)


class KvmModeInPlaceOnAnotherKvm(KvmModeOnAnotherKvm):
    """The same, converted in place."""

    CONFIG = KvmModeInPlace.CONFIG
    BACKEND = KvmModeInPlace.BACKEND
