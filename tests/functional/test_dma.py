# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that transfer to and from a guest's memory, in either state.

The guest is tests/guest/firmware, which has drivers; it runs in kvm mode on
the model of the kernel, as an SNP guest whose memory is converted in place.
"""
import array
import os
import re
import struct

from firmware import Guest
from gmemlab.machine import GUEST_MEMFD, Emulator
from test_simkvm import PAGE, KvmModeTest
from qemu.qmp import ExecuteError

# Where data is; the device's rings are before it, if they are moved as well.
DATA = 0x1004000
PAGES = 4
RING_PAGES = 4
RINGS = DATA - RING_PAGES * PAGE
RANGES = {'buffer': f'{DATA:#x} {PAGES}',
          'rings': f'{RINGS:#x} {RING_PAGES + PAGES}'}
ALL = RANGES['rings']
# Another page.
ASIDE = 0x1800000

DISKS = 'virtio-blk', 'nvme', 'ahci'
NICS = 'virtio-net', 'e1000e'
NAMES = *DISKS, *NICS, 'fw_cfg'
# Bytes: where on a disk "out" writes, and the disk's size
OUT = 1 << 20
DISK_SIZE = 2 << 20
# Bytes of each page that are sent as a frame; bytes before a received frame
FRAME_SIZE = 1024
FRAME_AT = {'virtio-net': 12, 'e1000e': 0}
# First bytes of a frame that answers the drivers' request
ANSWER = struct.unpack('<Q', bytes.fromhex('5254000000015255'))[0]


def scramble(x):
    """The firmware's function of that name."""
    x = (x + 1) * 0xd6e8feb86659fd93 % 2**64
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93 % 2**64
    return x ^ x >> 32


