# SPDX-License-Identifier: GPL-2.0-or-later
"""Confidential guests that the host cannot run as the user asked.

Nothing is launched, and one error says what is missing and what to do.
"""
from gmemlab.machine import GUEST_MEMFD, MEMFD
from qemu.qmp import ExecuteError
from test_in_place import CONVERT, HALT, IN_PLACE
from test_in_place_faults import errors
from test_launch import SnpLaunchTest, TdxLaunchTest

PARAMETER = 'booted with kvm.gmem_in_place_conversion=1'
SEPARATE = 'generation g0', 'generation g1'


class Errors:
    """The tests of both platforms.

    MACHINE: what such a guest's machine has to have
    """

    MACHINE = ''

    def refuse(self, reason, config=IN_PLACE, hint='', **kwargs):
        """QEMU ends with one error that matches, and launches nothing."""
        with self.subTest(config=config, **kwargs):
            sim = self.launch(config, status=1, **kwargs)
            error, = errors(sim.get_log())
            self.assertRegex(error, reason)
            self.assertIn(hint, sim.get_log())
            self.assertFalse(set(sim.report['calls']) &
                             set(self.COMMANDS[-2:]))
            return sim

    def asking(self, mode):
        """A guest with convert-in-place=@mode."""
        return self.CONFIDENTIAL + ',convert-in-place=' + mode

    def test_on_where_the_host_cannot_do_it(self):
        for config in SEPARATE:
            self.refuse(
                "'convert-in-place=on' is not possible, because the host's "
                'KVM does not convert guest_memfd in place', config,
                PARAMETER, confidential=self.asking('on'))

    def test_off_where_the_host_does_nothing_else(self):
        self.refuse("'convert-in-place=off' is not possible, because this "
                    'host converts in place only; leave it out',
                    hint='kvm.gmem_in_place_conversion=0',
                    confidential=self.asking('off'))

    def test_what_is_asked_for_is_done_where_it_can_be(self):
        for config, mode in ((IN_PLACE, 'on'), (IN_PLACE, 'auto'),
                             *((config, mode) for config in SEPARATE
                               for mode in ('off', 'auto'))):
            with self.subTest(config=config, mode=mode):
                sim = self.launch(config, confidential=self.asking(mode))
                self.assertEqual(CONVERT in sim.report['calls'] and
                                 len(sim.model.log(CONVERT)) > 1,
                                 config == IN_PLACE)

    def test_a_host_whose_parameter_is_off(self):
        # The kernel neither converts in place nor has separate memory then.
        plan = f'\nfault {CONVERT} errno=ENOTTY times=forever'
        for mode, reason in (
                ('auto', "the host's KVM has no private memory for this type "
                         'of VM'),
                ('off', "the host's KVM has no private memory"),
                ('on', "'convert-in-place=on' is not possible")):
            self.refuse(reason, IN_PLACE + plan, PARAMETER,
                        confidential=self.asking(mode))

    def test_a_vm_type_that_the_host_lacks(self):
        for config in IN_PLACE, *SEPARATE:
            self.refuse('vm-type .* not supported by KVM',
                        config + '\nvm-types default sw-protected')

    def test_memory_that_is_no_guest_memfd(self):
        path = 'mem-path=' + self.dir + '/ram'
        for backend in ('memory-backend-file,' + path,
                        'memory-backend-file,share=on,' + path,
                        'memory-backend-shm', MEMFD + ',guest-memfd=off'):
            self.refuse("Memory 'ram0' cannot be memory of a confidential "
                        'guest, because this host converts guest_memfd in '
                        'place and serves nothing else', backend=backend,
                        hint='Use ' + GUEST_MEMFD)
        self.refuse("Memory 'pc.ram' cannot be", hint='Use ' + GUEST_MEMFD,
                    args=['-mem-path', self.dir])

    def test_properties_that_a_guest_memfd_cannot_have(self):
        for backend in GUEST_MEMFD, MEMFD, MEMFD + ',guest-memfd=on':
            self.refuse("'share=off' is not possible.*leave it out",
                        backend=backend + ',share=off')
            self.refuse("'merge=on' is not possible.*leave it out",
                        backend=backend + ',merge=on')
        for backend in MEMFD, MEMFD + ',guest-memfd=on':
            self.refuse("'hugetlb=on' is not possible, because a guest_memfd "
                        'has no huge pages; leave it out',
                        backend=backend + ',hugetlb=on')

    def test_memory_that_takes_conversion_in_place(self):
        for config in SEPARATE:
            for backend in GUEST_MEMFD, MEMFD + ',guest-memfd=on':
                self.refuse(
                    backend + ' can be memory of a confidential guest only '
                    'where that is converted in place, which this host cannot '
                    'do; use memory-backend-ram, or memory-backend-memfd '
                    'without guest-memfd=on', config, PARAMETER,
                    backend=backend)

    def test_smm(self):
        self.refuse("does(n't| not) support SMM",
                    machine='q35,smm=on' + self.MACHINE)

    def test_migration(self):
        sim = self.start(IN_PLACE + HALT, **self.guest())
        with self.assertRaisesRegex(ExecuteError, 'igrat'):
            sim.cmd('migrate', uri='exec:cat > /dev/null')


class Snp(Errors, SnpLaunchTest):
    """SEV-SNP."""

    def test_a_guest_without_guest_memfd(self):
        sev = self.asking('on').replace('sev-snp-guest', 'sev-guest')
        self.refuse("sev-guest: 'convert-in-place=on' is not possible, "
                    'because the memory of such a guest is no guest_memfd; '
                    'leave it out', confidential=sev)


class Tdx(Errors, TdxLaunchTest):
    """TDX."""

    MACHINE = ',kernel-irqchip=split'
