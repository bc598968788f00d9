# SPDX-License-Identifier: GPL-2.0-or-later
"""gmemlab.measure against images and records put together by hand here."""
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(HERE)), 'scripts')
sys.path.insert(0, SCRIPTS)
from gmemlab import LabError, measure      # noqa: E402

TOOL = os.path.join(SCRIPTS, 'launch-digest')
SIZE = 64 << 10
ZEROS = bytes(4096)

# GUIDs as bytes, in the order in which they are in memory.
FOOTER = 'de82b596b21ff745baeaa366c55a082d'
SEV_METADATA = '666588dc4a989847a75e5585a7bf67cc'
SEV_ES_RESET = 'de71f7007e1acb4f890e68c77e2fb44e'
SEV_HASH_TABLE = '1f3755723b3a044b927b1da6efa8d454'
TDX_METADATA = '35657ae44a989847865e4685a7bf8ec2'


def number(value, size=4):
    """An integer in memory."""
    return value.to_bytes(size, 'little')


def entry(guid, data):
    """An entry of the firmware's table."""
    return data + number(len(data) + 18, 2) + bytes.fromhex(guid)


def table(*entries):
    """The firmware's table of entries."""
    return entry(FOOTER, b''.join(entries))


def image(tables, metadata=b''):
    """Firmware with tables at its end, and metadata 0x800 bytes before it.

    Its other bytes differ from page to page.
    """
    data = b''.join(bytes([page]) * 4096 for page in range(1, 17))
    data = data[:SIZE - 0x800] + metadata + data[SIZE - 0x800 + len(metadata):]
    end = SIZE - 32
    return data[:end - len(tables)] + tables + data[end:]


def sev_metadata(*sections):
    """@sections: (gpa, size, type)"""
    return b'ASEV' + number(16 + 12 * len(sections)) + number(1) + \
        number(len(sections)) + \
        b''.join(number(n) for section in sections for n in section)


RESET = entry(SEV_ES_RESET, number(0xfffff004))


def sev_image(*sections, hashes=b''):
    """Firmware with SEV metadata, and perhaps another entry."""
    return image(table(hashes, RESET, entry(SEV_METADATA, number(0x800))),
                 sev_metadata(*sections))


def snp_page(digest, kind, gpa, contents=None):
    """Extend a launch digest by one page, byte by byte of the record."""
    record = bytearray(112)
    record[0:48] = digest
    if contents is not None:
        record[48:96] = hashlib.sha384(contents).digest()
    record[96] = 112
    record[98] = kind
    record[104:112] = number(gpa, 8)
    return hashlib.sha384(record).digest()


def snp_firmware(data):
    """The digest after the 16 pages of an image."""
    digest = bytes(48)
    for page in range(16):
        digest = snp_page(digest, 1, 0xffff0000 + page * 4096,
                          data[page * 4096:][:4096])
    return digest


class Snp(unittest.TestCase):
    """Launch digests of SEV-SNP."""

    def test_sections_in_the_order_of_the_table(self):
        data = sev_image((0x9000, 0x2000, 1), (0x8000, 0x1000, 2),
                         (0x4000, 0x1000, 3), (0x6000, 0x1000, 4),
                         (0x5000, 0x1000, 0x10))
        digest = snp_firmware(data)
        digest = snp_page(digest, 3, 0x9000)
        digest = snp_page(digest, 3, 0xa000)
        digest = snp_page(digest, 5, 0x8000)
        digest = snp_page(digest, 6, 0x4000)
        digest = snp_page(digest, 3, 0x6000)
        digest = snp_page(digest, 3, 0x5000)
        launch = measure.SnpLaunch(data)
        self.assertEqual(launch.digest(), digest)
        self.assertEqual([(r.name, r.gpa, r.size, r.type)
                          for r in launch.ranges[1:]], [
            ('SEC_MEM', 0x9000, 0x2000, 'zero'),
            ('SECRETS', 0x8000, 0x1000, 'secrets'),
            ('CPUID', 0x4000, 0x1000, 'CPUID'),
            ('SVSM_CAA', 0x6000, 0x1000, 'zero'),
            ('KERNEL_HASHES', 0x5000, 0x1000, 'zero')])

    def test_known_value(self):
        # By dd, printf and sha384sum.
        self.assertEqual(
            measure.SnpLaunch(sev_image((0x1000, 0x1000, 3))).digest().hex(),
            '28934ddf5dd62d0228244c4f5793b12d7810304ff1aa641f'
            'c7b3fa2ad08495694d6d7a3729f2603522078f84c646ac08')

    def test_the_last_bytes_count(self):
        one = sev_image((0x1000, 0x1000, 3))
        other = one[:-1] + b'\0'
        self.assertEqual(measure.SnpLaunch(other).digest(),
                         snp_page(snp_firmware(other), 6, 0x1000))
        self.assertNotEqual(snp_firmware(one), snp_firmware(other))

    def test_metadata_may_be_longer_than_its_sections(self):
        plain = sev_metadata((0x1000, 0x1000, 3))
        longer = plain[:4] + number(len(plain) + 12) + plain[8:]
        data = image(table(RESET, entry(SEV_METADATA, number(0x800))), longer)
        self.assertEqual(measure.SnpLaunch(data).digest(),
                         snp_page(snp_firmware(data), 6, 0x1000))


