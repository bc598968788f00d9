# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers in flight while their memory becomes private.

The pages are held by threads, io_uring, vhost in the kernel, or a process
behind vhost-user.  A transfer succeeds or fails; device and guest go on.
"""
import os
import re
import signal
import struct
import subprocess
import tempfile

from gmemlab import build_dir, kernel
from gmemlab.initramfs import BUSYBOX
from gmemlab.machine import GUEST_MEMFD, wait_for
from test_dma import lacks_aio
from test_simkvm import KvmModeTest

PAGE = 4096
GPA, PAGES = 0x1000000, 8
SEED = 7
WRITTEN = 2048 * 512    # where the driver writes the disk
NET_MODULES = {'vhost_net': '/dev/vhost-net', 'tun': '/dev/net/tun'}
# A script that QEMU runs with the name of its TAP device.  Nothing else sends
# packets there.
TAP_SCRIPT = f'''#!/bin/sh -e
ipv6=/proc/sys/net/ipv6/conf/$1/disable_ipv6
[ ! -e $ipv6 ] || echo 1 > $ipv6
{BUSYBOX} ifconfig $1 10.0.2.2 netmask 255.255.255.0 up
'''


def pattern():
    """Bytes that the firmware's "check" expects at GPA."""
    low, odd = (1 << 64) - 1, 0xd6e8feb86659fd93
    x = (SEED + 1) * odd & low
    x = (x ^ x >> 32) * odd & low
    x ^= x >> 32
    return b''.join(struct.pack('<Q', x + at // 8 * 0x9e3779b97f4a7c15 & low)
                    for at in range(GPA, GPA + PAGES * PAGE, 8))


def one_converts(device, times, kind):
    """A list: a vCPU transfers, and another one converts that memory.

    At its begin and end, the memory is shared and no vCPU converts.
    """
    check = f'check {GPA} {PAGES} {SEED}\n' if device == 'virtio-blk' else ''
    works = f'dma {device} buffer {GPA} {PAGES} in 3 expect 3\n{check}' \
            f'dma {device} buffer {GPA} {PAGES} out 3 expect 3\n'
    return f'convert {GPA} {PAGES} shared\n{works}' \
           f'cpu all\nbarrier\ncpu 1\nalternate 1 {GPA} {PAGES}\n' \
           'cpu 0\ntimeout 20\n' + ''.join(
               f'dma {device} {kind} {GPA} {PAGES} {way} {times}\n'
               for way in ('in', 'out')) + \
           'cpu all\nbarrier\ncpu 0\ntimeout 1000000\n' \
           f'convert {GPA} {PAGES} shared\n{works}'


class PinTest(KvmModeTest):
    """SNP guests, converted in place."""

    CONFIG = 'generation g2'
    BACKEND = GUEST_MEMFD

    def sim(self, commands, config, args=(), more=(), **kwargs):
        return super().sim(commands, config, args=[*args, *more], **kwargs)

    def setUp(self):
        super().setUp()
        self.log = self.counters = None

    def disk(self):
        """Path of a disk's image, which begins with pattern()."""
        path = os.path.join(self.dir, 'disk')
        with open(path, 'wb') as f:
            f.write(pattern())
            f.truncate(4 << 20)
        return path

    def check_written(self):
        """The disk was read to shared memory, and written from there."""
        with open(os.path.join(self.dir, 'disk'), 'rb') as f:
            f.seek(WRITTEN)
            self.assertEqual(f.read(PAGES * PAGE), pattern())

    def outcomes(self, guest, times):
        """Outcomes of transfers while memory was converted.

        Returns [done, failed, lost, not started] of each such command.
        """
        return [counts for counts in (
            [int(n) for n in match] for match in re.findall(
                r': (\d+) done, (\d+) failed, (\d+) lost, (\d+) not started',
                guest.output())) if sum(counts) == times]

    def check_pinned(self, device, times, more, kind='buffer'):
        """Play one_converts(); returns its outcomes.

        Sets self.log to the emulator's standard error, and self.counters to
        those of the memory.
        """
        guest = self.snp(one_converts(device, times, kind), cpus=2, more=more)
        self.launch(guest)
        wait_for('the end of the commands', lambda: '] done, ' in
                 guest.output() or not guest.is_running(), guest)
        guest.assert_runs()
        self.assertEqual(guest.failures(), [], guest.output())
        # There were conversions meanwhile.
        converted = re.search(r'alternate .*: (\d+) converted', guest.output())
        self.assertGreater(int(converted[1]), 10)
        outcomes = self.outcomes(guest, times)
        self.assertEqual(len(outcomes), 2, guest.output())
        self.counters = guest.block()['counters']
        self.assertIsNone(guest.end()['violation'])
        self.log = guest.get_log()
        if device == 'virtio-blk':
            self.check_written()
        return outcomes


class Aio(PinTest):
    """A disk whose requests wait long enough to see many conversions."""

    TIMES = 40

    def drive(self, aio):
        return ['-drive', f'if=none,id=disk,format=raw,file={self.disk()},'
                f'cache=none,aio={aio},throttling.iops-total=200',
                '-device', 'virtio-blk-pci,drive=disk']

    def check_aio(self, aio):
        lacks = lacks_aio(self.dir, aio)
        if lacks:
            self.skipTest(lacks)
        for done, failed, lost, not_started in self.check_pinned(
                'virtio-blk', self.TIMES, self.drive(aio)):
            # Some transfers have met a conversion.
            self.assertGreater(failed + lost + not_started, 0)

    def test_threads(self):
        self.check_aio('threads')

    def test_native(self):
        self.check_aio('native')

    def test_io_uring(self):
        self.check_aio('io_uring')

    def test_pages_that_are_pinned_for_a_while(self):
        # All conversions to private of a page fail, many times in a row.
        # File 0 is QEMU's probe.
        self.CONFIG += f'\npin {GPA} {PAGE} file=1 times=50'
        self.check_pinned('virtio-blk', self.TIMES, self.drive('threads'))
        self.assertGreaterEqual(self.counters['busy'], 50)

    def test_rings(self):
        for done, *_ in self.check_pinned('virtio-blk', self.TIMES,
                                          self.drive('threads'), 'rings'):
            self.assertLess(done, self.TIMES)


class VhostUser(PinTest):
    """Another process has the memory mapped, as the user allows."""

    PROPERTIES = ',share-file=on'

    def backend(self):
        """Arguments of QEMU for its disk, and the process."""
        path = os.path.join(self.dir, 'vhost')
        process = subprocess.Popen(
            [os.path.join(build_dir(), 'qemu/gmem/tests/vhost-user-blk'),
             '-s', path, '-b', self.disk()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        wait_for('the back end', lambda: os.path.exists(path))
        return ['-chardev', 'socket,id=c,path=' + path, '-device',
                'vhost-user-blk-pci,chardev=c,iommu_platform=off'], process

    def test_conversions_go_on(self):
        args, process = self.backend()
        self.check_pinned('virtio-blk', 200, args)
        self.assertIn(process.poll(), (None, 0))

    def test_a_back_end_that_dies(self):
        args, process = self.backend()
        guest = self.launch(self.snp(
            f'convert {GPA} {PAGES} shared\n'
            f'dma virtio-blk buffer {GPA} {PAGES} in 3 expect 3\n'
            f'cpu all\nbarrier\ncpu 1\nalternate 1 {GPA} {PAGES}\n'
            f'cpu 0\ntimeout 1\nrepeat 60\n'
            f'dma virtio-blk buffer {GPA} {PAGES} in 10\nend\n'
            f'cpu all\nbarrier\n', cpus=2, more=args))
        # A touch of a private page would kill it so.
        wait_for('transfers', lambda: guest.output().count('ok dma') > 3,
                 guest)
        process.send_signal(signal.SIGBUS)
        process.wait()
        guest.wait_done()
        self.assertEqual(guest.failures(), [], guest.output())
        # The guest was still transferring.
        self.assertIn(' 0 done, 0 failed, 10 lost', guest.output())
        guest.assert_runs()
        guest.end()


class VhostKernel(PinTest):
    """The kernel moves packets, by QEMU's mapping."""

    EMULATED_HOST = ()
    TIMES = 100

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        wanted = [name for name, device in NET_MODULES.items()
                  if not os.path.exists(device)]
        if not wanted:
            return
        release = os.uname().release
        found = kernel.Kernel(kernel.chosen())
        if found.release != release:
            cls.skipTest(cls, f'no modules of {release}: KERNEL=bzImage')
        with tempfile.TemporaryDirectory(prefix='gmem-') as directory:
            for name, data in found.modules(wanted).items():
                path = os.path.join(directory, name + '.ko')
                with open(path, 'wb') as f:
                    f.write(data)
                subprocess.run([BUSYBOX, 'insmod', path], check=True)

    def check_vhost(self, kind):
        script = os.path.join(self.dir, 'tap-is-made')
        with open(script, 'w', encoding='ascii') as f:
            f.write(TAP_SCRIPT)
        os.chmod(script, 0o700)
        return self.check_pinned('virtio-net', self.TIMES, [
            '-netdev', f'tap,id=net,script={script},downscript=no,'
            'vhost=on,vhostforce=on',
            '-device', 'virtio-net-pci,netdev=net'], kind=kind)

    def test_buffers(self):
        self.check_vhost('buffer')
        # QEMU did not fall back to its own virtio-net.
        self.assertNotIn('falling back', self.log)

    def test_rings(self):
        for done, *_ in self.check_vhost('rings'):
            self.assertLess(done, self.TIMES)
        # The kernel did meet private pages.
        self.assertIn('vhost vring error', self.log)
