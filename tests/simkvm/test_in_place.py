# SPDX-License-Identifier: GPL-2.0-or-later
"""Launches of guests whose memory is converted in place.

Each is compared with QEMU's own launch of the same guest with separate memory:
the platform has to get the same.
"""
from base64 import b64encode
from collections import Counter
import struct

from gmemlab import measure
from gmemlab.machine import GUEST_MEMFD, MEMFD
from gmemlab.simkvm import snp
from test_launch import SPARSE, SnpLaunchTest, TdxLaunchTest, debian, ovmf

MIB = 1 << 20
SEPARATE, IN_PLACE = 'generation g0', 'generation g2'
CONVERT = 'KVM_SET_MEMORY_ATTRIBUTES2'
SLOT = 'KVM_SET_USER_MEMORY_REGION2'
# Calls for guest_memfd, slots and the launch
KINDS = ('KVM_CREATE_GUEST_MEMFD', 'KVM_SET_USER_MEMORY_REGION',
         SLOT, CONVERT, 'fallocate', 'mmap')
BOUND = ',host-nodes=0,policy=bind'
HALT = '''
    vcpu all
    halt'''
FILL = HALT + '''
    vcpu 0
    fill 0x1000000 0x4000 1
    check 0x1000000 0x4000 1
    print launched
    shutdown'''
NODES = ('node0', '64M'), ('node1', '128M'), ('node2', '64M')


def base64(data):
    """Bytes as QEMU takes them."""
    return b64encode(data).decode()


def numa(*backends):
    """Arguments for a NUMA node of each of these types."""
    args = []
    for (node, size), backend in zip(NODES, backends):
        args += ['-object', f'{backend},id={node},size={size}',
                 '-numa', f'node,memdev={node}']
    return args


class Launches:
    """The tests of both platforms.

    FIRMWARE: an OVMF: a function that returns its path
    SIZE_ARGS: for a guest of 1 TiB
    """

    FIRMWARE = None
    SIZE_ARGS = ()

    def in_place(self, **kwargs):
        """A launch in place, without warnings or touches of private pages."""
        sim = self.launch(IN_PLACE, **kwargs)
        self.assertEqual(sim.output(), 'launched\n')
        self.assertTrue(sim.report['launch']['finished'])
        self.assertEqual(sim.report['host-touches'], 0)
        return sim

    def separate(self, **kwargs):
        """QEMU's own launch, with separate memory."""
        sim = self.launch(SEPARATE, **kwargs)
        self.assertEqual(sim.output(), 'launched\n')
        return sim

    def compare(self, other=None, **kwargs):
        """Both have the same digest; in place there is one copy of memory.

        @other: arguments that differ where memory is separate
        Returns both machines.
        """
        separate = self.separate(**{**kwargs, **(other or {})})
        sim = self.in_place(**kwargs)
        self.assertEqual(sim.report['launch'], separate.report['launch'])
        # No more messages, least of all with data of the guest's
        self.assertEqual(sim.get_log(), separate.get_log())
        self.assertLess(sim.report['peak']['total'],
                        separate.report['peak']['total'])
        return separate, sim

    def check_passed_on(self, properties, **passed):
        """The platform gets the properties, as from QEMU's own launch.

        @passed: a command, and its arguments, by the log's names
        """
        def commands(sim):
            return {call['call']: {name: call[name] for name in call
                                   if name != 'n'}
                    for call in sim.model.log() if call['call'] in
                    self.COMMANDS and call['call'] != self.COMMANDS[-2]}
        separate, sim = self.compare(
            confidential=self.CONFIDENTIAL + properties)
        self.assertEqual(commands(sim), commands(separate))
        for command, wanted in passed.items():
            got = commands(sim)[command]
            self.assertEqual({name: got[name] for name in wanted}, wanted)

    def calls(self, sim):
        """How often each call was made."""
        return Counter(call['call'] for call in sim.model.log()
                       if call['call'] in KINDS + self.COMMANDS)

    def test_1_to_8_vcpus(self):
        for cpus in range(1, 9):
            with self.subTest(cpus=cpus):
                self.compare(cpus=cpus)

    def test_ovmf(self):
        self.compare(path=type(self).FIRMWARE())

    def test_memory_of_any_size(self):
        for size in '256M', '2G', '3G', '4G', '64G', '1T':
            with self.subTest(size=size):
                self.compare(size=size, backend=SPARSE, args=self.SIZE_ARGS)

    def test_memory_from_any_backend(self):
        ram = {'backend': 'memory-backend-ram'}
        for backend, other in ((None, None), ('memory-backend-ram', None),
                               (MEMFD, None),
                               (MEMFD + ',guest-memfd=on', ram),
                               (GUEST_MEMFD, ram),
                               (ram['backend'] + BOUND, None),
                               (GUEST_MEMFD + BOUND,
                                {'backend': ram['backend'] + BOUND})):
            with self.subTest(backend=backend):
                self.compare(other, backend=backend)

    def test_numa_nodes(self):
        ram = ['memory-backend-ram'] * 3
        for backends in (ram, [GUEST_MEMFD] * 3,
                         [GUEST_MEMFD, 'memory-backend-ram', MEMFD]):
            with self.subTest(backends=backends):
                _, sim = self.compare({'args': numa(*ram)},
                                      args=numa(*backends))
                # All of a node becomes private by one call.
                sizes = [call['size'] for call in sim.model.log(CONVERT)]
                self.assertGreaterEqual(sizes.count(128 * MIB), 1, sizes)

    def test_memory_is_there_once(self):
        # Allocated at the start, and then the guest fills a quarter of it.
        separate, sim = self.compare(
            backend='memory-backend-ram,prealloc=on', size='256M',
            script=FILL)
        peak = sim.report['peak']
        self.assertEqual(peak['other'], 0)
        # The firmware is beside it.
        self.assertLess(peak['total'], (256 + 1) * MIB)
        self.assertGreater(separate.report['peak']['total'], (256 + 64) * MIB)

    def test_calls_do_not_grow_with_memory(self):
        runs = [self.calls(self.in_place(size=size, backend=SPARSE,
                                         args=self.SIZE_ARGS))
                for size in ('256M', '4G', '1T')]
        # Memory above 4 GiB takes a slot.
        for run in runs[1:]:
            run[SLOT] -= 1
        self.assertEqual(runs[0], runs[1])
        self.assertEqual(runs[1], runs[2])

    def test_slots_stay_while_dirty_pages_are_measured(self):
        sim = self.start(IN_PLACE + HALT, **self.guest())
        slots = len(sim.model.log(SLOT))
        sim.measure_dirty_rate()
        self.assertEqual(len(sim.model.log(SLOT)), slots)
        self.assertGreater(slots, 1)


