# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-balloon in guests that are converted in place.

Pages that the guest gives to its balloon, and free pages that it reports, are
punched; but private pages stay where the guest has to accept pages before it
uses them.
"""
from gmemlab.simkvm import lacks_tdx, snp
from simtest import SimTest
from virtio import OPTIONS, PAGE, Driver

PAGES = 8
# Shared pages, and private ones right behind them.
SHARED = 0x1000000
PRIVATE = SHARED + PAGES * PAGE
# The driver's pages: one for each virtqueue, and lists of pages
RINGS = 0x1800000
LIST = RINGS + 7 * PAGE

INFLATE, DEFLATE, REPORT = 0, 1, 3      # virtqueues


def check(gpa, seed, empty):
    """A script that checks PAGES pages: those in @empty are zeros."""
    return ''.join(
        f'read {gpa + n * PAGE:#x} 8 expect=0\n'
        f'read {gpa + n * PAGE + PAGE - 8:#x} 8 expect=0\n' if n in empty else
        f'check {gpa + n * PAGE:#x} 1 {seed}\n' for n in range(PAGES))


class Balloon:
    """The tests.  KEEPS: does a private page stay?"""

    KEEPS = True
    GUEST = {}

    def setUp(self):
        super().setUp()
        self.driver = Driver(RINGS, (INFLATE, DEFLATE, REPORT))

    def give(self, queue, gpas):
        """A script that hands the pages' numbers over."""
        return ''.join(f'write {LIST + 4 * n:#x} 4 {gpa // PAGE:#x}\n'
                       for n, gpa in enumerate(gpas)) + \
            self.driver.submit(queue, [(LIST, 4 * len(gpas), False)]) + \
            self.driver.done(queue)

    def report(self, *ranges):
        """A script that reports ranges, (gpa, size), as free."""
        return self.driver.submit(REPORT, [(gpa, size, True)
                                           for gpa, size in ranges]) + \
            self.driver.done(REPORT)

    def run_guest(self, script, shared, private):
        """Run the script; then @shared and @private pages are zeros."""
        sim = self.play(
            'generation g2\nvcpu 0\n'
            f'map-gpa {RINGS:#x} 8 shared\n' + self.driver.start() +
            f'map-gpa {SHARED:#x} {PAGES} shared\n'
            f'map-gpa {PRIVATE:#x} {PAGES} private\n'
            f'fill {SHARED:#x} {PAGES} 1\nfill {PRIVATE:#x} {PAGES} 2\n' +
            script + check(SHARED, 1, shared) +
            check(PRIVATE, 2, () if self.KEEPS else private) +
            f'state {PRIVATE:#x} {PAGES} private\nshutdown\n',
            backend=None, **{**self.GUEST, 'args': [
                *self.GUEST.get('args', ()), '-bios', self.image, '-device',
                'virtio-balloon-pci,free-page-reporting=on,' + OPTIONS]})
        self.assertEqual(sim.report['host-touches'], 0)
        return sim

    def test_pages_that_are_given_to_the_balloon(self):
        given = [gpa + n * PAGE for gpa in (SHARED, PRIVATE) for n in (1, 2)]
        self.run_guest(self.give(INFLATE, given), (1, 2), (1, 2))

    def test_pages_that_come_back_can_be_used(self):
        given = [gpa + PAGE for gpa in (SHARED, PRIVATE)]
        self.run_guest(
            self.give(INFLATE, given) + self.give(DEFLATE, given) + ''.join(
                f'fill {gpa:#x} 1 {seed}\n'
                for seed, gpa in enumerate(given, 1)), (), ())

    def test_pages_that_are_reported_free(self):
        self.run_guest(
            self.report((SHARED + PAGE, 2 * PAGE),
                        (PRIVATE + 4 * PAGE, 2 * PAGE),
                        # Both at once
                        (SHARED + 6 * PAGE, 4 * PAGE)),
            (1, 2, 6, 7), (0, 1, 4, 5))

    def test_many_private_pages_that_are_reported_free(self):
        # More than the dummy RAM that is mapped for them at a time
        size = 3 << 20
        self.run_guest(
            f'map-gpa {PRIVATE:#x} {size // PAGE + PAGES} private\n'
            f'fill {PRIVATE + PAGE:#x} {size // PAGE} 2\n' +
            self.report((PRIVATE + PAGE, size)) +
            (f'check {PRIVATE + PAGE:#x} {size // PAGE} 2\n' if self.KEEPS
             else f'read {PRIVATE + size:#x} 8 expect=0\n'),
            (), range(1, PAGES))


class Snp(Balloon, SimTest):
    """SEV-SNP."""

    GUEST = {'confidential': snp()}


class Tdx(Balloon, SimTest):
    """TDX."""

    GUEST = {'confidential': 'tdx-guest', 'args': ['-cpu', 'host'],
             'machine': 'q35,kernel-irqchip=split'}

    @classmethod
    def setUpClass(cls):
        if lacks_tdx():
            cls.skipTest(cls, lacks_tdx())
        super().setUpClass()


class SwProtected(Balloon, SimTest):
    """Software-protected: an absent page is zeros, private or not."""

    KEEPS = False
    GUEST = {'confidential': 'sw-protected-guest'}
