# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversions that are tried again can be stopped, ended and reset."""
import errno

from gmemlab.machine import wait_for
from gmemlab.simkvm import snp
from simtest import SimTest

CONVERT = 'KVM_SET_MEMORY_ATTRIBUTES2'
SCRIPT = '''
    generation g2
    vcpu 0
    map-gpa 0x1000000 16 shared
    pin 0x1005000 1 times={times}
    {request}
    print done
    halt'''
HYPERCALL = '''map-gpa 0x1000000 16 private ret=0
    state 0x1000000 16 private'''
FAULT = '''fault 0x1005000 0x1000 private
    state 0x1005000 1 private'''


def tries(sim):
    """How often a page was found busy."""
    return [c['ret'] for c in sim.model.log(CONVERT)].count(-errno.EAGAIN)


class Snp(SimTest):
    """The guest gives up after any refusal, so the vCPU tries for long."""

    def start_waiting(self, request, times):
        sim = self.start(SCRIPT.format(request=request, times=times),
                         machine='q35', backend=None, confidential=snp(),
                         args=['-bios', self.image])
        wait_for('the page to be found busy', lambda: tries(sim), sim)
        return sim

    def check_goes_on(self, request):
        sim = self.start_waiting(request, 300)
        stops = 0
        while 'done' not in sim.output():
            sim.cmd('stop')
            self.assertEqual(sim.cmd('query-status')['status'], 'paused')
            stopped_at = tries(sim)
            sim.cmd('query-guest-memfd')
            self.assertEqual(tries(sim), stopped_at)
            sim.cmd('cont')
            stops += 1
            waiting = tries(sim) + 20
            wait_for('tries or the end', lambda: tries(sim) >= waiting or
                     'done' in sim.output(), sim)
        self.assertGreater(stops, 3)
        self.assertEqual(tries(sim), 300)
        self.quit(sim)

    def test_a_request_that_was_stopped_goes_on(self):
        self.check_goes_on(HYPERCALL)

    def test_an_access_that_was_stopped_goes_on(self):
        self.check_goes_on(FAULT)

    def test_quit(self):
        for request in HYPERCALL, FAULT:
            with self.subTest(request=request):
                sim = self.start_waiting(request, 'forever')
                self.quit(sim)
                self.assertNotIn('done', sim.output())

    def test_quit_when_stopped(self):
        sim = self.start_waiting(HYPERCALL, 'forever')
        sim.cmd('stop')
        self.quit(sim)

    def test_two_vcpus_that_want_the_same_pages_can_be_stopped(self):
        """Each chunk is whole, and the last request wins."""
        sim = self.start('''
            generation g2
            vcpu all
            barrier
            map-gpa 0x1004000 4 shared
            print two
            halt
            vcpu 0
            map-gpa 0x1000000 16 shared
            pin 0x1008000 1 times=200
            barrier
            map-gpa 0x1000000 16 private contended
            print one
            halt''', machine='q35', backend=None, cpus=2, confidential=snp(),
            args=['-bios', self.image])
        wait_for('the page to be found busy', lambda: tries(sim), sim)
        for _ in range(5):
            sim.cmd('stop')
            sim.cmd('cont')
        wait_for('both', lambda: sorted(sim.output().split()) ==
                 ['one', 'two'], sim)
        self.quit(sim)

    def test_a_reset_drops_the_request(self):
        """It is not made of the new VM, whose guest did not ask for it."""
        sim = self.start('''
            generation g2
            vcpu 0
            map-gpa 0x1000000 16 shared
            pin 0x1005000 1 times=forever
            map-gpa 0x1000000 16 private ret=any contended
            new-vm
            state 0x1000000 32 private
            map-gpa 0x1000000 16 shared
            state 0x1000000 16 shared
            print fresh
            halt''', machine='q35', backend=None, confidential=snp(),
            args=['-bios', self.image, '-action', 'reboot=reset'])
        wait_for('the page to be found busy', lambda: tries(sim), sim)
        sim.cmd('system_reset')
        wait_for('the new VM', lambda: 'fresh' in sim.output(), sim)
        self.quit(sim)