def vmsa_page(cs_base, rip, signature, features=1):
    """The state of a vCPU after reset, by its offsets in the page."""
    fields = {
        0x002: (0x93, 2), 0x004: (0xffff, 4),           # es
        0x010: (0xf000, 2), 0x012: (0x9b, 2), 0x014: (0xffff, 4),
        0x018: (cs_base, 8),                            # cs
        0x022: (0x93, 2), 0x024: (0xffff, 4),           # ss
        0x032: (0x93, 2), 0x034: (0xffff, 4),           # ds
        0x042: (0x93, 2), 0x044: (0xffff, 4),           # fs
        0x052: (0x93, 2), 0x054: (0xffff, 4),           # gs
        0x064: (0xffff, 4),                             # gdtr
        0x072: (0x82, 2), 0x074: (0xffff, 4),           # ldtr
        0x084: (0xffff, 4),                             # idtr
        0x092: (0x8b, 2), 0x094: (0xffff, 4),           # tr
        0x0d0: (0x1000, 8),                             # efer
        0x148: (0x40, 8),                               # cr4
        0x158: (0x10, 8),                               # cr0
        0x160: (0x400, 8),                              # dr7
        0x168: (0xffff0ff0, 8),                         # dr6
        0x170: (2, 8),                                  # rflags
        0x178: (rip, 8),
        0x268: (0x7040600070406, 8),                    # g_pat
        0x310: (signature, 8),                          # rdx
        0x3b0: (features, 8),                           # sev_features
        0x3e8: (1, 8),                                  # xcr0
        0x408: (0x1f80, 4),                             # mxcsr
        0x410: (0x37f, 2),                              # x87_fcw
    }
    page = bytearray(4096)
    for offset, (value, size) in fields.items():
        page[offset:offset + size] = number(value, size)
    return bytes(page)


def snp_vmsas(digest, signature, count, features=1):
    """The digest after the vCPUs of firmware with RESET."""
    starts = [(0xffff0000, 0xfff0)] + [(0xffff0000, 0xf004)] * (count - 1)
    for start in starts:
        digest = snp_page(digest, 2, 0xfffffffff000,
                          vmsa_page(*start, signature, features))
    return digest


class Vmsas(unittest.TestCase):
    """The pages of vCPUs, which come after the firmware's."""

    DATA = sev_image((0x4000, 0x1000, 3))
    BEFORE = snp_page(snp_firmware(DATA), 6, 0x4000)

    def test_pages(self):
        launch = measure.SnpLaunch(self.DATA,
                                   vcpus=measure.Vcpus(3, 0x800f12, 0x21))
        first, *others = launch.ranges[2:]
        self.assertEqual(
            first, ('VMSA 0', 0xfffffffff000, 4096, 'VMSA',
                    vmsa_page(0xffff0000, 0xfff0, 0x800f12, 0x21)))
        self.assertEqual(
            others, [(f'VMSA {n}', 0xfffffffff000, 4096, 'VMSA',
                      vmsa_page(0xffff0000, 0xf004, 0x800f12, 0x21))
                     for n in (1, 2)])

    def test_digests(self):
        self.assertEqual(measure.SnpLaunch(self.DATA).digest(), self.BEFORE)
        for count in 1, 2, 255:
            launch = measure.SnpLaunch(self.DATA,
                                       vcpus=measure.Vcpus(count, 0x60fb1))
            self.assertEqual(launch.digest_before_vmsas(), self.BEFORE)
            self.assertEqual(launch.digest(),
                             snp_vmsas(self.BEFORE, 0x60fb1, count))

    def test_known_value(self):
        # By dd, printf and sha384sum.
        launch = measure.SnpLaunch(sev_image((0x1000, 0x1000, 3)),
                                   vcpus=measure.Vcpus(1, 0x800f12))
        self.assertEqual(launch.digest().hex(),
                         '992b5b66f8d81c973eed72e1c60b797e8a03e80355d29683'
                         'f852217fdba3a1ca4a764ab0b7438247ba9e3479585a0293')

    def test_where_other_vcpus_start(self):
        reset = entry(SEV_ES_RESET, number(0x12345678))
        data = image(table(reset, entry(SEV_METADATA, number(0x800))),
                     sev_metadata((0x4000, 0x1000, 3)))
        launch = measure.SnpLaunch(data, vcpus=measure.Vcpus(2, 0))
        self.assertEqual([r.data for r in launch.ranges[2:]], [
            vmsa_page(0xffff0000, 0xfff0, 0),
            vmsa_page(0x12340000, 0x5678, 0)])

    def test_a_kernel_comes_before_them(self):
        hashes = measure.kernel_hashes(b'kernel')
        data = sev_image((0x5000, 0x1000, 0x10), hashes=KernelHashes.AREA)
        digest = snp_page(snp_firmware(data), 1, 0x5000,
                          bytes(0xc00) + hashes + bytes(0x400 - len(hashes)))
        launch = measure.SnpLaunch(data, hashes, measure.Vcpus(1, 7))
        self.assertEqual(launch.digest(), snp_vmsas(digest, 7, 1))

    def test_signatures(self):
        for cpu_type, signature in (
                ('qemu64', 0x60fb1), ('EPYC', 0x800f12),
                ('EPYC-Rome', 0x830f10), ('EPYC-Milan', 0xa00f11),
                ('EPYC-Genoa', 0xa10f10), ('EPYC-Turin', 0xb00f00)):
            for suffix in '', '-v1', '-v12':
                self.assertEqual(measure.cpu_signature(cpu_type + suffix),
                                 signature)
        for cpu_type in ('', 'host', 'epyc', 'EPYC-', 'EPYC-v', 'EPYC,svm=on',
                         'EPYC-v1\n', 'XEPYC'):
            with self.assertRaisesRegex(
                    LabError, 'not one of qemu64, EPYC, EPYC-Rome, EPYC-Milan,'
                    ' EPYC-Genoa, EPYC-Turin.*-cpu host, give --vcpu-sig'):
                measure.cpu_signature(cpu_type)