class Snp(Launches, SnpLaunchTest):
    """SEV-SNP."""

    FIRMWARE = ovmf
    SIZE_ARGS = ('-cpu', 'qemu64,phys-bits=48')

    def test_pc_and_microvm(self):
        for machine in 'pc', 'microvm':
            with self.subTest(machine=machine):
                self.compare(machine=machine, path=ovmf())

    def test_kernel_hashes(self):
        for path in None, debian('amdsev'):
            for initrd, append in (b'', ''), (b'initrd', 'console=ttyS0'):
                with self.subTest(path=path, initrd=initrd):
                    _, args = self.kernel(initrd, append)
                    self.compare(path=path, args=args,
                                 confidential=snp(',kernel-hashes=on'))

    def test_policy_and_identity(self):
        with open(self.image, 'rb') as f:
            launch = measure.SnpLaunch(f.read(), vcpus=measure.Vcpus(
                1, measure.cpu_signature('qemu64')))
        block = struct.pack('<48s16s16s2IQ', launch.digest(), b'family',
                            b'image', 1, 2, 0xb0000)
        auth = bytes(range(256)) * 16
        self.check_passed_on(
            f',policy=0xb0000,id-block={base64(block)},id-auth={base64(auth)},'
            f'author-key-enabled=on,vcek-disabled=on,host-data='
            f'{base64(block[:32])},guest-visible-workarounds='
            f'{base64(block[:16])}',
            SNP_LAUNCH_START={'policy': 0xb0000,
                              'workarounds': block[:16].hex()},
            SNP_LAUNCH_FINISH={
                'id-block': block.hex(), 'id-auth': auth.hex(),
                'host-data': block[:32].hex(), 'author-key': 1,
                'vcek-disabled': 1})


class Tdx(Launches, TdxLaunchTest):
    """TDX."""

    @staticmethod
    def FIRMWARE():
        return debian('tdx')

    def test_attributes_and_identity(self):
        ids = {name: bytes(range(n, n + 48)) for n, name in
               enumerate(('mrconfigid', 'mrowner', 'mrownerconfig'))}
        self.check_passed_on(
            ',attributes=0x10000000' + ''.join(
                f',{name}={base64(value)}' for name, value in ids.items()),
            TDX_INIT_VM={'attributes': 0x10000000, **{
                name: value.hex() for name, value in ids.items()}})
