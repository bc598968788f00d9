# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk requests whose buffer becomes private half-way, before it is used.

The kernel stops at the private page, so the transfer is cut short.  That is an
error of this request: neither the end of the disk nor a full one, which stops
the VM by default.
"""
import os
import re
import sys

from gmemlab.machine import wait_for
from gmemlab.simkvm import snp
from simtest import SimTest, TESTS
from virtio import OPTIONS, PAGE, Driver

sys.path.append(os.path.join(TESTS, 'functional'))
from test_dma import lacks_aio                            # noqa: E402

PAGES = 16
BUFFER = 0x1000000
PRIVATE = BUFFER + PAGES // 2 * PAGE
OTHER_BUFFER = BUFFER + PAGES * PAGE
RINGS = 0x1800000
# Where each request has its header, and a byte for its status
HEADERS, OUTCOMES = RINGS + PAGE, RINGS + 2 * PAGE
TYPE_IN, TYPE_OUT = 0, 1
OK, IO_ERROR, NONE = 0, 1, 0xff
SIZE = PAGES * PAGE


class HalfPrivate(SimTest):
    """A request is throttled; meanwhile its buffer is converted."""

    def disk(self, name):
        """Path of an image whose words are 1."""
        path = os.path.join(self.dir, name)
        with open(path, 'wb') as f:
            f.write((1).to_bytes(8, 'little') * (4 << 17))
        return path

    def request(self, driver, number, kind, buffer):
        """Lines of a script: a transfer of a whole buffer."""
        header, outcome = HEADERS + 16 * number, OUTCOMES + number
        return (f'write {header:#x} 8 {kind}\nwrite {header + 8:#x} 8 0\n'
                f'write {outcome:#x} 1 {NONE}\n') + driver.submit(0, [
                    (header, 16, False), (buffer, SIZE, kind == TYPE_IN),
                    (outcome, 1, True)])

    def number(self, sim, gpa, size):
        """A number in shared memory."""
        text = sim.cmd('human-monitor-command', command_line='xp /1x' + {
            1: 'b', 2: 'h', 8: 'g'}[size] + f' {gpa:#x}')
        return int(re.search(': *(0x[0-9a-f]+)', text)[1], 16)

    def check(self, aio, cache, kind):
        lacks = lacks_aio(self.dir, aio)
        if lacks:
            self.skipTest(lacks)
        driver = Driver(RINGS, [0])
        path = self.disk(f'disk{kind}')
        sim = self.start(
            f'''generation g2
            vcpu 0
            map-gpa {RINGS:#x} 8 shared
            map-gpa {BUFFER:#x} {2 * PAGES} shared
            fill {BUFFER:#x} {PAGES} 1
            ''' + driver.start() +
            self.request(driver, 0, kind, OTHER_BUFFER) +
            self.request(driver, 1, kind, BUFFER) + f'''
            map-gpa {PRIVATE:#x} {PAGES // 2} private
            fill {PRIVATE:#x} {PAGES // 2} 2
            print converted
            halt
            ''', backend=None, confidential=snp(), args=[
                '-bios', self.image,
                # The first request uses up the disk's share of minutes.
                '-drive', f'if=none,id=disk,format=raw,file={path},aio={aio},'
                f'cache={cache},throttling.iops-total=1,'
                'throttling.iops-size=512',
                '-device', 'virtio-blk-pci,drive=disk,id=blk,' + OPTIONS])
        wait_for('the guest', lambda: 'converted' in sim.output(), sim)
        wait_for('the first request', lambda: self.number(
            sim, driver.used_index(0), 2) == 1, sim)
        self.assertEqual(self.number(sim, OUTCOMES, 1), OK)
        with open(path, 'rb') as f:
            before = f.read()
        sim.cmd('human-monitor-command',
                command_line='block_set_io_throttle disk 0 0 0 0 0 0')
        wait_for('the second request', lambda: self.number(
            sim, driver.used_index(0), 2) == 2 or sim.cmd(
                'query-status')['status'] != 'running', sim)
        self.assertEqual(sim.cmd('query-status')['status'], 'running')
        self.assertEqual(self.number(sim, OUTCOMES + 1, 1), IO_ERROR)
        sim.assert_runs()
        # The private half is not on the disk.
        with open(path, 'rb') as f:
            self.assertEqual(f.read()[SIZE // 2:], before[SIZE // 2:])

    def check_both(self, aio, cache):
        for kind in TYPE_IN, TYPE_OUT:
            with self.subTest(kind=kind):
                self.check(aio, cache, kind)

    def test_threads(self):
        self.check_both('threads', 'writeback')

    def test_threads_without_the_page_cache(self):
        self.check_both('threads', 'none')

    def test_native(self):
        self.check_both('native', 'none')

    def test_io_uring(self):
        self.check_both('io_uring', 'writeback')

    def test_io_uring_without_the_page_cache(self):
        self.check_both('io_uring', 'none')
