# SPDX-License-Identifier: GPL-2.0-or-later
"""The digest of an SEV-SNP launch with its vCPUs' VMSAs, and ID blocks.

QEMU sets the state of vCPUs, the model makes pages of it as a kernel does, and
gmemlab.measure knows what they are for a vCPU after reset.
"""
import base64
import struct

from gmemlab import measure
from gmemlab.simkvm import snp
from test_launch import SnpLaunchTest, ovmf

SEPARATE, IN_PLACE = 'generation g1', 'generation g2'
POLICY = 0x30000                # QEMU's default
CPU_TYPES = ('qemu64', 'EPYC-v4', 'EPYC-Rome', 'EPYC-Milan', 'EPYC-Genoa',
             'EPYC-Turin')


class VmsaTest(SnpLaunchTest):
    """Launches guests whose vCPUs count."""

    def wanted(self, cpus=1, cpu_type='qemu64', path=None):
        """What gmemlab.measure computes."""
        with open(path or self.image, 'rb') as f:
            return measure.SnpLaunch(f.read(), vcpus=measure.Vcpus(
                cpus, measure.cpu_signature(cpu_type)))

    def check_digests(self, launched, wanted):
        """An entry of the report has both digests."""
        self.assertTrue(launched['finished'])
        self.assertEqual(launched['digest'],
                         wanted.digest_before_vmsas().hex())
        self.assertEqual(launched['digest-after-vmsas'],
                         wanted.digest().hex())


class Vmsas(VmsaTest):
    """Any number of vCPUs, of any type."""

    def check_vcpus(self, config, cpus, cpu_type='qemu64', **kwargs):
        with self.subTest(config=config, cpus=cpus, cpu_type=cpu_type):
            sim = self.launch(config, cpus=cpus, args=('-cpu', cpu_type),
                              **kwargs)
            self.check_digests(sim.report['launch'], self.wanted(
                cpus, cpu_type, kwargs.get('path')))

    def test_numbers_of_vcpus(self):
        for config in SEPARATE, IN_PLACE:
            for cpus in 1, 2, 3, 16, 64:
                self.check_vcpus(config, cpus)

    def test_types_of_vcpus(self):
        for config in SEPARATE, IN_PLACE:
            for cpu_type in CPU_TYPES:
                self.check_vcpus(config, 2, cpu_type)

    def test_ovmf(self):
        for config in SEPARATE, IN_PLACE:
            self.check_vcpus(config, 4, 'EPYC-v4', path=ovmf())

    def test_other_machines(self):
        for machine in 'pc', 'microvm':
            for config in SEPARATE, IN_PLACE:
                self.check_vcpus(config, 3, machine=machine)


class Plugged(VmsaTest):
    """vCPUs that QEMU makes when it has read the firmware."""

    def test_vcpus_by_device(self):
        device = 'EPYC-x86_64-cpu,socket-id=0,thread-id=0,core-id='
        for config in SEPARATE, IN_PLACE:
            with self.subTest(config=config):
                # A shutdown resets the guest; the device ends QEMU.
                sim = self.play(config + '''
                    vcpu all
                    barrier
                    barrier
                    halt
                    vcpu 0
                    barrier
                    shutdown
                    barrier
                    out 0xf4 4 1''', status=3, **self.guest(
                        cpus='1,maxcpus=4', args=[
                            '-cpu', 'EPYC', '-device', device + '1',
                            '-device', device + '3',
                            '-action', 'reboot=reset', '-device',
                            'isa-debug-exit,iobase=0xf4,iosize=4']))
                self.assertEqual(len(sim.report['launches']), 2)
                for launched in sim.report['launches']:
                    self.check_digests(launched, self.wanted(3, 'EPYC'))


class Resets(VmsaTest):
    """A reset launches the guest anew, with new vCPUs."""

    # Ends QEMU, with status 3; a shutdown resets the guest.
    ARGS = ('-action', 'reboot=reset', '-device',
            'isa-debug-exit,iobase=0xf4,iosize=4', '-cpu', 'EPYC-Milan')

    def check_resets(self, config):
        sim = self.play(config + '''
            vcpu all
            repeat 3
            barrier
            end
            barrier
            halt
            vcpu 0
            repeat 3
            barrier
            shutdown
            end
            barrier
            out 0xf4 4 1''', status=3, **self.guest(cpus=3, size='32M'))
        self.assertEqual(len(sim.report['launches']), 4)
        for launched in sim.report['launches']:
            self.check_digests(launched, self.wanted(3, 'EPYC-Milan'))

    def test_separate_memory(self):
        self.check_resets(SEPARATE)

    def test_in_place(self):
        self.check_resets(IN_PLACE)


class IdBlocks(VmsaTest):
    """The guest owner's statement of what the launch has to be."""

    AUTH = base64.b64encode(bytes(4096)).decode()

    def launch_block(self, config, digest, policy=POLICY, version=1,
                     status=0):
        """Launch with an ID block."""
        block = struct.pack('<48s16s16s2IQ', digest, b'family', b'image',
                            version, 0, policy)
        return self.launch(config, status=status, cpus=2, confidential=snp(
            f',id-block={base64.b64encode(block).decode()},'
            f'id-auth={self.AUTH}'))

    def test_the_final_digest(self):
        wanted = self.wanted(2)
        for config in SEPARATE, IN_PLACE:
            sim = self.launch_block(config, wanted.digest())
            self.check_digests(sim.report['launch'], wanted)

    def test_a_block_that_is_not_of_this_launch(self):
        wanted = self.wanted(2)
        has = f'and this launch has {wanted.digest().hex()}'
        for warning, reason, *block in (
                (has + '; it has to be the one after', 'Bad measurement',
                 wanted.digest_before_vmsas()),
                (has, 'Bad measurement', self.wanted(3).digest()),
                ('for policy 0xb0000, and this guest has 0x30000', 'policy',
                 wanted.digest(), 0xb0000),
                ('', 'parameter', wanted.digest(), POLICY, 2)):
            for config in SEPARATE, IN_PLACE:
                with self.subTest(reason=reason, config=config):
                    sim = self.launch_block(config, *block, status=1)
                    self.assertIn(warning, sim.get_log())
                    self.assertRegex(
                        sim.get_log(),
                        f'(?i)SNP_LAUNCH_FINISH ret=-5 fw_error=.*{reason}')
                    self.assertEqual(sim.report['exits'], 0)
                    launched = sim.report['launch']
                    self.assertFalse(launched['finished'])
                    self.assertIsNone(launched['digest-after-vmsas'])