def words(gpa, pages, seed):
    """Words that the firmware's "write" puts there."""
    first, step = scramble(seed), 0x9e3779b97f4a7c15
    return [(first + n * step) % 2**64
            for n in range(gpa // 8, (gpa + pages * PAGE) // 8)]


def contents(gpa, pages, seed):
    """The same, as bytes."""
    return struct.pack(f'<{pages * PAGE // 8}Q', *words(gpa, pages, seed))


def dma(name, where, direction, count, expect=None, ranges=None):
    """The command "dma"."""
    return (f'dma {name} {where} {(ranges or RANGES)[where]} {direction} '
            f'{count}' + (f' expect {expect}\n' if expect is not None else
                          '\n'))


def lacks_aio(directory, aio):
    """Why QEMU cannot read files like that here, or None."""
    path = os.path.join(directory, 'probe')
    with open(path, 'wb') as f:
        f.truncate(PAGE)
    with Emulator(args=['-machine', 'none']) as vm:
        vm.launch()
        try:
            vm.cmd('blockdev-add', driver='file', node_name='probe',
                   filename=path, aio=aio, cache={'direct': direct(aio)})
        except ExecuteError as error:
            return f'no disks with aio={aio}: {error}'
    return None


def direct(aio):
    """Does it need O_DIRECT?"""
    return aio == 'native'


class Devices:
    """Devices of a guest, and files with what they emit.

    @data: contents that "in" reads from disks and fw_cfg; without it, fw_cfg
           has what was written to it
    @blk: properties of virtio-blk, each after a comma
    @aio: how disks are read
    """

    def __init__(self, directory, names=NAMES, data=b'', blk='', aio='threads'):
        self.path = os.path.join(directory, '')
        self.args = ['-object', 'iothread,id=iothread']
        for name in names:
            path = self.path + name
            node = f'driver=raw,node-name={name},file.driver=file,' \
                   f'file.filename={path},file.aio={aio},' \
                   f'file.cache.direct={"on" if direct(aio) else "off"}'
            net = f'user,id={name},ipv6=off,restrict=on'
            dump = f'filter-dump,id=dump-{name},netdev={name},file={path}'
            # A full disk would stop the guest, and a short write may pass for
            # one.
            report = 'rerror=report,werror=report'
            virtio = 'disable-legacy=on,iommu_platform=on'
            if name in DISKS:
                with open(path, 'wb') as f:
                    f.write(data)
                    f.truncate(DISK_SIZE)
                self.args += ['-blockdev', node]
            elif name in NICS:
                self.args += ['-netdev', net, '-object', dump]
            elif data:
                with open(path, 'wb') as f:
                    f.write(data)
                self.args += ['-fw_cfg', 'name=opt/guest-memfd/data,file=' +
                              path]
            self.args += ['-device', {
                'virtio-blk': f'virtio-blk-pci,drive={name},{virtio},'
                              f'{report}{blk}',
                'nvme': f'nvme,drive={name},serial=1',
                'ahci': f'ide-hd,drive={name},bus=ide.0,{report}',
                'virtio-net': f'virtio-net-pci,netdev={name},romfile=,'
                              f'{virtio}',
                'e1000e': f'e1000e,netdev={name},romfile=',
                'fw_cfg': 'vmcoreinfo'}[name]]

    def emitted(self, name):
        """Bytes that a disk or a network has got."""
        with open(self.path + name, 'rb') as f:
            return f.read()


def words_in(data, wanted):
    """Those of @wanted that are in @data, binary or as hexadecimal text."""
    wanted = {*wanted}
    found = {int(text, 16) for text in re.findall(rb'[0-9a-f]{8,16}', data)}
    for start in range(8):
        end = start + (len(data) - start) // 8 * 8
        found |= wanted.intersection(array.array('Q', data[start:end]))
    return found & wanted


class DmaTest(KvmModeTest):
    """Starts guests with devices."""

    CONFIG = 'generation g2'
    BACKEND = GUEST_MEMFD

    def run_dma(self, commands, devices, **kwargs):
        """An SNP guest, at the end of its list; nothing went wrong."""
        self.log = os.path.join(self.dir, 'log')
        guest = self.launch(self.snp(commands, args=[
            *devices.args, '-d', 'guest_errors', '-D', self.log], **kwargs))
        guest.wait_done()
        self.assertEqual(guest.failures(), [], guest.output())
        guest.assert_runs()
        return guest

    def search(self, guest, wanted):
        """Words of @wanted in the files that QEMU has written: {file: set}"""
        found = {'stderr': words_in((guest.get_log() or '').encode(), wanted)}
        for name in os.listdir(self.dir):
            path = os.path.join(self.dir, name)
            if os.path.isfile(path):
                with open(path, 'rb') as f:
                    found[name] = words_in(f.read(), wanted)
        return {name: there for name, there in found.items() if there}

    def outcomes(self, guest):
        """Numbers of transfers: (done, failed, lost, not started)."""
        rows = re.findall(r' ok dma .*: (\d+) done, (\d+) failed, (\d+) lost, '
                          r'(\d+) not started\n', guest.output())
        return [sum(map(int, column)) for column in zip(*rows)]


class SharedMemory(DmaTest):
    """Devices work with shared memory; without that, Secrets proves nothing."""

    def commands(self, where):
        """Each device reads and writes; the guest checks what was written."""
        text = ''
        for name in NAMES:
            text += f'write {DATA:#x} {PAGES} 9\n'
            text += dma(name, where, 'in', 3, 3)
            if name in NICS:
                text += ''.join(
                    f'mmio-read {gpa + FRAME_AT[name]:#x} 8 expect {ANSWER}\n'
                    for gpa in range(DATA, DATA + PAGES * PAGE, PAGE))
            else:
                text += f'check {DATA:#x} {PAGES} 1\n'
            text += f'write {DATA:#x} {PAGES} 2\n'
            text += dma(name, where, 'out', 3, 3)
        return text

    def check(self, devices):
        """The data that the devices have read is where it should be."""
        data = contents(DATA, PAGES, 2)
        for name in DISKS:
            disk = devices.emitted(name)
            self.assertEqual(disk[OUT:OUT + len(data)], data, name)
            self.assertEqual(disk[:len(data)], contents(DATA, PAGES, 1), name)
        for name in NICS:
            frames = devices.emitted(name)
            for start in range(0, len(data), PAGE):
                self.assertEqual(
                    frames.count(data[start:start + FRAME_SIZE]), 3, name)

    def test_of_an_ordinary_guest(self):
        for where in RANGES:
            with self.subTest(where=where):
                devices = Devices(self.dir, data=contents(DATA, PAGES, 1))
                guest = self.launch(Guest(
                    self.dir, self.firmware, self.commands(where), name=where,
                    args=devices.args))
                guest.wait_done()
                self.assertEqual(guest.failures(), [], guest.output())
                self.check(devices)
                guest.shutdown()

    def test_of_a_guest_with_private_memory(self):
        for where in RANGES:
            with self.subTest(where=where):
                devices = Devices(self.dir, data=contents(DATA, PAGES, 1))
                guest = self.run_dma(
                    f'convert {ALL} shared\n' + self.commands(where), devices,
                    name=where)
                self.check(devices)
                self.assertEqual(guest.end()['host-touches'], 0)

    def test_fw_cfg_has_what_was_written(self):
        word, = words(DATA, 1, 2)[1:2]
        self.run_dma(f'convert {ALL} shared\nwrite {DATA:#x} 1 2\n' +
                     dma('fw_cfg', 'buffer', 'out', 1, 1) +
                     f'write {DATA:#x} 1 9\n' +
                     dma('fw_cfg', 'rings', 'in', 1, 1) +
                     f'mmio-read {DATA + 8:#x} 8 expect {word}\n',
                     Devices(self.dir, ['fw_cfg']))


class Secrets(DmaTest):
    """Nothing that QEMU emits has contents of private memory."""

    SEED = 7

    def commands(self, shared):
        """Memory is all in one state, and every device transfers all of it."""
        text = f'convert {ALL} shared\n' if shared else 'timeout 100\n'
        for name in NAMES:
            for where in RANGES:
                # With rings in private memory, no transfer can succeed.
                n = 3 if shared else 0 if where == 'rings' else None
                for direction in 'in', 'out':
                    text += f'write {ALL} {self.SEED}\n'
                    text += dma(name, where, direction, 3, n)
                    if not shared:
                        text += f'check {DATA:#x} {PAGES} {self.SEED}\n'
        # fw_cfg has no file: the guest prints what it has got.
        return text + (f'timeout 1000000\nconvert {ASIDE:#x} 1 shared\n' +
                       dma('fw_cfg', 'buffer', 'in', 1, 1,
                           {'buffer': f'{ASIDE:#x} 1'}) +
                       f'mmio-read {ASIDE:#x} 8\n')

    def found(self, shared):
        """Secrets in the files that QEMU has written."""
        guest = self.run_dma(self.commands(shared), Devices(self.dir))
        self.assertIsNone(guest.end()['violation'])
        return self.search(guest, words(RINGS, RING_PAGES + PAGES, self.SEED))

    def test_private_pages_are_nowhere(self):
        self.assertEqual(self.found(shared=False), {})

    def test_shared_pages_are_found_everywhere(self):
        found = self.found(shared=True)
        self.assertEqual(found.keys(), {*DISKS, *NICS, 'sim.console'})
        data = words(DATA, PAGES, self.SEED)
        for name in DISKS:
            self.assertEqual(found[name], {*data})


class Race(DmaTest):
    """One vCPU has devices access memory that another one converts.

    ROUNDS: how often each device transfers COUNT times in each way
    """

    SEED = 7
    ROUNDS = 42
    COUNT = 10

    def commands(self, kinds, rounds):
        """Both vCPUs run; in the end all devices have to work."""
        return (f'write {ASIDE:#x} 64 {self.SEED}\ntimeout 20\n'
                f'repeat {rounds}\ncpu 0\n' +
                ''.join(dma(*kind, self.COUNT) for kind in kinds) +
                f'cpu 1\nalternate {self.SEED} {ALL}\nbarrier\nend\ncpu 0\n'
                f'check {ASIDE:#x} 64 {self.SEED}\n'
                f'convert {ALL} shared\ntimeout 1000000\n' +
                ''.join(dma(*kind, 3, 3) for kind in kinds))

    def check_race(self, names=NAMES, ranges=RANGES, rounds=None, **kwargs):
        """Devices work after the race, and no secret was emitted."""
        rounds = rounds or self.ROUNDS
        kinds = [(name, where, direction) for name in names
                 for where in ranges for direction in ('in', 'out')]
        guest = self.run_dma(self.commands(kinds, rounds),
                             Devices(self.dir, names, **kwargs),
                             cpus=2)
        done, *others = self.outcomes(guest)
        self.assertEqual(done + sum(others),
                         len(kinds) * (rounds * self.COUNT + 3))
        # Devices have found memory in both states.
        self.assertGreater(done, rounds)
        self.assertGreater(sum(
            block['counters']['denied'] for block in guest.cmd(
                'query-guest-memfd')['blocks']), rounds)
        self.assertEqual(guest.cmd('query-status')['status'], 'running')
        report = guest.end()
        self.assertIsNone(report['violation'])
        self.assertGreater(report['conversions'], rounds)
        self.assertEqual(self.search(
            guest, words(RINGS, RING_PAGES + PAGES, self.SEED) +
            words(ASIDE, 64, self.SEED)), {})


class RaceHere(Race):
    """On this machine's KVM."""

    def test_10000_transfers_of_6_devices(self):
        self.check_race()

    def check_virtio_blk(self, aio, iothread):
        lacks = lacks_aio(self.dir, aio)
        if lacks:
            self.skipTest(lacks)
        # QEMU 10.2 reads for ever where a ring asks for nothing by io_uring.
        ranges = ['buffer'] if aio == 'io_uring' else RANGES
        self.check_race(['virtio-blk'], ranges, 50, aio=aio,
                        blk=',iothread=iothread' if iothread else '')

    def test_virtio_blk_in_an_iothread(self):
        self.check_virtio_blk('threads', True)

    def test_virtio_blk_with_io_uring(self):
        self.check_virtio_blk('io_uring', False)

    def test_virtio_blk_with_io_uring_in_an_iothread(self):
        self.check_virtio_blk('io_uring', True)

    def test_virtio_blk_with_linux_aio_in_an_iothread(self):
        self.check_virtio_blk('native', True)


class RaceOnAnotherKvm(Race):
    """On a KVM that passes hypercalls on."""

    EMULATED_HOST = ()
    ROUNDS = 4

    def test_transfers_of_6_devices(self):
        self.check_race()
