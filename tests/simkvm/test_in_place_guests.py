# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose memory is converted in place, once they run."""
import os

from gmemlab.machine import GUEST_MEMFD, wait_for
from qemu.qmp import ExecuteError
from test_in_place import CONVERT, HALT, IN_PLACE, SEPARATE
from test_launch import SnpLaunchTest, TdxLaunchTest


class Guests:
    """The tests of both platforms."""

    def run_guest(self, script, **kwargs):
        """It ends without an error or a touch of private memory."""
        sim = self.launch(IN_PLACE, script=script, **kwargs)
        self.assertEqual(sim.report['host-touches'], 0)
        return sim

    def conversions(self, sim):
        """Conversions since the launch: (offset, size, private)."""
        log = sim.model.log()
        launched = [call['call'] for call in log].index(self.COMMANDS[-1])
        return [(call['offset'], call['size'], call['attributes'] == 8)
                for call in log[launched:] if call['call'] == CONVERT]

    def test_ranges_are_converted_and_their_neighbours_kept(self):
        sim = self.run_guest(HALT + '''
            vcpu 0
            fill 0x1000000 32 1
            map-gpa 0x1008000 16 shared
            state 0x1000000 8 private
            state 0x1008000 16 shared
            state 0x1018000 8 private
            fill 0x1008000 16 2
            check 0x1000000 8 1
            check 0x1008000 16 2
            map-gpa 0x100c000 4 private
            fill 0x100c000 4 3
            check 0x1008000 4 2
            check 0x100c000 4 3
            check 0x1010000 8 2
            map-gpa 0x1000000 32 private
            state 0 0x10000 private
            shutdown''')
        self.assertEqual(self.conversions(sim), [
            (0x1008000, 0x10000, False), (0x100c000, 0x4000, True),
            (0x1008000, 0x10000, True)])
        # No memory is freed and allocated again.
        self.assertNotIn('fallocate', sim.report['calls'])

    def test_memory_faults_convert_a_page(self):
        sim = self.run_guest(HALT + '''
            vcpu 0
            fault 0x1000000 0x1000 private
            fault 0x1000000 0x1000 shared
            fault 0x1000000 0x1000 shared stale
            fault 0x1000000 0x1000 private
            shutdown''')
        self.assertEqual(self.conversions(sim), [(0x1000000, 0x1000, False),
                                                 (0x1000000, 0x1000, True)])

    def test_eight_vcpus_convert_the_same_pages(self):
        sim = self.run_guest('''
            vcpu all
            random 7 500 0x1000000 512
            barrier
            halt
            vcpu 0
            random 7 500 0x1000000 512
            barrier
            map-gpa 0x1000000 512 private
            state 0 0x10000 private
            shutdown''', cpus=8)
        self.assertGreater(sim.report['conversions'], 500)

    def test_memory_does_not_grow_with_conversions(self):
        # A pass through both states; each page is written in each of them.
        sim = self.run_guest(HALT + '''
            vcpu 0
            fill 0x1000000 0x4000 1
            repeat 3
            map-gpa 0x1000000 0x4000 shared
            fill 0x1000000 0x4000 2
            map-gpa 0x1000000 0x4000 private
            fill 0x1000000 0x4000 3
            end
            shutdown''')
        self.assertEqual(sim.report['peak']['other'], 0)
        self.assertLess(sim.report['peak']['total'], 65 << 20)

    def plug(self, plan=''):
        """Plug memory into a guest that runs.  Returns the machine.

        With a plan, the first attempt fails.
        """
        sim = self.start(IN_PLACE + plan + HALT, **self.guest(
            size='256M,slots=1,maxmem=1G'))
        memory = {'qom_type': GUEST_MEMFD, 'id': 'more', 'size': 128 << 20}
        if plan:
            with self.assertRaisesRegex(ExecuteError, "'more' cannot be made "
                                        'private: Cannot allocate memory'):
                sim.cmd('object-add', **memory)
            self.assertNotIn('more', sim.blocks())
        sim.cmd('object-add', **memory)
        sim.cmd('device_add', driver='pc-dimm', id='dimm', memdev='more')
        self.assertEqual(
            {(b['state'], b['shared']) for b in sim.blocks().values()},
            {('private', 0)})
        self.assertIn('more', sim.blocks())
        return sim

    def test_memory_that_is_plugged_in_is_private(self):
        sim = self.plug()
        self.plug(f'\nfault {CONVERT} errno=ENOMEM '
                  f'at={len(sim.model.log(CONVERT))}')

    def test_memory_that_is_removed_leaves_nothing_behind(self):
        sim = self.start(IN_PLACE + HALT, **self.guest())
        files = f'/proc/{sim.get_pid()}/fd'
        before = None
        for _ in range(3):
            sim.cmd('object-add', qom_type=GUEST_MEMFD, id='more',
                    size=16 << 20)
            sim.cmd('object-del', id='more')
            wait_for('the mapping to go', lambda: not [
                m for m in sim.maps() if self.size_of(m) == 16 << 20], sim)
            self.assertEqual(len(os.listdir(files)),
                             before or len(os.listdir(files)))
            before = len(os.listdir(files))

    @staticmethod
    def size_of(mapping):
        """Size in bytes of a mapping, a line of /proc/PID/maps."""
        start, end = (int(x, 16) for x in mapping[0].split('-'))
        return end - start

    def test_nothing_else_is_mapped(self):
        for backend in (None, GUEST_MEMFD, 'memory-backend-memfd',
                        'memory-backend-ram,share=on'):
            with self.subTest(backend=backend):
                sim = self.start(IN_PLACE + HALT,
                                 **{**self.guest(), 'backend': backend,
                                    'size': '77M'})
                # The model's own mapping; and QEMU's, where it is private
                names = {m[-1] for m in sim.maps()
                         if self.size_of(m) > 70 << 20 and m[1] == 'rw-s'}
                self.assertEqual(names, {
                    f'/memfd:simkvm-{name} (deleted)'
                    for name in ('guest_memfd', 'private')})
                self.quit(sim)

    def test_it_ends_as_with_separate_memory(self):
        ends = []
        for config in SEPARATE, IN_PLACE:
            sim = self.machine(config + HALT, **self.guest())
            sim.add_args('-S')
            sim.launch()
            self.addCleanup(sim.shutdown, hard=True)
            sim.cmd('cont')
            sim.cmd('quit')
            sim.wait()
            ends.append((sim.exitcode(), sim.get_log(),
                         sim.model.report()['violation']))
        self.assertEqual(ends[0], ends[1])
        status, _, violation = ends[1]
        self.assertEqual((status, violation), (0, None))


class Snp(Guests, SnpLaunchTest):
    """SEV-SNP."""


class Tdx(Guests, TdxLaunchTest):
    """TDX."""
