# SPDX-License-Identifier: GPL-2.0-or-later
"""Launches in place of firmware with unusual tables.

The firmware is ours, with other tables: ranges that touch, that overlap, that
are not where their contents are, or not in memory at all.
"""
import struct

from gmemlab import measure
from gmemlab.simkvm import snp
import test_launch

PAGE = 4096
SEC_MEM, SECRETS, CPUID = 1, 2, 3       # sections for SEV-SNP
BFV, CFV, TD_HOB, TEMP_MEM = range(4)   # for TDX
MEASURED = 1
PRIVATE = 8                             # KVM_MEMORY_ATTRIBUTE_PRIVATE


def with_table(image, signature, layout, sections):
    """A copy of an image, whose table lists these sections instead."""
    image = bytearray(image)
    old = struct.pack('<I', len(image) - image.index(signature))
    at = image.index(bytes(PAGE), 1) + 15 & ~15
    body = b''.join(struct.pack(layout, *s) for s in sections)
    table = signature + struct.pack('<3I', 16 + len(body), 1,
                                    len(sections)) + body
    image[at:at + len(table)] = table
    # An entry behind the code leads there, by the distance from the end.
    entry = image.rindex(old, 0, len(image) - 32)
    image[entry:entry + 4] = struct.pack('<I', len(image) - at)
    return bytes(image)


class InPlace(test_launch.LaunchTest):
    """Launches firmware with other tables."""

    SIGNATURE = LAYOUT = None

    def firmware(self, sections):
        """Path of firmware whose table has these sections."""
        with open(self.image, 'rb') as f:
            image = with_table(f.read(), self.SIGNATURE, self.LAYOUT, sections)
        path = f'{self.dir}/firmware'
        with open(path, 'wb') as f:
            f.write(image)
        return path

    def check_sections(self, sections, config='', **kwargs):
        """It is launched, and measured as its table says."""
        sim, wanted = self.check('generation g2\n' + config,
                                 path=self.firmware(sections), **kwargs)
        self.assertEqual(len(wanted.ranges), len(sections) + self.IMPLIED)
        self.assertEqual(sim.report['host-touches'], 0)
        return sim, wanted

    def refuse_sections(self, sections, reason, generation='g2'):
        """It is not launched; the guest never runs."""
        sim = self.launch('generation ' + generation, status=1,
                          path=self.firmware(sections))
        self.assertRegex(sim.get_log(), reason)
        self.assertEqual(sim.report['exits'], 0)
        self.assertFalse(sim.report['launch']['finished'])

    def check_conversions(self):
        """A page that is busy for a moment is retried; other errors end it."""
        call = 'KVM_SET_MEMORY_ATTRIBUTES2'
        sim, wanted = self.check('generation g2')
        made = [c['attributes'] for c in sim.model.log(call)]
        first = made.index(PRIVATE) + 1
        self.assertGreaterEqual(len(made), first + len(wanted.ranges))
        for reason, at in (
                ('bytes at gpa 0xffff0000 private for the launch', first),
                ("the RAM of '.*' private to finish the launch", len(made))):
            with self.subTest(at=at):
                fault = f'generation g2\nfault {call} at={at} '
                self.check(fault + 'errno=EAGAIN times=3')
                sim = self.launch(fault + 'errno=EAGAIN times=forever',
                                  status=1)
                self.assertRegex(sim.get_log(), reason + '.*pinned')
                sim = self.launch(fault + 'errno=ENOMEM', status=1)
                self.assertRegex(sim.get_log(), reason + '.*allocate memory')
                self.assertEqual(sim.report['exits'], 0)

    def check_sources(self, calls, but=()):
        """Only commands of the types in @but have a source."""
        for call in calls:
            self.assertEqual(call['source'], call.get('type') in but, call)