class KernelHashes(unittest.TestCase):
    """A kernel that SEV-SNP measures by its hashes."""

    AREA = entry(SEV_HASH_TABLE, number(0x5c00) + number(0x400))

    @staticmethod
    def table(kernel, initrd, append):
        """168 bytes, and 8 to make the length a multiple of 16."""
        data = bytes.fromhex('06d63894224fc94cb479a793d411fd21') + number(
            168, 2)
        for guid, text in (
                ('d82dd09720bd944caa78e7714d36ab2a', append),
                ('31f7ba442f3ad74b9af141e29169781d', initrd),
                ('3794e74dd2ab7f42b835d5b172d2045b', kernel)):
            data += bytes.fromhex(guid) + number(50, 2) + \
                hashlib.sha256(text).digest()
        return data + bytes(8)

    def check(self, hashes, contents):
        data = sev_image((0x5000, 0x2000, 0x10), (0x4000, 0x1000, 3),
                         hashes=self.AREA)
        page = bytes(0xc00) + contents
        page += bytes(4096 - len(page))
        digest = snp_page(snp_firmware(data), 1, 0x5000, page)
        digest = snp_page(digest, 1, 0x6000, ZEROS)
        digest = snp_page(digest, 6, 0x4000)
        self.assertEqual(measure.SnpLaunch(data, hashes).digest(), digest)

    def test_kernel_initrd_and_command_line(self):
        self.check(measure.kernel_hashes(b'kernel', b'initrd', 'a=b'),
                   self.table(b'kernel', b'initrd', b'a=b\0'))

    def test_kernel_alone(self):
        self.check(measure.kernel_hashes(b'kernel'),
                   self.table(b'kernel', b'', b'\0'))

    def check_refused(self, area, sections, reason):
        with self.assertRaisesRegex(LabError, reason):
            measure.SnpLaunch(sev_image(*sections, hashes=area),
                              measure.kernel_hashes(b'kernel'))

    def test_firmware_without_a_section_for_them(self):
        self.check_refused(self.AREA, [(0x5000, 0x1000, 1)],
                           'no section for hashes')

    def test_firmware_without_a_place_for_them(self):
        section = [(0x5000, 0x1000, 0x10)]
        for area in (b'', entry(SEV_HASH_TABLE, bytes(8)),
                     entry(SEV_HASH_TABLE, number(0x5000) + number(175))):
            self.check_refused(area, section, 'no place for hashes')
        self.check_refused(
            entry(SEV_HASH_TABLE, number(0) + number(0x400)),
            [(0, 0x1000, 0x10)], 'no place for hashes')
        self.check_refused(entry(SEV_HASH_TABLE, bytes(7)), section,
                           'has 7 bytes of data')

    def test_place_outside_of_the_section(self):
        for base in 0x4fff, 0x5f51, 0x6000:
            self.check_refused(
                entry(SEV_HASH_TABLE, number(base) + number(0x400)),
                [(0x5000, 0x2000, 0x10)],
                rf'section 0 \(KERNEL_HASHES\).* 176 bytes at {base:#x}, are '
                'not in its first page')

    def test_every_section_for_them_has_their_place(self):
        self.check_refused(self.AREA, [(0x5000, 0x1000, 0x10),
                                       (0x8000, 0x1000, 0x10)],
                           r'section 1 \(KERNEL_HASHES\).* first page')


def tdx_image(*sections, length=None, distance=0x800):
    """@sections: (offset, bytes there, gpa, size, type, attributes)"""
    metadata = b'TDVF' + number(length or 16 + 32 * len(sections)) + \
        number(1) + number(len(sections))
    for offset, used, gpa, size, kind, attributes in sections:
        metadata += number(offset) + number(used) + number(gpa, 8) + \
            number(size, 8) + number(kind) + number(attributes)
    return image(table(entry(TDX_METADATA, number(distance))), metadata)


def tdx_add(gpa):
    """The record of a page."""
    record = bytearray(128)
    record[0:12] = b'MEM.PAGE.ADD'
    record[16:24] = number(gpa, 8)
    return bytes(record)


def tdx_extend(gpa, contents):
    """The records of a page's contents."""
    records = b''
    for chunk in range(16):
        record = bytearray(128)
        record[0:9] = b'MR.EXTEND'
        record[16:24] = number(gpa + chunk * 256, 8)
        records += bytes(record) + contents[chunk * 256:chunk * 256 + 256]
    return records


BFV = (0xe000, 0x2000, 0xffffe000, 0x2000, 0, 1)
HOB = (0, 0, 0x9000, 0x1000, 2, 0)


