# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversions that a confidential guest asks for, in place."""
from gmemlab.machine import wait_for
from gmemlab.simkvm import snp
from simtest import SimTest

CONVERT = 'KVM_SET_MEMORY_ATTRIBUTES2'
CPUS = 4
# Two files; the second begins at 0x8000000.
NODES = ['-object', 'memory-backend-guest-memfd,id=low,size=128M',
         '-object', 'memory-backend-guest-memfd,id=high,size=128M',
         '-numa', 'node,memdev=low', '-numa', 'node,memdev=high']


class Conversions(SimTest):
    """Requests of SNP guests with memory in two files."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.guest = {'backend': None, 'size': '256M', 'confidential': snp(),
                     'args': ['-bios', cls.image, *NODES]}

    def run_guest(self, script, config='', **kwargs):
        """A guest with that script ends well."""
        return self.play('generation g2\n' + config + script, **self.guest,
                         **kwargs)

    def conversions(self, sim):
        """The calls of a guest that runs: (offset, size, attributes, ret)."""
        log = sim.model.log()
        first = [call['call'] for call in log].index('SNP_LAUNCH_FINISH')
        return [(call['offset'], call['size'], call['attributes'], call['ret'])
                for call in log[first:] if call['call'] == CONVERT]

    def test_qemu_has_the_state_that_the_kernel_has(self):
        sim = self.start(f'''
            generation g2
            vcpu all
            random 7 500 0 65536
            print x''', cpus=CPUS, **self.guest)
        wait_for('the guest', lambda: sim.output().count('x') == CPUS, sim)
        blocks = sim.cmd('query-guest-memfd')['blocks']
        self.quit(sim)
        count = {name: sum(block['counters'][name] for block in blocks)
                 for name in ('pages-to-private', 'pages-to-shared')}
        self.assertGreater(len(self.conversions(sim)), 500)
        self.assertEqual(count, {name: sim.report[name] for name in count})
        self.assertEqual(sum(block['private'] for block in blocks),
                         4096 * (count['pages-to-private'] -
                                 count['pages-to-shared']))

    def test_a_range_that_is_so_already_costs_no_call(self):
        sim = self.run_guest('''
            vcpu 0
            map-gpa 0x100000 16 private
            map-gpa 0x100000 16 shared
            map-gpa 0x100000 16 shared
            map-gpa 0x104000 4 shared
            shutdown''')
        self.assertEqual(self.conversions(sim), [(0x100000, 0x10000, 0, 0)])

    def test_a_mixed_range_is_converted_with_one_call(self):
        sim = self.run_guest('''
            vcpu 0
            map-gpa 0x104000 4 shared
            map-gpa 0x10c000 1 shared
            map-gpa 0x100000 16 shared
            state 0x100000 16 shared
            map-gpa 0x100000 16 private
            state 0x100000 16 private
            shutdown''')
        self.assertEqual(self.conversions(sim)[2:], [
            (0x100000, 0x10000, 0, 0), (0x100000, 0x10000, 8, 0)])

    def test_a_range_of_two_files(self):
        sim = self.run_guest('''
            vcpu 0
            map-gpa 0x7ffe000 5 shared
            state 0x7ffe000 5 shared
            fill 0x7ffe000 5 1
            check 0x7ffe000 5 1
            map-gpa 0x7ffe000 5 private
            state 0x7ffd000 7 private
            shutdown''')
        self.assertEqual(sorted(self.conversions(sim)), [
            (0, 0x3000, 0, 0), (0, 0x3000, 8, 0),
            (0x7ffe000, 0x2000, 0, 0), (0x7ffe000, 0x2000, 8, 0)])

    def test_a_page_that_is_held_for_a_moment(self):
        script = '''
            vcpu 0
            map-gpa 0x100000 16 shared
            map-gpa 0x100000 16 private
            state 0x100000 16 private
            shutdown'''
        calls = self.run_guest(script).report['calls'][CONVERT]
        sim = self.run_guest(script, f'fault {CONVERT} errno=EAGAIN '
                                     f'at={calls} times=4 offset=0x105000\n')
        self.assertEqual(self.conversions(sim), [
            (0x100000, 0x10000, 0, 0),
            *[(0x100000, 0x10000, 8, -11)] * 3,
            # From now on, the pages before it are converted first.
            (0x100000, 0x5000, 8, -11), (0x100000, 0x5000, 8, 0),
            (0x105000, 0xb000, 8, 0)])

    def test_a_range_without_memory_becomes_shared(self):
        sim = self.run_guest('''
            vcpu 0
            map-gpa 0xfec00000 1 shared
            map-gpa 0xe0000000 4096 shared
            shutdown''')
        self.assertEqual(self.conversions(sim), [])

    def test_nothing_is_punched(self):
        """Defect 2 of prior art: the legacy habit."""
        sim = self.run_guest('''
            vcpu 0
            fill 0x100000 16 1
            map-gpa 0x100000 16 shared
            map-gpa 0x100000 16 private
            shutdown''')
        self.assertEqual(sim.model.log('fallocate'), [])
