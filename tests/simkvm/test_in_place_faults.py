# SPDX-License-Identifier: GPL-2.0-or-later
"""Launches in place in which one call fails: each call, with each error.

The guest is launched all the same, or the emulator ends with one error.
"""
from concurrent.futures import ThreadPoolExecutor
from collections import Counter
import errno
import re

from test_in_place import CONVERT, IN_PLACE
from test_launch import SnpLaunchTest, TdxLaunchTest

ERRNOS = 'EAGAIN', 'EINTR', 'ENOMEM', 'EIO', 'EINVAL'
ERROR = re.compile(r'^qemu-system-x86_64: (?!info:|warning:)(.*)', re.M)
# QEMU's message after an error that was reported already
FOLLOWS = re.compile('.*(failed to initialize kvm|kvm_arch_init_vcpu failed|'
                     'failed to create encryption context|'
                     'failed update CPUID page)')
THREADS = 4
# Allocation at the start may fail, too.
GUEST = {'backend': 'memory-backend-ram,prealloc=on', 'size': '32M'}


def errors(log):
    """The errors in a log, without those that only follow from another."""
    return [e for e in ERROR.findall(log) if not FOLLOWS.match(e)]


class Faults:
    """The tests of both platforms.

    PAGES: the name under which a fault plan knows a page of a command
    """

    PAGES = None

    def planned(self, sim):
        """Faults that a plan can name in a run: (call, number)."""
        names = [re.sub('REGION2$', 'REGION', call['call'])
                 for call in sim.model.log()]
        counts = Counter(name for name in names
                         if name in self.COMMANDS or name in (
                             'KVM_CREATE_GUEST_MEMFD', CONVERT, 'fallocate',
                             'KVM_SET_USER_MEMORY_REGION', 'mmap',
                             'TDX_CAPABILITIES', 'TDX_GET_CPUID'))
        plan = [(name, at) for name, count in counts.items()
                for at in range(1, count + 1)]
        # The first and last of a command's pages, and one in between
        page = 1
        for call in sim.model.log(self.COMMANDS[-2]):
            last = page + call['pages'] - 1
            plan += [(self.PAGES, at) for at in
                     sorted({page, (page + last) // 2, last})]
            page = last + 1
        return plan

    def outcome(self, plan, clean):
        """Run with these lines of a plan.  Returns what is wrong, or None."""
        try:
            sim = self.launch(f'{IN_PLACE}\n{plan}', status=None,
                              **GUEST)
        except AssertionError as err:
            return f'{plan}: {err}'
        status, log, report = sim.exitcode(), sim.get_log(), sim.report
        if status == 0:
            if (sim.output(), report['launch'], log) != (
                    'launched\n', clean.report['launch'], clean.get_log()):
                return f'{plan}: launched, but not as without it: {log}'
        elif status != 1:
            return f'{plan}: status {status}: {log}'
        elif report['exits'] or len(errors(log)) != 1:
            return f'{plan}: ended, after {report["exits"]} exits: {log}'
        return None

    def test_every_call_fails_in_every_way(self):
        clean = self.launch(IN_PLACE, **GUEST)
        plans = [f'fault {call} errno={error} at={at}'
                 for call, at in self.planned(clean) for error in ERRNOS]
        self.assertGreater(len(plans), 100)
        with ThreadPoolExecutor(THREADS) as pool:
            wrong = [o for o in pool.map(lambda plan:
                     self.outcome(plan, clean), plans) if o]
        self.assertEqual(wrong, [], f'{len(wrong)} of {len(plans)}:\n' +
                         '\n'.join(wrong))


    def conversions(self, sim):
        """The conversions of a launch, which come after the probe's."""
        return sim.model.log(CONVERT)[1:]

    def test_pages_that_are_held_for_a_while(self):
        clean = self.launch(IN_PLACE)
        for first in self.conversions(clean):
            # The last page of a range: no page of the range is taken.
            page = first['offset'] + first['size'] - 0x1000
            with self.subTest(file=first['file'], page=page):
                sim = self.launch(f'{IN_PLACE}\npin {page} 4096 times=5 '
                                  f'file={first["file"]}')
                self.assertEqual(sim.report['launch'], clean.report['launch'])
                self.assertEqual(
                    [call['ret'] for call in self.conversions(sim)
                     if call['ret']], [-errno.EAGAIN] * 5)

    def test_pages_that_are_held_for_ever(self):
        clean = self.launch(IN_PLACE)
        # The firmware, the first of RAM, and the last block.
        first, ram, *_, last = self.conversions(clean)
        for call in first, ram, last:
            with self.subTest(call=call):
                sim = self.launch(
                    f'{IN_PLACE}\npin {call["offset"]} 4096 times=forever '
                    f'file={call["file"]}', status=1)
                self.assertEqual(sim.report['exits'], 0)
                self.assertNotIn(self.COMMANDS[-1], sim.report['calls'])
                error, = errors(sim.get_log())
                self.assertRegex(error, 'Cannot make .* private.* keeps a '
                                 'page pinned: Resource temporarily')
                # It is tried for about a second, with growing pauses.
                self.assertLess(len(self.conversions(sim)), 200)


class Snp(Faults, SnpLaunchTest):
    """SEV-SNP."""

    PAGES = 'SNP_LAUNCH_UPDATE_PAGE'


class Tdx(Faults, TdxLaunchTest):
    """TDX."""

    PAGES = 'TDX_INIT_MEM_REGION_PAGE'