class Tdx(unittest.TestCase):
    """MRTD."""

    def test_sections_in_the_order_of_the_table(self):
        data = tdx_image(BFV, (0, 0x1000, 0xffff0000, 0x1000, 1, 0), HOB,
                         (0, 0, 0x3000, 0x1000, 3, 1),
                         (0, 0, 0x1000, 0x2000, 3, 2))
        records = tdx_add(0xffffe000)
        records += tdx_extend(0xffffe000, data[0xe000:0xf000])
        records += tdx_add(0xfffff000)
        records += tdx_extend(0xfffff000, data[0xf000:0x10000])
        records += tdx_add(0xffff0000)
        records += tdx_add(0x9000)
        records += tdx_add(0x3000) + tdx_extend(0x3000, ZEROS)
        records += tdx_add(0x1000) + tdx_add(0x2000)
        launch = measure.TdxLaunch(data)
        self.assertEqual(launch.digest(), hashlib.sha384(records).digest())
        self.assertEqual([(r.name, r.gpa, r.size, r.type)
                          for r in launch.ranges], [
            ('BFV', 0xffffe000, 0x2000, 'measured'),
            ('CFV', 0xffff0000, 0x1000, 'added'),
            ('TD_HOB', 0x9000, 0x1000, 'added'),
            ('TEMP_MEM', 0x3000, 0x1000, 'measured'),
            ('TEMP_MEM', 0x1000, 0x2000, 'added')])

    def test_known_value(self):
        # By dd, printf and sha384sum.
        self.assertEqual(
            measure.TdxLaunch(tdx_image(HOB, (
                0x1000, 0x1000, 0xffff1000, 0x1000, 0, 1))).digest().hex(),
            'aed606a6f0030a77d6a5a798f4852dceec3a17bcbc549ec0'
            '17aece9d4ecc5ca9420cdbbf61a8557ed0c2e285f711fcd9')

    def test_the_size_in_memory_is_what_counts(self):
        data = tdx_image((0x1000, 1, 0xffff1000, 0x1000, 0, 1), HOB)
        self.assertEqual(
            measure.TdxLaunch(data).digest(), hashlib.sha384(
                tdx_add(0xffff1000) +
                tdx_extend(0xffff1000, data[0x1000:0x2000]) +
                tdx_add(0x9000)).digest())

    def check_refused(self, reason, *sections, **kwargs):
        with self.assertRaisesRegex(LabError, reason):
            measure.TdxLaunch(tdx_image(*sections, **kwargs))

    def test_bad_sections(self):
        for reason, bad in (
                ('BFV.* not in the image: 0x2000 bytes at offset 0xf000',
                 (0xf000, 0x2000, 0xffffc000, 0x2000, 0, 1)),
                ('BFV.* not in the image',
                 (0xe800, 0x1000, 0xffffd000, 0x1000, 0, 1)),
                ('BFV.* not in the image: 0x1001 bytes',
                 (0xe000, 0x1001, 0xffffd000, 0x1000, 0, 1)),
                ('CFV.* not in the image: 0x0 bytes',
                 (0xe000, 0, 0xffffd000, 0x1000, 1, 0)),
                ('TEMP_MEM.* it has 0x10 bytes in the image',
                 (0, 16, 0x8000, 0x1000, 3, 0)),
                ('type 4.* unknown', (0, 0, 0x8000, 0x1000, 4, 0)),
                ('TEMP_MEM.* 0x1000 bytes at 0x8800: .*not whole pages',
                 (0, 0, 0x8800, 0x1000, 3, 0)),
                ('not whole pages', (0, 0, 0x8000, 0x800, 3, 0)),
                ('it is empty', (0, 0, 0x8000, 0, 3, 0)),
                ('not in RAM', (0, 0, 1 << 32, 0x1000, 3, 0)),
                ('not in RAM',
                 (0, 0, (1 << 64) - 0x1000, 0x1000, 3, 0)),
                (r'it overlaps section 1 \(TD_HOB\), 0x2000 bytes at 0x9000',
                 (0, 0, 0xa000, 0x1000, 3, 0))):
            self.check_refused(r'section 2 \(.*' + reason, BFV,
                               (*HOB[:3], 0x2000, 2, 0), bad)

    def test_places_in_ram(self):
        # Below the VGA window, and from 1 MiB up to the image
        for gpa in 0, 0x9f000, 0x100000, 0xfffef000:
            measure.TdxLaunch(tdx_image(BFV, HOB, (0, 0, gpa, 0x1000, 3, 0)))
            measure.TdxLaunch(tdx_image(
                BFV, HOB, (0xe000, 0x1000, gpa, 0x1000, 0, 1)))
        for gpa in 0xa0000, 0xff000, 0xffff0000:
            self.check_refused('not in RAM', BFV, HOB,
                               (0, 0, gpa, 0x1000, 3, 0))
        for gpa in 0x9f000, 0xff000, 0xfffef000:
            self.check_refused('not in RAM', BFV, HOB,
                               (0, 0, gpa, 0x2000, 3, 0))
        for gpa in 0x9f000, 0xff000, 0xfffef000, 0xfffff000:
            self.check_refused('neither in RAM .* nor in the image', HOB,
                               (0xe000, 0x2000, gpa, 0x2000, 1, 0))

    def test_contents_that_are_zeros(self):
        data = bytearray(tdx_image(BFV, HOB, (
            0x1000, 0x1000, 0xffff1000, 0x1000, 1, 1)))
        data[0x1000:0x2000] = ZEROS
        measure.TdxLaunch(bytes(data))
        data = bytearray(tdx_image((0, 1, 0xffff0000, 0x2000, 0, 1), HOB))
        data[:0x1fff] = bytes(0x1fff)
        measure.TdxLaunch(bytes(data))
        data[0x1fff] = 0
        with self.assertRaisesRegex(LabError, r'section 0 \(BFV\).* zeros'):
            measure.TdxLaunch(bytes(data))

    def test_one_hob_that_is_not_measured(self):
        self.check_refused('0 TD_HOB sections, not exactly one', BFV,
                           (0, 0, 0xa000, 0x1000, 3, 0))
        self.check_refused('2 TD_HOB sections', BFV, HOB,
                           (0, 0, 0xa000, 0x1000, 2, 0))
        self.check_refused(r'section 1 \(TD_HOB\).* is measured', BFV,
                           (*HOB[:5], 1))

    def test_a_hob_that_is_too_small(self):
        # 64 bytes, and 48 for each area: 2, and 2 more for each section
        temp = [(0, 0, 0x100000 + n * 0x1000, 0x1000, 3, 0)
                for n in range(41)]
        measure.TdxLaunch(tdx_image(BFV, HOB, *temp[:40]))
        self.check_refused(r'section 1 \(TD_HOB\), 0x1000 bytes at 0x9000: '
                           'it needs 0x1060 bytes', BFV, HOB, *temp)

    def test_length_of_the_metadata(self):
        for length in 79, 81:
            self.check_refused(f'2 sections in {length} bytes', BFV, HOB,
                               length=length)
        self.check_refused('1 sections in 48 bytes', HOB)
        self.check_refused('not where', BFV, HOB, distance=0x801)

    def test_metadata_at_the_start_of_the_image(self):
        data = tdx_image(BFV, HOB, distance=SIZE)
        measure.TdxLaunch(data[-0x800:-0x7b0] + data[80:])


