# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile guests: 1 to 8 vCPUs, seeded; see tests/simkvm/hostile.c.

After each batch, QEMU, the model of the kernel and a discard listener have the
same state of pages, and it is one that the requests and their answers can have
led to.
"""
import os
import select
import tempfile
import unittest

from gmemlab.simkvm import lacks_tdx, snp
from simtest import SimTest

PAGE = 4096
CONVERT = 'KVM_SET_MEMORY_ATTRIBUTES2'
# Three files; low memory ends in the second one, at 128 MiB.
LAYOUT = 'q35,max-ram-below-4g=128M'
NODES = [word for node, size in (('low', 96), ('middle', 96), ('high', 64))
         for word in ('-object', f'memory-backend-guest-memfd,id={node},'
                      f'size={size}M', '-numa', f'node,memdev={node}')]
# Each of these errors comes every so many calls.
PLAN = '\n'.join(f'fault {CONVERT} errno={error} at={at} every={every} '
                 f'times={times}' for error, at, every, times in (
                     ('EAGAIN', 211, 101, 4), ('ENOMEM', 307, 211, 1),
                     ('EINTR', 401, 307, 2)))


def said(sim):
    """Lines of its standard error, but for those of processor and resets."""
    return [line for line in sim.get_log().splitlines()
            if 'CPUID' not in line and 'has been rebuilt' not in line]


class Control:
    """The ends of the model's pipes: it reports each batch, and waits."""

    def __init__(self, directory):
        self.path = tempfile.mkdtemp(dir=directory) + '/control'
        os.mkfifo(self.path + '.out')
        os.mkfifo(self.path + '.in')
        # With O_RDWR, open() does not wait for the other end.
        self.reports = os.open(self.path + '.out', os.O_RDWR)
        self.answer = os.open(self.path + '.in', os.O_RDWR)
        self.rest = b''

    def batch(self, sim):
        """The next report: a digest of private pages; and counts of
        conversions, pages that became private, and shared, so far.
        """
        watch = sim.watch('the next batch')
        while b'\n' not in self.rest:
            watch.check()
            if select.select([self.reports], [], [], 1)[0]:
                self.rest += os.read(self.reports, 4096)
            else:
                if not sim.is_running():
                    sim.wait()
                    raise AssertionError('it has ended: ' +
                                         '\n'.join(said(sim)))
                sim.assert_runs()
        line, _, self.rest = self.rest.partition(b'\n')
        digest, *counts = line.decode().split()
        return digest, *map(int, counts)

    def go_on(self, further):
        """To the next batch, or to the end."""
        os.write(self.answer, b'+' if further else b'-')

    def close(self):
        """Both ends."""
        os.close(self.reports)
        os.close(self.answer)


class Hostile(SimTest):
    """Runs guests, and compares after each batch."""

    def config(self, path, seed, requests, plan, config=''):
        """Configuration of a guest with so many requests in a batch."""
        return f'''
            generation g2
            log /dev/null
            control {path}
            {config}
            {plan}
            vcpu all
            hostile {seed} {requests} forever
            halt
            vcpu 0
            hostile {seed} {requests} forever
            shutdown'''

    def compare(self, sim, digest, to_private, to_shared):
        """QEMU and its listener have that state; no request is in flight."""
        blocks = sim.cmd('query-guest-memfd')['blocks']
        counted = [[block['counters'][name] for block in blocks]
                   for name in ('pages-to-private', 'pages-to-shared')]
        self.assertEqual([*map(sum, counted)], [to_private, to_shared])
        self.assertEqual(sum(block['private'] for block in blocks),
                         (to_private - to_shared) * PAGE)
        listener = '/machine/peripheral/listener'
        self.assertEqual(sim.cmd('qom-get', path=listener, property='digest'),
                         digest, "QEMU's state of pages is not the kernel's")
        self.assertEqual(sim.cmd('qom-get', path=listener, property='check'),
                         '')
        self.assertEqual(sim.cmd('qom-get', path=listener, property='errors'),
                         0)

    def attack(self, guest, conversions, seed=1, cpus=4, requests=500, plan='',
               batch=None):
        """Run batches until so many conversions; returns the report.

        @batch: called with their number after each
        """
        control = Control(self.dir)
        self.addCleanup(control.close)
        config = guest.pop('config', '')
        sim = self.machine(
            self.config(control.path, seed, requests, plan, config), cpus=cpus,
            size='256M', backend=None,
            **{'machine': LAYOUT, **guest, 'args': [
                '-bios', self.image, *NODES, '-device',
                'guest-memfd-testdev,id=listener', *guest.get('args', ())]})
        # QEMU's client fails if an event arrives during QMP's greeting.
        sim.add_args('-S')
        sim.launch()
        self.addCleanup(sim.shutdown, hard=True)
        sim.cmd('cont')
        done = 0
        while done < conversions:
            digest, done, to_private, to_shared = control.batch(sim)
            self.compare(sim, digest, to_private, to_shared)
            if batch:
                batch(done)
            control.go_on(done < conversions)
        sim.wait()
        sim.report = self._check_end(sim.model, sim.exitcode(), 0,
                                     sim.get_log())
        # A long log would fill the disk.
        self.assertLess(len(said(sim)), 10, said(sim))
        return sim


def guests():
    """Arguments of each platform, or the reason for its absence, by name."""
    return {
        'snp': {'confidential': snp()},
        'tdx': lacks_tdx() or {
            'confidential': 'tdx-guest', 'args': ['-cpu', 'host'],
            'machine': LAYOUT + ',kernel-irqchip=split'},
        'swp': {'confidential': 'sw-protected-guest',
                'config': 'vm-types default sw-protected'}}


class Platforms(Hostile):
    """One test for each platform"""

    CPUS = range(1, 9)
    CONVERSIONS = 100000 // 3 // len(CPUS)

    def check(self, platform, **kwargs):
        """A guest of that kind, with 1 to 8 vCPUs."""
        guest = guests()[platform]
        if isinstance(guest, str):
            raise unittest.SkipTest(guest)
        for cpus in self.CPUS:
            with self.subTest(cpus=cpus):
                sim = self.attack(dict(guest), self.CONVERSIONS, seed=cpus,
                                  cpus=cpus, requests=2000 // cpus,
                                  plan=PLAN if cpus > 1 else '')
                self.assertGreater(sim.report['pins-met'], 0)

    def test_snp(self):
        self.check('snp')

    def test_tdx(self):
        self.check('tdx')

    def test_software_protected(self):
        self.check('swp')
