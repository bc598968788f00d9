# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversions that a confidential guest asks for, with separate memory.

QEMU's own code does this.
"""
import errno

from gmemlab.machine import wait_for
from gmemlab.simkvm import snp
from simtest import SimTest

SET = 'KVM_SET_MEMORY_ATTRIBUTES'


class ConversionTest(SimTest):
    """Has SNP guests."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.guest = {'backend': None, 'size': '256M', 'confidential': snp(),
                     'args': ['-bios', cls.image]}
        cls.config = 'generation g1\n'

    def run_guest(self, script, config='', **kwargs):
        """A guest with that script ends well."""
        return self.play(self.config + config + script, **self.guest, **kwargs)

    def conversions(self, sim):
        """The calls of a guest that runs: (gpa, size, attributes)."""
        log = sim.model.log()
        first = [call['call'] for call in log].index('SNP_LAUNCH_FINISH')
        return [(call['gpa'], call['size'], call['attributes'])
                for call in log[first:] if call['call'] == SET]


class Done(ConversionTest):
    """Requests that are granted"""

    def test_a_range_is_converted_and_its_old_memory_goes(self):
        sim = self.run_guest('''
            vcpu 0
            fill 0x100000 16 1
            map-gpa 0x100000 16 shared
            state 0xff000 1 private
            state 0x100000 16 shared
            state 0x110000 1 private
            read 0x100000 8 expect=0
            fill 0x100000 16 2
            check 0x100000 16 2
            map-gpa 0x108000 4 private
            state 0x107000 1 shared
            state 0x108000 4 private
            state 0x10c000 1 shared
            fill 0x108000 4 3
            check 0x108000 4 3
            check 0x100000 8 2
            check 0x10c000 4 2
            shutdown''')
        self.assertEqual(self.conversions(sim), [(0x100000, 0x10000, 0),
                                                 (0x108000, 0x4000, 8)])
        self.assertEqual([(call['mode'], call['offset'], call['size'])
                          for call in sim.model.log('fallocate')],
                         [(3, 0x100000, 0x10000)])
        self.assertEqual(sim.report['pages-to-shared'], 16)

    def test_memory_faults_convert_a_page(self):
        sim = self.run_guest('''
            vcpu 0
            fault 0x200000 0x1000 private
            fault 0x200000 0x1000 shared
            fault 0x200000 0x1000 shared
            fault 0x200000 0x1000 private
            shutdown''')
        self.assertEqual(self.conversions(sim), [(0x200000, 0x1000, 0),
                                                 (0x200000, 0x1000, 8)])
        self.assertEqual(len(sim.model.log('KVM_EXIT_MEMORY_FAULT')), 2)

    def test_a_range_without_memory_becomes_shared(self):
        sim = self.run_guest('''
            vcpu 0
            map-gpa 0xfec00000 1 shared
            map-gpa 0xc0000000 0x1000 shared
            shutdown''')
        self.assertEqual(self.conversions(sim), [])

    def test_four_vcpus_convert_the_same_pages(self):
        sim = self.run_guest('''
            vcpu all
            random 7 500 0x100000 512
            barrier
            halt
            vcpu 0
            random 7 500 0x100000 512
            barrier
            shutdown''', cpus=4)
        self.assertGreater(sim.report['conversions'], 500)
        self.assertEqual({call['vcpu'] for call in
                          sim.model.log('KVM_EXIT_HYPERCALL')}, {0, 1, 2, 3})

    def test_memory_that_cannot_be_faulted_in_does_not_matter(self):
        self.run_guest('''
            vcpu 0
            map-gpa 0x100000 16 shared
            state 0x100000 16 shared
            shutdown''', 'fault KVM_PRE_FAULT_MEMORY errno=ENOMEM')


class Refused(ConversionTest):
    """A request that fails is answered with an error; the guest runs on."""

    def check(self, line, config=''):
        with self.subTest(line=line, config=config):
            sim = self.run_guest(f'vcpu 0\n{line}\nprint answered\nshutdown',
                                 config + '\n')
            self.assertEqual(sim.output(), 'answered\n')
            return sim

    def test_requests_that_make_no_sense(self):
        for line in ('map-gpa 0x100800 1 shared ret=EINVAL',
                     'map-gpa 0x100000 0 shared ret=EINVAL',
                     'map-gpa 0xfec00000 1 private ret=EINVAL',
                     'map-gpa 0xc0000000 1 private ret=EINVAL',
                     'map-gpa 0xffff000 2 private ret=EINVAL',
                     'map-gpa 0xffff000 2 shared'):
            self.check(line)

    def test_memory_that_cannot_be_private_stops_it(self):
        sim = self.start(f'{self.config}vcpu 0\n'
                         'fault 0xc0000000 0x1000 private', **self.guest)
        wait_for('the guest to stop', lambda: sim.cmd(
            'query-status')['status'] == 'internal-error', sim)

    def test_calls_that_fail(self):
        before = len(self.run_guest('vcpu 0\nshutdown').model.log(SET))
        for plan, ret in ((f'{SET} errno=ENOMEM at={before + 1}', 'EAGAIN'),
                          ('fallocate errno=EIO', 'EINVAL')):
            sim = self.check(f'map-gpa 0x100000 16 shared ret={ret}',
                             'fault ' + plan)
            self.assertEqual(sim.report['faults-injected'], 1)
            call = plan.split()[0]
            error = getattr(errno, plan.split()[1].partition('=')[2])
            self.assertIn(-error, [c['ret'] for c in sim.model.log(call)])

    def test_pages_converted_before_a_failure_stay_converted(self):
        before = len(self.run_guest('vcpu 0\nshutdown').model.log(SET))
        self.run_guest('''
            vcpu 0
            fill 0x108000 4 2
            map-gpa 0x100000 4 shared
            fill 0x100000 4 1
            map-gpa 0x100000 16 shared ret=EAGAIN
            state 0x100000 4 shared
            check 0x100000 4 1
            state 0x104000 12 private
            check 0x108000 4 2
            shutdown''', f'fault {SET} errno=ENOMEM at={before + 2}\n')