class BrokenTables(unittest.TestCase):
    """Firmware that cannot be understood is refused with the reason."""

    METADATA = sev_metadata((0x1000, 0x1000, 3))
    ENTRY = entry(SEV_METADATA, number(0x800))
    ENTRIES = RESET + ENTRY

    def check(self, reason, data):
        with self.assertRaisesRegex(LabError, reason):
            measure.SnpLaunch(data)

    def check_metadata(self, reason, metadata):
        self.check(reason, image(table(self.ENTRIES), metadata))

    def test_size(self):
        good = sev_image((0x1000, 0x1000, 3))
        measure.SnpLaunch(good)
        for data in b'', good[1:], good + bytes(4096):
            self.check('not a multiple of 64 KiB', data)
        large = bytes(0x10f0000) + good
        measure.SnpLaunch(large)
        self.check('0x1110000 bytes; there is room for 0x1100000',
                   bytes(SIZE) + large)

    def test_no_table(self):
        self.check('no table of GUIDs', bytes(SIZE))

    def test_no_entry(self):
        self.check('no ASEV metadata', image(table(RESET)))
        with self.assertRaisesRegex(LabError, 'no TDVF metadata'):
            measure.TdxLaunch(image(table(self.ENTRIES), self.METADATA))

    def test_no_reset_address(self):
        for reset in b'', entry(SEV_ES_RESET, number(0)):
            self.check('no SEV-ES reset block',
                       image(table(reset, self.ENTRY), self.METADATA))
        self.check('has 3 bytes of data', image(
            table(entry(SEV_ES_RESET, b'123'), self.ENTRY), self.METADATA))

    def test_length_of_the_table(self):
        for length in 0, 17, SIZE - 31:
            self.check(f'a length of {length}', image(
                self.ENTRY + number(length, 2) + bytes.fromhex(FOOTER)))

    def test_length_of_an_entry(self):
        for length in 0, 17, len(self.ENTRY) + 1, 0xffff:
            bad = number(0x800) + number(length, 2) + self.ENTRY[-16:]
            self.check('broken at offset 0xffce', image(table(bad)))
        # Also of the last one, and what is too short to be one.
        self.check('broken at offset 0xffb8',
                   image(table(b'12345', self.ENTRY)))

    def test_data_of_an_entry(self):
        self.check('has 3 bytes of data',
                   image(table(RESET, entry(SEV_METADATA, b'123'))))

    def test_the_first_entry_from_the_end_counts(self):
        measure.SnpLaunch(image(table(
            entry(SEV_ES_RESET, b''), entry(SEV_METADATA, b''), self.ENTRIES),
            self.METADATA))
        self.check('has 0 bytes of data', image(table(
            self.ENTRIES, entry(SEV_METADATA, b'')), self.METADATA))

    def test_offset_of_the_metadata(self):
        for offset in 0, 15, 0x7ff, SIZE + 1, 0xffffffff:
            self.check(f'says: {offset} bytes before the end', image(
                table(RESET, entry(SEV_METADATA, number(offset))),
                self.METADATA))

    def test_metadata_at_the_end_of_the_image(self):
        data = image(table(RESET, entry(SEV_METADATA, number(15))))
        self.check('says: 15 bytes before the end',
                   data[:-15] + b'ASEV' + data[-11:])

    def test_head_of_the_metadata(self):
        good = self.METADATA
        self.check_metadata('ASEV metadata is not where', b'BSEV' + good[4:])
        self.check_metadata('1 sections in 27 bytes',
                            good[:4] + number(27) + good[8:])
        self.check_metadata('1 sections in 2049 bytes',
                            good[:4] + number(2049) + good[8:])
        self.check_metadata('unknown version 2',
                            good[:8] + number(2) + good[12:])
        self.check_metadata('3 sections in 28 bytes',
                            good[:12] + number(3) + good[16:])
        self.check_metadata('1025 sections, more than 1024',
                            good[:12] + number(1025) + good[16:])

    def test_metadata_too_near_to_the_start_of_the_image(self):
        tables = table(RESET, entry(SEV_METADATA, number(SIZE - 28)))
        data = image(tables)
        measure.SnpLaunch(data[:28] + self.METADATA + data[56:])
        tables = table(RESET, entry(SEV_METADATA, number(SIZE - 27)))
        data = image(tables)
        self.check('28 bytes is only 27 bytes from the start',
                   data[:27] + self.METADATA + data[55:])

    def test_sections(self):
        good = (0x9000, 0x1000, 2)
        for reason, section in (
                ('0x1000 bytes at 0x1001: these are not whole pages',
                 (0x1001, 0x1000, 1)),
                ('not whole pages', (0x1000, 0xfff, 1)),
                ('it is empty', (0x1000, 0, 1)),
                (r'it overlaps section 0 \(SECRETS\), 0x1000 bytes at '
                 '0x9000', (0x9000, 0x1000, 1))):
            self.check(r'section 1 \(SEC_MEM\).*' + reason,
                       sev_image(good, section))
        # The section that starts later is the one that overlaps.
        self.check(r'section 0 \(SECRETS\).* overlaps section 1 \(SEC_MEM\)',
                   sev_image(good, (0x8000, 0x2000, 1)))

    def test_places_in_ram(self):
        for gpa in 0, 0x9f000, 0x100000, 0xfffef000:
            measure.SnpLaunch(sev_image((gpa, 0x1000, 1)))
        for gpa in 0xa0000, 0xff000, 0xffff0000, 0xfffff000:
            self.check(r'section 0 \(SEC_MEM\).* not in RAM',
                       sev_image((gpa, 0x1000, 1)))
        for gpa in 0x9f000, 0xff000, 0xfffef000, 0xfffff000:
            self.check('not in RAM', sev_image((gpa, 0x2000, 1)))

    def test_an_unknown_type_is_zeros(self):
        data = sev_image((0x5000, 0x1000, 99))
        self.assertEqual(measure.SnpLaunch(data).digest(),
                         snp_page(snp_firmware(data), 3, 0x5000))


