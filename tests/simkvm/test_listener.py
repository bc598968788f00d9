# SPDX-License-Identifier: GPL-2.0-or-later
"""Notifications of a device that maps shared memory: guest-memfd-testdev.

The device checks its notifications, see its file; here it is asked for errors.
"""
import hashlib
import random
import time

from gmemlab.machine import GUEST_MEMFD, wait_for
from simtest import SimTest
from test_launch import LaunchTest, SnpLaunchTest, TdxLaunchTest

DEVICE = 'guest-memfd-testdev,id=listener'
OTHER = 'guest-memfd-testdev,id=other'
CONVERT = 'KVM_SET_MEMORY_ATTRIBUTES2'
# Two blocks, which meet at 0x8000000.
NODES = ['-object', f'{GUEST_MEMFD},id=low,size=128M',
         '-object', f'{GUEST_MEMFD},id=high,size=128M',
         '-numa', 'node,memdev=low', '-numa', 'node,memdev=high']


def digest(*runs):
    """The property of that name, for runs of private pages: (gpa, size)"""
    text = ''.join(f'{gpa:x} {size:x}\n' for gpa, size in runs)
    return hashlib.sha256(text.encode()).hexdigest()


def requests(seed, count, gpa, pages):
    """Lines of a script: random conversions of parts of a range."""
    rand = random.Random(seed)
    lines = []
    for _ in range(count):
        first = rand.randrange(pages)
        size = rand.randint(1, min(32, pages - first))
        lines.append(f'map-gpa {gpa + (first << 12):#x} {size} '
                     f'{rand.choice(("private", "shared"))} ret=any')
    return '\n'.join(lines)


class Anywhere:
    """Tests for separate memory and for memory in place.

    RAM is private when a guest starts.
    """

    GENERATION = 'g2'

    def ask(self, sim, name, device='listener'):
        """A property of the device."""
        return sim.cmd('qom-get', path='/machine/peripheral/' + device,
                       property=name)

    def set(self, sim, name, value, device='listener'):
        """Set a property of the device."""
        sim.cmd('qom-set', path='/machine/peripheral/' + device,
                property=name, value=value)

    def check_listener(self, sim, device='listener'):
        """The device has found no error, and finds none now."""
        self.assertEqual(self.ask(sim, 'check', device), '')
        self.assertEqual(self.ask(sim, 'errors', device), 0, sim.get_log())

    def prepare(self, script, config='', args=(), **kwargs):
        """A machine that is launched, with a listener.  No vCPU runs yet."""
        sim = self.machine(
            f'generation {self.GENERATION}\n{config}\n{script}\n',
            **self.guest(args=['-device', DEVICE, *args], **kwargs))
        sim.add_args('-S')
        sim.launch()
        self.addCleanup(self.quit, sim)
        self.check_listener(sim)
        return sim

    def go(self, sim, done=1):
        """Let the guest run until so many vCPUs have printed x."""
        def is_done():
            sim.assert_runs()
            return sim.output().count('x') == done
        sim.cmd('cont')
        wait_for('the guest', is_done, sim)
        self.check_listener(sim)

    def listen(self, script, **kwargs):
        """Run vCPU 0 with that script.  Returns the machine."""
        sim = self.prepare(f'vcpu 0\n{script}\nprint x\nhalt\n', **kwargs)
        self.go(sim)
        return sim

    def check_notified(self, script, populates, discards, config='', **kwargs):
        """The listener gets so many notifications for that script.

        Returns the machine.
        """
        launch = self.listen('', **kwargs)
        sim = self.listen(script, config=config, **kwargs)
        self.assertEqual(
            tuple(self.ask(sim, name) - self.ask(launch, name)
                  for name in ('populates', 'discards')),
            (populates, discards))
        return sim

    def test_conversions(self):
        sim = self.check_notified('''
            map-gpa 0x1000000 16 shared
            map-gpa 0x2000000 512 shared
            map-gpa 0x1000000 8 private''', 2, 1)
        self.assertEqual(self.ask(sim, 'mapped-pages'), 8 + 512)

    def prepare_vcpus(self, count, gpa, pages):
        """Four vCPUs, each with so many requests for that memory."""
        return self.prepare('\n'.join(
            f'vcpu {n}\n{requests(n, count, gpa, pages)}\nprint x'
            for n in range(4)), cpus=4)

    def test_it_comes_and_goes_while_vcpus_convert(self):
        sim = self.prepare_vcpus(4000, 0x1000000, 4096)
        sim.cmd('cont')
        registered = 0
        watch = sim.watch('the vCPUs')
        while sim.output().count('x') < 4:
            watch.check()
            self.set(sim, 'listening', False)
            self.assertEqual(self.ask(sim, 'mapped-pages'), 0)
            self.set(sim, 'listening', True)
            registered += 1
        self.go(sim, done=4)
        self.assertGreater(registered, 5)

    def plug(self, sim):
        """Plug 128 MiB in at 4 GiB."""
        sim.cmd('object-add', qom_type='memory-backend-ram', id='more',
                size=128 << 20)
        sim.cmd('device_add', driver='pc-dimm', id='dimm', memdev='more')
        self.check_listener(sim)

    def test_memory_is_plugged_and_unplugged(self):
        more, other = (requests(7, 1000, gpa, 1024)
                       for gpa in (0x100000000, 0x1000000))
        sim = self.prepare(f'''
            vcpu all
            {more}
            {other}
            barrier
            print x
            halt
            vcpu 0
            {requests(8, 500, 0x100000000, 1024)}
            # The guest has the first slot ejected.
            out 0xa00 4 0
            out 0xa14 1 8
            map-gpa 0x100000000 1 private ret=EINVAL
            {other}
            barrier
            print x''', cpus=4, size='256M,slots=1,maxmem=1G')
        self.plug(sim)
        self.go(sim, done=4)
        self.assertTrue(sim.event_wait('DEVICE_DELETED'))
        sim.cmd('object-del', id='more')
        self.check_listener(sim)