class Snp(InPlace):
    """SEV-SNP: the whole image is launched first."""

    LAUNCH = measure.SnpLaunch
    CONFIDENTIAL = snp()
    COMMANDS = test_launch.Snp.COMMANDS
    SIGNATURE, LAYOUT = b'ASEV', '<3I'
    IMPLIED = 1
    NEEDED = [(0x1000, PAGE, SECRETS), (0x2000, PAGE, CPUID)]

    def test_ranges_that_touch(self):
        sim, _ = self.check_sections([
            (0x300000, 3 * PAGE, SEC_MEM), (0x303000, PAGE, SEC_MEM),
            (0x2ff000, PAGE, SECRETS), (0x304000, PAGE, CPUID)])
        self.check_sources(sim.model.log('SNP_LAUNCH_UPDATE'), ('cpuid',))

    def test_ranges_at_the_ends_of_memory(self):
        self.check_sections([(0, PAGE, SEC_MEM),
                             (0xfffe000, 2 * PAGE, SEC_MEM), *self.NEEDED])

    def test_a_page_that_is_named_twice(self):
        self.refuse_sections(
            [*self.NEEDED, (0, 3 * PAGE, SEC_MEM)],
            r'0x3000 bytes at gpa 0x0: 0x1000 bytes at 0x1000 \(secrets\) '
            'are launched already')
        # QEMU looks at the CPUID page once more.
        self.refuse_sections(
            [(0, 3 * PAGE, SEC_MEM), *self.NEEDED],
            'are launched already')

    def test_a_part_of_a_page(self):
        self.refuse_sections([*self.NEEDED, (0x8000, 0x800, SEC_MEM)],
                             'whole pages')
        self.refuse_sections([*self.NEEDED, (0x8800, PAGE, SEC_MEM)],
                             'expected update of GPA range 8800-9800')

    def test_no_memory_there(self):
        self.refuse_sections([*self.NEEDED, (0xffff000, 2 * PAGE, SEC_MEM)],
                             'Failed to get HVA')

    def test_a_launch_that_is_interrupted_goes_on(self):
        sim, _ = self.check_sections(self.NEEDED, '''
            fault SNP_LAUNCH_UPDATE errno=EAGAIN at=1
            fault SNP_LAUNCH_UPDATE errno=EINTR at=2
            fault SNP_LAUNCH_UPDATE_PAGE errno=EAGAIN at=5
            fault SNP_LAUNCH_UPDATE_PAGE errno=EINTR at=9''')
        calls = [call for call in sim.model.log('SNP_LAUNCH_UPDATE')
                 if not call['ret']]
        self.assertEqual([(call['pages'], call['left'])
                          for call in calls][:3],
                         [(4, 12), (3, 9), (9, 0)])
        self.check_sources(calls, ('cpuid',))

    def test_conversions_that_fail(self):
        self.check_conversions()

    def test_a_rejected_cpuid_page_is_reported(self):
        sim = self.launch('generation g2\nfault SNP_CPUID_REJECT errno=EIO',
                          status=1)
        reports = [line for line in sim.get_log().splitlines()
                   if 'CPUID validation failed for function' in line]
        self.assertEqual(len(reports), 1, sim.get_log())
        self.assertRegex(reports[0], 'provided: eax:0x(?!.*eax:0x.*eax).*'
                         'expected: eax:0x')
        self.assertEqual(sim.report['exits'], 0)