class Tool(unittest.TestCase):
    """scripts/launch-digest"""

    def setUp(self):
        temp = tempfile.TemporaryDirectory(prefix='gmem-')
        self.addCleanup(temp.cleanup)
        self.dir = temp.name

    def file(self, name, data):
        """Write a file; returns its path."""
        path = os.path.join(self.dir, name)
        with open(path, 'wb') as f:
            f.write(data)
        return path

    def run_tool(self, *args):
        """Returns (exit status, standard output, standard error)."""
        done = subprocess.run([TOOL, *args], capture_output=True, text=True,
                              check=False)
        return done.returncode, done.stdout, done.stderr

    NOTE = "launch-digest: this is the digest before the vCPUs' VMSAs; a " \
        'report has the one after them: give --vcpus\n'
    VCPUS = ('--vcpus', '2', '--vcpu-type', 'EPYC')

    def test_snp(self):
        data = sev_image((0x4000, 0x1000, 3))
        path = self.file('firmware', data)
        after = snp_firmware(data).hex()
        last = snp_page(snp_firmware(data), 6, 0x4000).hex()
        self.assertEqual(self.run_tool('snp', path),
                         (0, last + '\n', self.NOTE))
        self.assertEqual(
            self.run_tool('snp', path, '--records'),
            (0, f'0xffff0000-0xffffffff firmware      normal   {after}\n'
             f'0x00004000-0x00004fff CPUID         CPUID    {last}\n'
             f'{last}\n', self.NOTE))

    def test_snp_with_vcpus(self):
        data = sev_image((0x4000, 0x1000, 3))
        path = self.file('firmware', data)
        before = snp_page(snp_firmware(data), 6, 0x4000)
        one, two = (snp_vmsas(before, 0x800f12, n).hex() for n in (1, 2))
        for which in (('--vcpu-type', 'EPYC'), ('--vcpu-type', 'EPYC-v4'),
                      ('--vcpu-sig', '0x800f12'), ('--vcpu-sig', '8392466')):
            self.assertEqual(
                self.run_tool('snp', path, '--vcpus', '2', *which),
                (0, two + '\n', ''))
        status, out, _ = self.run_tool('snp', path, *self.VCPUS, '--records')
        self.assertEqual((status, out.splitlines()[2:]), (0, [
            f'0xfffffffff000-0xffffffffffff VMSA 0        VMSA     {one}',
            f'0xfffffffff000-0xffffffffffff VMSA 1        VMSA     {two}',
            two]))
        digest = snp_vmsas(before, 0x800f12, 2, 0x21).hex()
        self.assertEqual(
            self.run_tool('snp', path, *self.VCPUS, '--guest-features=0x21'),
            (0, digest + '\n', ''))
        status, _, err = self.run_tool('snp', path, '--vcpus=1',
                                       '--vcpu-type=host')
        self.assertEqual(status, 1)
        self.assertRegex(err, "launch-digest: .*'host' is not one of")

    def test_wrong_options(self):
        path = self.file('firmware', sev_image((0x5000, 0x1000, 0x10)))
        empty = self.file('empty', b'')
        for reason, *args in (
                ('--vcpus needs --vcpu-type or --vcpu-sig', '--vcpus=1'),
                ('--vcpus is 1 to 4096', '--vcpus=0', '--vcpu-sig=1'),
                ('--vcpus is 1 to 4096', '--vcpus=4097', '--vcpu-sig=1'),
                ('not allowed with', *self.VCPUS, '--vcpu-sig=1'),
                ('--vcpu-type needs --vcpus', '--vcpu-type=EPYC'),
                ('--vcpu-sig needs --vcpus', '--vcpu-sig=0'),
                ('--guest-features needs --vcpus', '--guest-features=1'),
                ('--vcpu-sig is a number of 32 bits', '--vcpus=1',
                 '--vcpu-sig=0x100000000'),
                ('--guest-features is .* with bit 0', *self.VCPUS,
                 '--guest-features=2'),
                ('--initrd needs --kernel', '--initrd', path),
                ('--append needs --kernel', '--append='),
                ('--kernel is empty: it has to name a file', '--kernel='),
                ('--initrd is empty: it has to name a file', '--kernel', path,
                 '--initrd='),
                ('--json stands alone', '--json', '--records'),
                ('argument --expect', '--expect=1234')):
            status, out, err = self.run_tool('snp', path, *args)
            self.assertEqual((status, out), (2, ''))
            self.assertRegex(err, reason)
        status, out, err = self.run_tool('snp', path, '--kernel', empty)
        self.assertEqual((status, out), (1, ''))
        self.assertIn('the kernel has 0 bytes', err)
        for args in self.VCPUS[:2], ('--kernel', path), ('--append', ''):
            status, out, err = self.run_tool('tdx', path, *args)
            self.assertEqual((status, out), (2, ''))
            self.assertIn(f'{args[0]} is for snp', err)

    def test_a_closed_pipe_ends_it_silently(self):
        path = self.file('firmware', sev_image((0x4000, 0x1000, 3)))
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                [TOOL, 'snp', path, *self.VCPUS, '--records'], stdout=writer,
                stderr=subprocess.PIPE, check=False)
        finally:
            os.close(writer)
        self.assertEqual((done.returncode, done.stderr),
                         (-signal.SIGPIPE, b''))

    def json(self, kind, *args):
        """What --json prints."""
        status, out, _ = self.run_tool(kind, *args, '--json')
        self.assertEqual(status, 0)
        return json.loads(out)

    def test_json(self):
        data = sev_image((0x4000, 0x1000, 3), (0x5000, 0x1000, 1))
        path = self.file('firmware', data)
        before = snp_page(snp_page(snp_firmware(data), 6, 0x4000), 3, 0x5000)
        launch = [{'gpa': 0xffff0000, 'size': SIZE, 'type': 'normal',
                   'measured': True,
                   'digest': hashlib.sha384(data).hexdigest()},
                  {'gpa': 0x4000, 'size': 0x1000, 'type': 'cpuid',
                   'measured': False},
                  {'gpa': 0x5000, 'size': 0x1000, 'type': 'zero',
                   'measured': False}]
        self.assertEqual(self.json('snp', path), {
            'type': 'sev-snp', 'digest-before-vmsas': before.hex(),
            'launch': launch})
        launch += [{'gpa': 0xfffffffff000, 'size': 0x1000, 'type': 'vmsa',
                    'measured': True, 'digest': hashlib.sha384(
                        vmsa_page(0xffff0000, rip, 0x800f12)).hexdigest()}
                   for rip in (0xfff0, 0xf004)]
        self.assertEqual(self.json('snp', path, *self.VCPUS), {
            'type': 'sev-snp', 'digest-before-vmsas': before.hex(),
            'digest-after-vmsas': snp_vmsas(before, 0x800f12, 2).hex(),
            'guest-features': 1, 'vcpu-signature': 0x800f12, 'vcpus': 2,
            'launch': launch})

        data = tdx_image(BFV, HOB, (0, 0, 0x3000, 0x1000, 3, 1))
        mrtd = hashlib.sha384(
            tdx_add(0xffffe000) +
            tdx_extend(0xffffe000, data[0xe000:0xf000]) +
            tdx_add(0xfffff000) +
            tdx_extend(0xfffff000, data[0xf000:0x10000]) +
            tdx_add(0x9000) + tdx_add(0x3000) + tdx_extend(0x3000, ZEROS))
        self.assertEqual(self.json('tdx', self.file('firmware', data)), {
            'type': 'tdx', 'mrtd': mrtd.hexdigest(), 'launch': [
                {'gpa': 0xffffe000, 'size': 0x2000, 'type': 'bfv',
                 'measured': True,
                 'digest': hashlib.sha384(data[0xe000:]).hexdigest()},
                {'gpa': 0x9000, 'size': 0x1000, 'type': 'td-hob',
                 'measured': False},
                {'gpa': 0x3000, 'size': 0x1000, 'type': 'temp-mem',
                 'measured': True,
                 'digest': hashlib.sha384(ZEROS).hexdigest()}]})

    def test_expect(self):
        data = sev_image((0x4000, 0x1000, 3))
        path = self.file('firmware', data)
        before = snp_page(snp_firmware(data), 6, 0x4000)
        after = snp_vmsas(before, 0x800f12, 2).hex()
        self.assertEqual(
            self.run_tool('snp', path, *self.VCPUS, '--expect', after),
            (0, 'OK\n', ''))
        self.assertEqual(
            self.run_tool('snp', path, '--expect', before.hex().upper()),
            (0, 'OK\n', self.NOTE))
        wrong = '1' * 96
        self.assertEqual(
            self.run_tool('snp', path, *self.VCPUS, '--expect', wrong),
            (1, f'the digest differs:\n  computed {after}\n'
             f'  given    {wrong}\n', ''))
        self.assertEqual(
            self.run_tool('snp', path, *self.VCPUS, '--expect', before.hex()),
            (1, f'the digest differs:\n  computed {after}\n'
             f'  given    {before.hex()}\n'
             '  given is the digest before the VMSAs\n', ''))

    def query(self, kind, path, answer, *args):
        """Compare with an answer, whole and its value alone.

        Returns the exit status and the output.
        """
        whole = self.run_tool(kind, path, *args, '--query', self.file(
            'answer', json.dumps({'return': answer, 'id': 1}).encode()))
        done = subprocess.run([TOOL, kind, path, *args, '--query', '-'],
                              input=json.dumps(answer), capture_output=True,
                              text=True, check=False)
        self.assertEqual(whole, (done.returncode, done.stdout, done.stderr))
        return whole[:2]

    def test_query_of_a_measurement(self):
        data = sev_image((0x4000, 0x1000, 3))
        path = self.file('firmware', data)
        before = snp_page(snp_firmware(data), 6, 0x4000)
        after = snp_vmsas(before, 0x800f12, 2).hex()
        good = {'type': 'sev-snp', 'digest-before-vmsas': before.hex(),
                'digest-after-vmsas': after, 'policy': 0x30000,
                'guest-features': 1, 'vcpu-signature': 0x800f12, 'vcpus': 2}
        self.assertEqual(self.query('snp', path, good, *self.VCPUS),
                         (0, 'OK\n'))
        self.assertEqual(self.query('snp', path, good), (0, 'OK\n'))
        wrong = 'ab' * 48
        for name, value in (
                ('type', 'tdx'), ('digest-before-vmsas', wrong),
                ('digest-after-vmsas', wrong), ('digest-after-vmsas', None),
                ('guest-features', 3), ('vcpus', 3), ('vcpu-signature', 5)):
            # A wrong digest is what the wrong value led to.
            bad = good | {'digest-after-vmsas': wrong, name: value}
            status, out = self.query('snp', path, bad, *self.VCPUS)
            found = 'nothing' if value is None else value
            self.assertEqual((status, out), (
                1, f'{name} differs:\n  computed {good[name]}\n'
                f'  given    {found}\n'))
        del good['digest-before-vmsas']
        self.assertRegex(self.query('snp', path, good)[1], 'given    nothing')
        # With a digest, it tells both.
        status, out = self.query('snp', path, bad, *self.VCPUS, '--expect',
                                 wrong)
        self.assertEqual(status, 1)
        self.assertRegex(out, '(?s)the digest differs.*vcpu-signature differs')

    def test_query_of_an_mrtd(self):
        data = tdx_image(BFV, HOB)
        path = self.file('firmware', data)
        good = {'type': 'tdx', 'mrtd': measure.TdxLaunch(data).digest().hex(),
                'mrconfigid': '0' * 96}
        self.assertEqual(self.query('tdx', path, good), (0, 'OK\n'))
        status, out = self.query('tdx', path, good | {'mrtd': '0' * 96})
        self.assertEqual(status, 1)
        self.assertRegex(out, 'mrtd differs')
        self.assertEqual(self.query('tdx', path, {'type': 'tdx'})[0], 1)

    def test_query_of_a_launch(self):
        data = sev_image((0x4000, 0x1000, 3), (0x5000, 0x1000, 1))
        path = self.file('firmware', data)
        launch = self.json('snp', path, *self.VCPUS)['launch']

        def check(entries, *args):
            return self.query('snp', path, {'blocks': [], 'launch': entries},
                              *args)

        self.assertEqual(check(launch, *self.VCPUS), (0, 'OK\n'))
        self.assertEqual(check(launch), (0, 'OK\n'))
        self.assertEqual(check([e | {'source': 'new'} for e in launch],
                               *self.VCPUS), (0, 'OK\n'))
        for n, name, change in (
                (0, 'firmware', {'digest': '0' * 96}),
                (1, 'CPUID', {'gpa': 0x3000}), (1, 'CPUID', {'size': 0x2000}),
                (2, 'SEC_MEM', {'type': 'secrets'}),
                (2, 'SEC_MEM', {'measured': True, 'digest': 'ab'}),
                (4, 'VMSA 1', {'digest': '0' * 96})):
            bad = [*launch[:n], launch[n] | change, *launch[n + 1:]]
            self.assertEqual(check(bad, *self.VCPUS), (
                1, f'range {n} ({name}) of the launch differs:\n'
                f'  computed {json.dumps(launch[n])}\n'
                f'  given    {json.dumps(bad[n])}\n'))
        status, out = check(launch[:2])
        self.assertEqual(status, 1)
        self.assertRegex(out, r'range 2 \(SEC_MEM\).*\n.*\n  given    nothing')
        status, out = check([*launch, launch[1]], *self.VCPUS)
        self.assertEqual(status, 1)
        self.assertRegex(out, r'range 5 of the launch.*\n  computed nothing')
        self.assertEqual(check([])[0], 1)
        self.assertEqual(check([1, None])[0], 1)

    def test_query_that_is_no_answer(self):
        path = self.file('firmware', tdx_image(BFV, HOB))
        for data in b'', b'{', b'\xff', b'[' * 100000:
            status, _, err = self.run_tool('tdx', path, '--query',
                                           self.file('answer', data))
            self.assertEqual(status, 1)
            self.assertRegex(err, '^launch-digest: .*answer is not JSON')
        for answer in [], 1, None, {}, {'launch': 1}, {'return': {}}, \
                {'error': {'class': 'GenericError', 'desc': 'no'}}:
            status, _, err = self.run_tool(
                'tdx', path, '--query',
                self.file('answer', json.dumps(answer).encode()))
            self.assertEqual(status, 1)
            self.assertRegex(err, '^launch-digest: this is no answer to')

    def test_snp_with_a_kernel(self):
        data = sev_image((0x5000, 0x1000, 0x10), hashes=KernelHashes.AREA)
        path = self.file('firmware', data)
        contents = bytes(1023) + b'k' * 5000
        kernel = ['--kernel', self.file('kernel', contents)]
        initrd = ['--initrd', self.file('initrd', b'initrd')]
        append = ['--append', 'käse']
        for args, hashes in (
                (kernel, (contents, b'', b'\0')),
                (kernel + initrd, (contents, b'initrd', b'\0')),
                (kernel + append, (contents, b'', 'käse\0'.encode()))):
            page = bytes(0xc00) + KernelHashes.table(*hashes)
            digest = snp_page(snp_firmware(data), 1, 0x5000,
                              page + bytes(4096 - len(page)))
            self.assertEqual(self.run_tool('snp', path, *args),
                             (0, digest.hex() + '\n', self.NOTE))

    def test_kernels_that_qemu_does_not_hash(self):
        path = self.file('firmware', sev_image(
            (0x5000, 0x1000, 0x10), hashes=KernelHashes.AREA))
        header = bytes(0x1f1) + b'\xff' + bytes(16) + b'HdrS' + bytes(9000)
        for kernel, reason in (
                (bytes(1023), '1023 bytes; QEMU takes 1024'),
                (header, '9518 bytes, .* 131072 are its setup'),
                (b'\x7fELF' + bytes(9000), 'no hashes of multiboot and PVH'),
                (bytes(4096) + number(0x1badb002) + bytes(9000),
                 'no hashes of multiboot and PVH')):
            status, out, err = self.run_tool(
                'snp', path, '--kernel', self.file('kernel', kernel))
            self.assertEqual((status, out), (1, ''))
            self.assertRegex(err, reason)
        # The magic number has to be aligned.
        self.assertEqual(self.run_tool(
            'snp', path, '--kernel', self.file(
                'kernel', bytes(4098) + number(0x1badb002) + bytes(9000)))[0],
            0)

    def test_tdx(self):
        data = tdx_image(BFV, HOB)
        mrtd = measure.TdxLaunch(data).digest().hex()
        self.assertEqual(self.run_tool('tdx', self.file('firmware', data)),
                         (0, mrtd + '\n', ''))

    def test_errors(self):
        path = self.file('firmware', bytes(SIZE))
        self.assertEqual(self.run_tool('tdx', path), (
            1, '', 'launch-digest: the firmware has no table of GUIDs\n'))
        path = os.path.join(self.dir, 'absent')
        self.assertEqual(self.run_tool('snp', path), (
            1, '', f'launch-digest: cannot read {path}: '
            'No such file or directory\n'))
