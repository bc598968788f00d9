# SPDX-License-Identifier: GPL-2.0-or-later
"""What functional tests have in common."""
import os
import re
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(HERE)),
                                'scripts'))
from gmemlab.machine import (GUEST_MEMFD, MEMFD,      # noqa: E402
                             ask_host, wait_for)


class GuestTest(unittest.TestCase):
    """Has a directory, and guests that end with the test.

    A class whose tests run in the emulated host sets EMULATED_HOST to the
    arguments of scripts/emulated-host.
    """

    EMULATED_HOST = None

    @classmethod
    def setUpClass(cls):
        lacks = ask_host().get('missing-text')
        if lacks:
            raise unittest.SkipTest(lacks)

    def setUp(self):
        temp = tempfile.TemporaryDirectory(prefix='gmem-')
        self.addCleanup(temp.cleanup)
        self.dir = temp.name

    def launch(self, guest):
        """Launch a Machine that ends with the test; returns it."""
        guest.launch()
        self.addCleanup(guest.shutdown, hard=True)
        return guest

    def check_that_ram_is_guest_memfd(self, guest, size):
        """All of ram0 is one mapping of a guest_memfd, and it is bound.

        Returns its entry in query-guest-memfd.
        """
        block = guest.block()
        # anon_inode:[kvm-gmem] or, on a later kernel, /[kvm-gmem] (deleted)
        gmem = [m for m in guest.maps() if '[kvm-gmem]' in m[-1]]
        self.assertEqual(len(gmem), 1, gmem)
        address, mode, offset, _, inode, _ = gmem[0]
        start, end = (int(x, 16) for x in address.split('-'))
        self.assertEqual(
            (end - start, mode, int(offset, 16), int(inode)),
            (size, 'rw-s', 0, block['inode']))
        # QEMU's RAM block is that mapping.
        text = guest.cmd('human-monitor-command', command_line='info ramblock')
        row = re.search(r'^\s*\S*ram0\s.*?0x\w+\s+0x\w+\s+0x(\w+)\s+0x(\w+)',
                        text, re.M)
        self.assertEqual((int(row[1], 16), int(row[2], 16)), (size, start),
                         text)
        self.assertFalse([m for m in guest.maps() if 'memfd:' in m[-1]])

        self.assertTrue(guest.bound(), block)
        for slot in guest.slots('smm'):
            self.assertEqual((slot['bound'], slot['reason']), (False, 'smm'))
        return block


class MigrationTests:
    """A guest that writes and checks its memory is migrated.

    Inherited beside a GuestTest that has
      start(name, backend=, accel=, args=)  a guest with two vCPUs
      start_checking(...)                   the same, and it checks memory
      SIZE                                  bytes of its ram0
      FRESH                                 text that a guest prints at boot
    """

    def check_target(self, guest, backend):
        """The target goes on where the source was; it does not boot."""
        wait_for('the target to run', lambda:
                 guest.cmd('query-status')['status'] == 'running', guest)
        guest.assert_works()
        self.assertNotIn(self.FRESH, guest.output())
        if backend == GUEST_MEMFD:
            self.check_that_ram_is_guest_memfd(guest, self.SIZE)

    def check_migration(self, source, target, **kwargs):
        a = self.start_checking('source', backend=source, **kwargs)
        b = self.start('target', backend=target, args=['-incoming', 'defer'])
        path = os.path.join(self.dir, 'migration')
        b.cmd('migrate-incoming', uri='unix:' + path)
        a.migrate_to('unix:' + path)
        self.check_target(b, target)
        self.assertNotIn('CORRUPT', a.output())

    def test_to_the_same_backend(self):
        self.check_migration(GUEST_MEMFD, GUEST_MEMFD)

    def test_to_memfd(self):
        self.check_migration(GUEST_MEMFD, MEMFD)

    def test_slots_are_bound_again_after_a_cancelled_one(self):
        guest = self.start_checking()
        guest.cmd('migrate-set-parameters', max_bandwidth=1 << 20)
        guest.cmd('migrate', uri='exec:cat > /dev/null')
        guest.wait_migration('active')
        self.assertEqual({s['reason'] for s in guest.slots()}, {'dirty-log'})
        guest.assert_works()
        guest.cmd('migrate_cancel')
        guest.wait_migration('cancelled')
        self.check_that_ram_is_guest_memfd(guest, self.SIZE)
        guest.assert_works()

    def test_to_a_file_and_back(self):
        guest = self.start_checking('source')
        path = os.path.join(self.dir, 'state')
        guest.migrate_to('file:' + path)
        guest.shutdown()
        guest = self.start('target', args=['-incoming', 'file:' + path])
        self.check_target(guest, GUEST_MEMFD)