class Listeners(Anywhere):
    """In place."""

    def test_a_range_that_is_so_already_is_not_notified(self):
        self.check_notified('''
            map-gpa 0x1000000 16 private
            map-gpa 0x1000000 16 shared
            map-gpa 0x1000000 16 shared
            map-gpa 0x1004000 4 shared''', 1, 0)

    def test_a_mixed_range_is_notified_in_runs(self):
        """Defect 5 of prior art: page by page."""
        sim = self.check_notified('''
            map-gpa 0x1004000 4 shared
            map-gpa 0x100c000 1 shared
            map-gpa 0x1000000 1024 shared
            map-gpa 0x1004000 4 private
            map-gpa 0x1000000 1024 private''', 2 + 3, 1 + 2)
        self.assertEqual(self.ask(sim, 'mapped-pages'), 0)

    def test_a_range_of_two_blocks(self):
        sim = self.check_notified('''
            map-gpa 0x7ffe000 5 shared
            map-gpa 0x8000000 1 private''', 2, 1, size='256M', args=NODES)
        self.assertEqual(self.ask(sim, 'mapped-pages'), 4)

    def test_too_many_mappings(self):
        """Defect 4 of prior art: listeners and kernel disagree."""
        sim = self.prepare('''
            vcpu 0
            map-gpa 0x1000000 8 shared
            map-gpa 0x2000000 9 shared ret=EINVAL
            state 0x1000000 8 shared
            state 0x2000000 9 private
            print x
            halt''')
        self.set(sim, 'max-mappings', 16)
        self.go(sim)
        self.assertEqual(self.ask(sim, 'mapped-pages'), 8)

    def test_one_of_two_devices_refuses(self):
        """Whichever is notified first, the other unmaps."""
        devices = 'listener', 'other'
        for refuser in devices:
            with self.subTest(refuser=refuser):
                sim = self.prepare('''
                    vcpu 0
                    map-gpa 0x1000000 8 shared
                    map-gpa 0x2000000 9 shared ret=EINVAL
                    state 0x2000000 9 private
                    print x
                    halt''', args=['-device', OTHER])
                self.set(sim, 'max-mappings', 16, refuser)
                self.go(sim)
                for device in devices:
                    self.check_listener(sim, device)
                    self.assertEqual(self.ask(sim, 'mapped-pages', device), 8)
                self.quit(sim)

    def test_some_mappings_are_refused(self):
        sim = self.prepare('''
            vcpu 0
            map-gpa 0x1004000 4 shared
            map-gpa 0x1000000 16 shared ret=EINVAL
            state 0x1000000 4 private
            state 0x1004000 4 shared
            state 0x1008000 8 private
            print x
            halt''')
        # The run before the refused one is unmapped again, too.
        self.set(sim, 'refuse-every', 3)
        self.go(sim)
        self.assertEqual(self.ask(sim, 'mapped-pages'), 4)

    def test_the_kernel_fails(self):
        """Both runs of the chunk are mapped again (prior art 4)."""
        launch = len(self.listen('').model.log(CONVERT))
        sim = self.check_notified('''
            map-gpa 0x1000000 4 shared
            map-gpa 0x1008000 8 shared
            map-gpa 0x1000000 16 private ret=EAGAIN
            state 0x1000000 4 shared
            state 0x1004000 4 private
            state 0x1008000 8 shared''', 4, 2,
            config=f'fault {CONVERT} errno=ENOMEM at={launch + 3}')
        self.assertEqual(self.ask(sim, 'mapped-pages'), 12)

    def test_vcpus_that_are_refused_now_and_then(self):
        sim = self.prepare_vcpus(400, 0x1000000, 512)
        self.set(sim, 'refuse-every', 5)
        self.go(sim, done=4)
        self.assertGreater(self.ask(sim, 'populates'), 500)


