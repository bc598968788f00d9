# SPDX-License-Identifier: GPL-2.0-or-later
"""What query-guest-memfd says of a host."""
from gmemlab.simkvm import snp
from simtest import SimTest


class Missing(SimTest):
    """Each thing that a host lacks is listed by name and in a clause."""

    def check_missing(self, generation, wanted, text, **kwargs):
        sim = self.start(f'generation {generation}\nvcpu 0\nhalt',
                         backend=None, **kwargs)
        host = sim.cmd('query-guest-memfd')['host']
        self.assertEqual(host['missing'], wanted)
        self.assertRegex(host['missing-text'], text)
        self.assertIn(host['missing-text'], sim.cmd(
            'human-monitor-command', command_line='info guest-memfd'))

    def test_a_kernel_without_guest_memfd(self):
        self.check_missing('g0', ['guest-memfd'], 'offers no guest_memfd')

    def test_a_kernel_that_does_not_map_it(self):
        self.check_missing('g0', ['mmap-flag', 'init-shared-flag'],
                           'lacks MMAP or INIT_SHARED', confidential=snp(),
                           args=['-bios', self.image])

    def test_a_kernel_whose_pages_are_private_at_first(self):
        self.check_missing('g1', ['init-shared-flag'],
                           'lacks MMAP or INIT_SHARED', confidential=snp(),
                           args=['-bios', self.image])

    def test_a_kernel_that_refuses_flags_that_it_offers(self):
        self.check_missing('g1\nfault KVM_CREATE_GUEST_MEMFD errno=ENOMEM',
                           ['create'], 'KVM_CREATE_GUEST_MEMFD fails')

    def test_nothing_is_missing(self):
        sim = self.start('generation g1\nvcpu 0\nhalt')
        host = sim.cmd('query-guest-memfd')['host']
        self.assertEqual(host['missing'], [])
        self.assertNotIn('missing-text', host)
