# SPDX-License-Identifier: GPL-2.0-or-later
"""Launches of firmware with unusual tables.

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
# For vCPUs whose code at the reset vector is not that of the file.
ONLY_LAUNCHED = '''
    vcpu all
    print launched
    shutdown'''
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


class RangesTest(test_launch.LaunchTest):
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

    def check_sections(self, sections, config='', generation='g2', **kwargs):
        """It is launched, and measured as its table says."""
        sim, wanted = self.check(f'generation {generation}\n{config}',
                                 path=self.firmware(sections), **kwargs)
        self.assertEqual(len(wanted.ranges), len(sections) + self.IMPLIED)
        self.assertEqual(sim.report['host-touches'], 0)
        return sim, wanted

    def refuse_sections(self, sections, reason, **kwargs):
        """It is not launched, separate or in place; the guest never runs."""
        path = self.firmware(sections)
        for generation in 'g1', 'g2':
            sim = self.launch('generation ' + generation, status=1, path=path,
                              **kwargs)
            self.assertRegex(sim.get_log(), f"firmware '{path}': .*{reason}")
            self.assertEqual(sim.report['exits'], 0)
            self.assertFalse(sim.report['launch']['finished'])

    def check_nodes(self, sections):
        """A section of 8 KiB at 0x7fff000 is in the RAM of one node."""
        args = ['-object', 'memory-backend-ram,id=node0,size=128M', '-numa',
                'node,memdev=node0', '-object',
                'memory-backend-ram,id=node1,size=128M', '-numa',
                'node,memdev=node1']
        self.refuse_sections(sections, r'section 2 \(\w+\) of its metadata '
                             'asks for 0x2000 bytes at gpa 0x7fff000, which '
                             'are not in one piece of RAM; .* NUMA',
                             args=args)
        for generation in 'g1', 'g2':
            self.check_sections(sections, generation=generation)

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


class Snp(RangesTest):
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
            r'sections 2 \(SEC_MEM\) and 0 \(SECRETS\) of its metadata '
            'overlap at gpa 0x1000')
        self.refuse_sections(
            [(0, 3 * PAGE, SEC_MEM), *self.NEEDED],
            r'sections 0 \(SEC_MEM\) and 1 \(SECRETS\)')

    def test_a_part_of_a_page(self):
        for section in ((0x8000, 0x800, CPUID), (0x8800, PAGE, SEC_MEM),
                        (0x8000, 0, CPUID), (0x8000, 0, SEC_MEM)):
            self.refuse_sections(
                [*self.NEEDED, section],
                rf'section 2 \(\w+\) of its metadata asks for '
                f'{section[1]:#x} bytes at gpa {section[0]:#x}; it has to be '
                'whole pages')

    def test_no_memory_there(self):
        # The end of RAM; a display's; registers; the image; the end of all.
        for gpa in (0xffff000, 0x9f000, 0xfec00000, 0xffff0000, 0xfffff000):
            self.refuse_sections(
                [*self.NEEDED, (gpa, 2 * PAGE, SEC_MEM)],
                r'section 2 \(SEC_MEM\) of its metadata asks for 0x2000 '
                f'bytes at gpa {gpa:#x}; below 4 GiB the guest has RAM up to '
                r'0x10000000, without 0xa0000 to 0xfffff; .*\(-m\)')

    def test_too_little_memory(self):
        self.refuse_sections(
            [*self.NEEDED, (0x800000, PAGE, SEC_MEM)],
            'section 2 .* RAM up to 0x800000', size='8M')

    def test_a_section_in_two_nodes(self):
        self.check_nodes([*self.NEEDED, (0x7fff000, 2 * PAGE, SEC_MEM)])

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


class Tdx(RangesTest):
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
        elsewhere = [(PAGE, PAGE, 0x800000, PAGE, CFV, MEASURED),
                     (0, PAGE, 0xffff000, PAGE, BFV, MEASURED)]
        # Two pages of the image change places.
        swapped = [(PAGE, PAGE, 0xffff0000, PAGE, CFV, MEASURED),
                   (0, PAGE, 0xffff1000, PAGE, BFV, MEASURED)]
        for generation in 'g1', 'g2':
            for sections in ([elsewhere[0], self.CODE, self.HOB, elsewhere[1]],
                             [*elsewhere, self.HOB],
                             [*swapped, self.HOB],
                             [*reversed(swapped), *elsewhere, self.HOB]):
                with self.subTest(generation=generation, sections=sections):
                    self.check_sections(sections, generation=generation,
                                        script=ONLY_LAUNCHED)

    def test_a_reset_of_what_lives_elsewhere(self):
        path = self.firmware([
            (0, PAGE, 0xffff1000, PAGE, BFV, MEASURED),
            (PAGE, PAGE, 0x800000, PAGE, CFV, MEASURED), self.HOB])
        with open(path, 'rb') as f:
            wanted = self.LAUNCH(f.read()).digest().hex()
        for generation in 'g1', 'g2':
            with self.subTest(generation=generation):
                # A shutdown resets the guest; the device ends QEMU.
                sim = self.play(f'''
                    generation {generation}
                    vcpu 0
                    repeat 2
                    shutdown
                    end
                    out 0xf4 4 1''', status=3, **self.guest(path, args=[
                        '-action', 'reboot=reset', '-device',
                        'isa-debug-exit,iobase=0xf4,iosize=4']))
                self.assertEqual(
                    [launch['digest'] for launch in sim.report['launches']],
                    [wanted] * 3)

    def test_a_padded_image(self):
        path = self.firmware([self.CODE, self.HOB])
        with open(path, 'rb') as f:
            image = f.read()
        # In front of it; what is launched is the padding, as the table says.
        with open(path, 'wb') as f:
            f.write(b'padding!' * (self.IMAGE // 8) + image)
        for generation in 'g1', 'g2':
            with self.subTest(generation=generation):
                self.check('generation ' + generation, path=path,
                           script=ONLY_LAUNCHED)

    def test_an_image_in_two_parts(self):
        self.check_sections([
            (0, PAGE, 0xffff0000, PAGE, CFV, MEASURED), self.HOB,
            (PAGE, self.IMAGE - PAGE, 0xffff1000, self.IMAGE - PAGE, BFV,
             MEASURED)])

    def test_a_page_that_is_named_twice(self):
        self.refuse_sections(
            [self.CODE, (0, 0, 0x4000, 2 * PAGE, TD_HOB, 0),
             (0, 0, 0x5000, PAGE, TEMP_MEM, 0)],
            r'sections 1 \(TD_HOB\) and 2 \(TEMP_MEM\) of its metadata '
            'overlap at gpa 0x5000')
        self.refuse_sections(
            [self.CODE, self.HOB, (0, 0, 0x3000, 2 * PAGE, TEMP_MEM, 0)],
            r'sections 2 \(TEMP_MEM\) and 1 \(TD_HOB\)')
        self.refuse_sections(
            [self.CODE, (0, PAGE, 0xffff1000, PAGE, CFV, MEASURED), self.HOB],
            r'sections 0 \(BFV\) and 1 \(CFV\)')

    def test_a_part_of_a_page(self):
        for gpa, size in (0x8000, 0x800), (0x8800, PAGE), (0x8000, 0):
            self.refuse_sections(
                [self.CODE, self.HOB, (0, 0, gpa, size, TEMP_MEM, 0)],
                rf'section 2 \(TEMP_MEM\) .*{size:#x} bytes at gpa {gpa:#x}; '
                'it has to be whole pages')

    def test_no_memory_there(self):
        for gpa in (0xffff000, 0x9f000, 0xfec00000, 0xffff0000, 1 << 32,
                    (1 << 64) - PAGE):
            self.refuse_sections(
                [self.CODE, self.HOB, (0, 0, gpa, 2 * PAGE, TEMP_MEM, 0)],
                rf'section 2 \(TEMP_MEM\) .* 0x2000 bytes at gpa {gpa:#x}; '
                r'below 4 GiB the guest has RAM up to 0x10000000, .*\(-m\)')
        self.refuse_sections(
            [(0, self.IMAGE, 0xfffff000, self.IMAGE, BFV, MEASURED), self.HOB],
            r'section 0 \(BFV\) .* RAM up to .*, and the image')

    def test_too_little_memory(self):
        self.refuse_sections(
            [self.CODE, self.HOB, (0, 0, 0x800000, PAGE, TEMP_MEM, 0)],
            'section 2 .* RAM up to 0x800000', size='8M')

    def test_contents_that_the_image_lacks(self):
        for offset in PAGE, 1 << 20, 0x800, 0xfffff000:
            self.refuse_sections(
                [(offset, self.IMAGE, 0xffff0000, self.IMAGE, BFV, MEASURED),
                 self.HOB],
                r'section 0 \(BFV\) of its metadata wants 0x10000 bytes of '
                f'the file at offset {offset:#x}, .* has 0x10000 bytes')

    def test_contents_of_another_size(self):
        for sections in ([(0, 0, 0xffff0000, PAGE, BFV, MEASURED), self.HOB],
                         [(0, PAGE + 1, 0xffff0000, PAGE, BFV, 1), self.HOB],
                         [(0, 1, 0x4000, PAGE, TD_HOB, 0), self.CODE]):
            self.refuse_sections(sections, 'section 0 .*(there have to be '
                                 'contents|should have none)')

    def test_sections_that_make_no_guest(self):
        for sections, reason in (
                ([self.CODE], 'TDVF metadata has 1 sections'),
                ([self.CODE, (0, 0, 0x5000, PAGE, TEMP_MEM, 0)],
                 '0 sections TD_HOB'),
                ([self.CODE, self.HOB, (0, 0, 0x5000, PAGE, TD_HOB, 0)],
                 '2 sections TD_HOB'),
                ([self.CODE, (0, 0, 0x4000, PAGE, TD_HOB, MEASURED)],
                 r'section 1 \(TD_HOB\) .* is to be measured'),
                ([self.CODE, self.HOB, (0, 0, 0x5000, PAGE, 4, 0)],
                 'section 2 of its metadata has type 4'),
                ([self.CODE, self.HOB] +
                 [(0, 0, 0x100000 + 2 * PAGE * i, PAGE, TEMP_MEM, 0)
                  for i in range(50)],
                 'TD_HOB has 0x1000 bytes, and may need .* 51 sections')):
            with self.subTest(reason=reason):
                self.refuse_sections(sections, reason)

    def empty_page(self):
        """Offset of a page of zeros in the image."""
        with open(self.firmware([self.CODE, self.HOB]), 'rb') as f:
            image = f.read()
        return next(at for at in range(0, len(image), PAGE)
                    if not any(image[at:at + PAGE]))

    def test_a_section_of_zeros(self):
        offset = self.empty_page()
        self.refuse_sections(
            [(offset, PAGE, 0x800000, PAGE, BFV, MEASURED), self.CODE,
             self.HOB], r'section 0 \(BFV\) .* has only zeros')
        # A vendor may leave this empty; temporary memory is always zeros.
        for prealloc in 'off', 'on':
            self.check_sections([
                (offset, PAGE, 0x800000, PAGE, CFV, MEASURED), self.CODE,
                self.HOB, (0, 0, 0x5000, PAGE, TEMP_MEM, 0)],
                backend='memory-backend-ram,prealloc=' + prealloc)

    def test_a_section_in_two_nodes(self):
        self.check_nodes([self.CODE, self.HOB,
                          (0, 0, 0x7fff000, 2 * PAGE, TEMP_MEM, 0)])

    def test_a_launch_that_is_interrupted_goes_on(self):
        sim, _ = self.check_sections([self.CODE, self.HOB], '''
            fault TDX_INIT_MEM_REGION_PAGE errno=EAGAIN at=5
            fault TDX_INIT_MEM_REGION_PAGE errno=EINTR at=9''')
        self.check_sources(sim.model.log('TDX_INIT_MEM_REGION'))

    def test_conversions_that_fail(self):
        self.check_conversions()