class Faults(Listeners):
    """Platforms that are launched, and whose memory faults convert."""

    def test_a_launch(self):
        """All RAM will be private, so it is not mapped during the launch.

        VFIO would run out of mappings: 65,000 of a page each are 256 MiB.
        """
        sim = self.prepare('vcpu 0\nprint x\nhalt', size='1G')
        self.set(sim, 'max-mappings', 16)
        self.set(sim, 'listening', False)
        self.set(sim, 'listening', True)
        self.go(sim)
        for name in 'mapped-pages', 'populates', 'discards':
            self.assertEqual(self.ask(sim, name), 0)

    def test_virtio_mem(self):
        """Its memory is private at first; unplugged memory is not mapped."""
        sim = self.prepare('''
            vcpu 0
            state 0x100000000 0x10000 private
            map-gpa 0x100000000 16 shared
            map-gpa 0x1000000 16 shared
            state 0x100000000 16 shared
            map-gpa 0x100000000 8 private
            print x
            halt''', size='128M', args=[
                '-m', '128M,maxmem=1G',
                '-object', GUEST_MEMFD + ',id=plugged,size=256M',
                '-device', 'virtio-mem-pci,memdev=plugged'])
        self.go(sim)
        self.assertEqual(self.ask(sim, 'mapped-pages'), 16)
        self.assertEqual(self.ask(sim, 'populates'), 1)
        block, = (b for b in sim.cmd('query-guest-memfd')['blocks']
                  if b['id'] == 'plugged')
        self.assertEqual(block['shared'], 8 << 12)

    def test_memory_faults(self):
        self.check_notified('''
            fault 0x1000000 0x1000 shared
            fault 0x1001000 0x1000 shared
            fault 0x1000000 0x1000 private''', 2, 1)


class Snp(Faults, SnpLaunchTest):
    """SEV-SNP."""


class Tdx(Faults, TdxLaunchTest):
    """TDX."""


class SwProtected(Listeners, LaunchTest):
    """Software-protected guests."""

    CONFIDENTIAL = 'sw-protected-guest,initial-state=private'

    def test_a_launch(self):
        sim = self.listen('')
        self.assertEqual(self.ask(sim, 'mapped-pages'), 0)
        self.assertGreater(self.ask(sim, 'populates'), 0)
        self.assertGreater(self.ask(sim, 'discards'), 0)

    def test_a_page_stays_busy(self):
        self.listen('''
            map-gpa 0x1000000 16 private ret=EAGAIN
            state 0x1000000 8 private
            state 0x1008000 8 shared''',
            config='pin 0x1008000 0x1000 file=1 times=forever',
            confidential='sw-protected-guest')

    def test_resets(self):
        for state in 'shared', 'private':
            with self.subTest(state=state):
                sim = self.prepare(f'''
                    vcpu 0
                    repeat 20
                    map-gpa 0x1000000 1024 private
                    map-gpa 0x1000000 512 shared
                    map-gpa 0x2000000 512 private
                    out 0xcf9 1 6
                    state 0x1000000 1024 {state}
                    end
                    print x
                    halt''', confidential='sw-protected-guest,initial-state='
                    + state)
                sim.cmd('set-action', reboot='reset')
                self.go(sim)

    def test_digest(self):
        sim = self.listen('''
            map-gpa 0x1000000 16 private
            map-gpa 0x1004000 4 shared
            map-gpa 0x7ffe000 4 private''', size='256M', args=NODES,
            confidential='sw-protected-guest')
        self.assertEqual(self.ask(sim, 'digest'), digest(
            (0x1000000, 0x4000), (0x1008000, 0x8000), (0x7ffe000, 0x4000)))


class Separate(Anywhere, LaunchTest):
    """The same with separate memory: QEMU converts page by page."""

    GENERATION = 'g0'
    CONFIDENTIAL = 'sw-protected-guest,initial-state=private'