class SwProtected(SimTest):
    """The VM stays at a reset; the next guest must not get an old answer."""

    def start_held(self, requests, *args):
        """A guest that makes these requests while a page is pinned for ever."""
        return self.start(f'''
            generation g2
            vm-types default sw-protected
            vcpu 0
            pin 0x1005000 1 times=forever
            {requests}
            print answered
            halt''', machine='q35', backend=None,
            confidential='sw-protected-guest',
            args=['-bios', self.image, *args])

    def test_a_reset(self):
        sim = self.start_held('map-gpa 0x1000000 16 private ret=any',
                              '-action', 'reboot=reset',
                              '-trace', 'kvm_guest_memfd_hypercall')
        wait_for('the page to be found busy', lambda: tries(sim), sim)
        sim.cmd('system_reset')
        sim.assert_runs()
        self.quit(sim)
        answers = [line for line in sim.get_log().splitlines()
                   if 'kvm_guest_memfd_hypercall' in line]
        self.assertRegex(answers[0], f'private 1 ret {errno.EAGAIN}$')

    def test_a_pinned_page_is_reported(self):
        """An event, counters and a warning; a guest cannot fill the log."""
        sim = self.start_held('''repeat 5
            map-gpa 0x1000000 16 private ret=EAGAIN
            end''')
        wait_for('the answers', lambda: 'answered' in sim.output(), sim)
        counters = next(b['counters'] for b in sim.cmd('query-guest-memfd')
                        ['blocks'] if b['counters']['busy'])
        self.assertEqual(counters['busy-offset'], 0x1005000)
        event = sim.event_wait('GUEST_MEMFD_PAGE_PINNED')['data']
        self.assertEqual(event, {'id': 'pc.ram', 'offset': 0x1005000})
        self.quit(sim)
        warnings = sim.get_log().count(
            "'pc.ram': the page at offset 0x1005000 cannot become private")
        self.assertGreater(warnings, 0)
        self.assertLess(warnings, 5)


class Large(SimTest):
    """A request of any size delays nothing else."""

    CHUNK = 64 << 20

    def start_converting(self, size, **kwargs):
        """A guest that converts so much with one request, again and again."""
        return self.start(f'''
            generation g2
            vm-types default sw-protected
            vcpu 0
            repeat 3
            map-gpa 0x100000000 {(size - (4 << 30)) // 4096} private ret=any
            map-gpa 0x100000000 {(size - (4 << 30)) // 4096} shared ret=any
            end
            print done
            halt''', machine='q35', backend=None, size=f'{size >> 30}G',
            confidential='sw-protected-guest', args=[
                '-bios', self.image, '-cpu', 'host,phys-bits=46'], **kwargs)

    def test_900_gibibytes_are_converted_in_chunks(self):
        """Between two chunks the vCPU can be stopped: "stop" waits for one.
        And the request allocates nothing.

        At the real kernel's 0.3 us a page, that is 5 ms.
        """
        sim = self.start_converting(900 << 30)
        wait_for('conversions', lambda: len(sim.model.log(CONVERT)) > 100, sim)
        for _ in range(3):
            sim.cmd('stop')
            calls = sim.model.log(CONVERT)
            self.assertEqual(sim.cmd('query-status')['status'], 'paused')
            self.assertEqual(len(sim.model.log(CONVERT)), len(calls))
            sim.cmd('cont')
            wait_for('conversions', lambda: len(sim.model.log(CONVERT)) >
                     len(calls), sim)
        self.assertNotIn('done', sim.output())
        self.assertLess(sim.block('pc.ram')['allocated'], 1 << 30)
        # The reset, which makes all RAM shared, converts from offset 0.
        sizes = {call['size'] for call in calls if call['offset']}
        self.assertLessEqual(max(sizes), self.CHUNK)
        self.quit(sim)
