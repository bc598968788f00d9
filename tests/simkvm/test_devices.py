# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that the guest has access private memory."""
import os
import re
import signal
import struct

from gmemlab.machine import wait_for
from gmemlab.simkvm import snp
from simtest import SimTest

SCRIPT = '''
    generation g2
    vcpu 0
    halt'''
ARGS = ['-object', 'iothread,id=io0', '-blockdev', 'null-co,node-name=d0',
        '-device', 'virtio-blk-pci,drive=d0,iothread=io0,disable-legacy=on,'
        'iommu_platform=on']


def blocked(pid):
    """Threads that block SIGBUS, by name."""
    names = []
    for task in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{task}/status', encoding='ascii') as f:
            status = f.read()
        mask = int(re.search(r'^SigBlk:\s*(\w+)', status, re.M)[1], 16)
        if mask >> (signal.SIGBUS - 1) & 1:
            names.append(re.search(r'^Name:\s*(.*)', status)[1])
    return names


class Threads(SimTest):
    """A touch of a private page raises SIGBUS in the thread that made it.

    If that thread blocks the signal, QEMU is killed.  Libraries of block
    devices (librbd, gluster) start threads, which inherit the signal mask of
    the thread that configures block devices.
    """

    def check(self, **kwargs):
        sim = self.start(SCRIPT, machine='q35', **kwargs)
        self.assertEqual(blocked(sim.get_pid()), [])

    def test_of_an_ordinary_guest(self):
        """Its threads start before QEMU knows that memory can be private."""
        self.check(args=ARGS)

    def test_of_a_confidential_guest(self):
        self.check(backend=None, confidential=snp(),
                   args=['-bios', self.image, *ARGS])


class Counters(SimTest):
    """Denied accesses of devices are counted, and reported by an event."""

    PRIVATE = 0x2000000
    REQUEST = 0x1000000

    def dma(self, size):
        """Lines that have fw_cfg write zeros, from PRIVATE on.

        FWCfgDmaAccess has control, length and address, all big-endian; 0xffff
        selects no item, 0xa is to select and to read.
        """
        words = struct.unpack('<2Q', struct.pack('>2IQ', 0xffff000a, size,
                                                 self.PRIVATE))
        low, = struct.unpack('<I', struct.pack('>I', self.REQUEST))
        return f'''
            map-gpa {self.REQUEST:#x} 1 shared
            write {self.REQUEST:#x} 8 {words[0]:#x}
            write {self.REQUEST + 8:#x} 8 {words[1]:#x}
            out 0x514 4 0
            out 0x518 4 {low:#x}'''

    def run_guest(self, confidential, script):
        """Returns the machine after the script, and its counters."""
        sim = self.start(f'''
            generation g2
            vcpu 0
            {script}
            print x
            halt''', machine='q35,kernel-irqchip=split', backend=None,
            confidential=confidential,
            args=['-bios', self.image, '-cpu', 'host'])
        wait_for('the guest', lambda: 'x' in sim.output(), sim)
        return sim, next(block['counters'] for block in sim.cmd(
            'query-guest-memfd')['blocks'] if block['size'] > 16 << 20)

    def test_a_launch_is_no_access_of_a_device(self):
        for confidential in snp(), 'tdx-guest':
            with self.subTest(confidential):
                _, counters = self.run_guest(confidential, '')
                self.assertEqual(counters['denied'], 0)
                self.assertEqual(counters['touched'], 0)

    def test_dma_is_refused_in_steps_of_8_bytes(self):
        """A step takes the same time however much memory is private."""
        sim, counters = self.run_guest(snp(), self.dma(4 << 20))
        self.assertEqual(counters['denied'], (4 << 20) // 8)
        self.assertEqual(counters['touched'], 0)
        event = sim.event_wait('GUEST_MEMFD_PRIVATE_TOUCHED')['data']
        self.assertEqual(event['touched'], 0)
        self.assertGreater(event['denied'], 0)
        self.assertIn(event['offset'] - self.PRIVATE, range(4 << 20))
        sim.assert_runs()