class Tdx(InPlace):
    """TDX: only the table's sections are launched."""

    LAUNCH = measure.TdxLaunch
    CONFIDENTIAL = 'tdx-guest'
    COMMANDS = test_launch.Tdx.COMMANDS
    ARGS = ('-cpu', 'host')
    SIGNATURE, LAYOUT = b'TDVF', '<2I2Q2I'
    IMPLIED = 0
    IMAGE = 0x10000
    CODE = (0, IMAGE, 0xffff0000, IMAGE, BFV, MEASURED)
    HOB = (0, 0, 0x4000, PAGE, TD_HOB, 0)

    @classmethod
    def setUpClass(cls):
        test_launch.Tdx.setUpClass()
        super().setUpClass()

    def launch(self, *args, **kwargs):
        return super().launch(*args, machine='q35,kernel-irqchip=split',
                              **kwargs)

    def test_ranges_that_touch(self):
        sim, _ = self.check_sections([
            self.CODE, self.HOB, (0, 0, 0x5000, 2 * PAGE, TEMP_MEM, 0),
            (0, 0, 0x3000, PAGE, TEMP_MEM, MEASURED)])
        self.check_sources(sim.model.log('TDX_INIT_MEM_REGION'))

    def test_contents_that_live_elsewhere(self):
        # The second page of the image, and the first as the last of memory.
        self.check_sections([
            (PAGE, PAGE, 0x800000, PAGE, CFV, MEASURED), self.CODE, self.HOB,
            (0, PAGE, 0xffff000, PAGE, BFV, MEASURED)])

    def test_an_image_in_two_parts(self):
        self.check_sections([
            (0, PAGE, 0xffff0000, PAGE, CFV, MEASURED), self.HOB,
            (PAGE, self.IMAGE - PAGE, 0xffff1000, self.IMAGE - PAGE, BFV,
             MEASURED)])

    def test_a_page_that_is_named_twice(self):
        self.refuse_sections(
            [self.CODE, (0, 0, 0x4000, 2 * PAGE, TD_HOB, 0),
             (0, 0, 0x5000, PAGE, TEMP_MEM, 0)],
            r'0x1000 bytes at gpa 0x5000: 0x2000 bytes at 0x4000 \(td-hob\) '
            'are launched already')
        self.refuse_sections(
            [self.CODE, self.HOB, (0, 0, 0x3000, 2 * PAGE, TEMP_MEM, 0)],
            'Failed to accept memory')

    def test_no_memory_there(self):
        self.refuse_sections(
            [self.CODE, self.HOB, (0, 0, 0xffff000, 2 * PAGE, TEMP_MEM, 0)],
            'not in one piece of RAM')

    def test_contents_that_the_image_lacks(self):
        for generation in 'g1', 'g2':
            for offset in PAGE, 1 << 20:
                self.refuse_sections(
                    [(offset, self.IMAGE, 0xffff0000, self.IMAGE, BFV,
                      MEASURED), self.HOB],
                    'section bfv, 0x10000 bytes at offset .* is not in its '
                    'image of 0x10000 bytes', generation)

    def empty_page(self):
        """Offset of a page of zeros in the image."""
        with open(self.firmware([self.CODE, self.HOB]), 'rb') as f:
            image = f.read()
        return next(at for at in range(0, len(image), PAGE)
                    if not any(image[at:at + PAGE]))

    def test_a_section_of_zeros(self):
        offset = self.empty_page()
        for prealloc in 'off', 'on':
            backend = 'memory-backend-ram,prealloc=' + prealloc
            sim = self.launch('generation g2', status=1, backend=backend,
                              path=self.firmware([
                                  (offset, PAGE, 0x800000, PAGE, BFV,
                                   MEASURED), self.CODE, self.HOB]))
            self.assertRegex(sim.get_log(), r'0x1000 bytes at gpa 0x800000 '
                             r'\(bfv\): all of them are zeros')
            self.assertEqual(sim.report['exits'], 0)
            # A vendor may leave this empty; temporary memory is always zeros.
            self.check_sections([
                (offset, PAGE, 0x800000, PAGE, CFV, MEASURED), self.CODE,
                self.HOB, (0, 0, 0x5000, PAGE, TEMP_MEM, 0)],
                backend=backend)

    def test_memory_that_is_the_image(self):
        for section in ((0, PAGE, 0xffff1000, PAGE, CFV, MEASURED),
                        (0, 0, 0xffff1000, PAGE, TEMP_MEM, 0)):
            self.refuse_sections([section, self.CODE, self.HOB],
                                 'overlaps its image')

    def test_a_launch_that_is_interrupted_goes_on(self):
        sim, _ = self.check_sections([self.CODE, self.HOB], '''
            fault TDX_INIT_MEM_REGION_PAGE errno=EAGAIN at=5
            fault TDX_INIT_MEM_REGION_PAGE errno=EINTR at=9''')
        self.check_sources(sim.model.log('TDX_INIT_MEM_REGION'))

    def test_conversions_that_fail(self):
        self.check_conversions()
