# SPDX-License-Identifier: GPL-2.0-or-later
"""What a confidential guest's launch measures, by its firmware's tables.

QEMU puts firmware given by -bios right below 4 GiB of guest physical memory.
A table in it, found from the image's last bytes, has entries by GUID.  They
lead to lists of the pages that a launch has to add: "ASEV" for SEV-SNP,
"TDVF" for TDX.

Layouts: AMD SEV-SNP ABI, PAGE_INFO of SNP_LAUNCH_UPDATE; Intel TDX module,
MRTD; TDVF design guide.  The order of launch commands is that of QEMU 10.2.2.
"""
import hashlib
import os
import struct
import typing
import uuid

from . import LabError

PAGE = 4096
CHUNK = 256                     # TDX measures contents in pieces of this size
TOP = 1 << 32

TABLE_FOOTER = uuid.UUID('96b582de-1fb2-45f7-baea-a366c55a082d')
SEV_METADATA = uuid.UUID('dc886566-984a-4798-a75e-5585a7bf67cc')
SEV_HASH_TABLE = uuid.UUID('7255371f-3a3b-4b04-927b-1da6efa8d454')
TDX_METADATA = uuid.UUID('e47a6535-984a-4798-865e-4685a7bf8ec2')

HASH_TABLE = uuid.UUID('9438d606-4f22-4cc9-b479-a793d411fd21')
HASH_OF_APPEND = uuid.UUID('97d02dd8-bd20-4c94-aa78-e7714d36ab2a')
HASH_OF_INITRD = uuid.UUID('44baf731-3a2f-4bd7-9af1-41e29169781d')
HASH_OF_KERNEL = uuid.UUID('4de79437-abd2-427f-b835-d5b172d2045b')


class Range(typing.NamedTuple):
    """Pages that one launch command adds, from the lowest gpa on."""
    name: str
    gpa: int
    size: int                   # bytes, whole pages
    type: str                   # of SNP_TYPES; TDX: measured or added
    data: typing.Optional[bytes]    # None where contents do not count

    def pages(self):
        """A gpa and the contents that count, for every page."""
        for at in range(0, self.size, PAGE):
            yield self.gpa + at, self.data and self.data[at:at + PAGE]


class Firmware:
    """A firmware image, and the entries of its table."""

    def __init__(self, image):
        if not image or len(image) % (64 << 10):
            raise LabError(f'the firmware has {len(image)} bytes, which is '
                           'not a multiple of 64 KiB')
        self.image = image
        self.gpa = TOP - len(image)
        self._entries = self._table()

    def _table(self):
        # An entry, and the table itself, ends with its length and its GUID;
        # behind the table are 32 bytes.
        end = len(self.image) - 32
        length, guid = self._tail(end)
        if guid != TABLE_FOOTER:
            raise LabError('the firmware has no table of GUIDs')
        if not 18 <= length <= end:
            raise LabError(f"the firmware's table of GUIDs has a length of "
                           f'{length}')
        start = end - length
        end -= 18
        entries = {}
        while end > start:
            length, guid = self._tail(end) if end - start >= 18 else (0, None)
            if not 18 <= length <= end - start:
                raise LabError("the firmware's table of GUIDs is broken at "
                               f'offset {end:#x} of the image')
            entries.setdefault(guid, self.image[end - length:end - 18])
            end -= length
        return entries

    def _tail(self, end):
        return (struct.unpack_from('<H', self.image, end - 18)[0],
                uuid.UUID(bytes_le=self.image[end - 16:end]))

    def entry(self, guid, layout):
        """Returns the numbers in an entry, or None if there is none."""
        data = self._entries.get(guid)
        if data is None:
            return None
        if len(data) != struct.calcsize(layout):
            raise LabError(f"the firmware's entry {guid} has {len(data)} "
                           'bytes of data')
        return struct.unpack(layout, data)

    def metadata(self, guid, signature, layout):
        """The list that an entry leads to: a list of tuples of numbers."""
        name = signature.decode()
        entry = self.entry(guid, '<I')
        if not entry:
            raise LabError(f'the firmware has no {name} metadata')
        at = len(self.image) - entry[0]
        if at < 0 or entry[0] < 16 or \
                self.image[at:at + 4] != signature:
            raise LabError(f"the firmware's {name} metadata is not where its "
                           f'table says: {entry[0]} bytes before the end')
        length, version, count = struct.unpack_from('<3I', self.image, at + 4)
        if version != 1:
            raise LabError(f"the firmware's {name} metadata has the unknown "
                           f'version {version}')
        used = 16 + count * struct.calcsize(layout)
        if not used <= length <= entry[0]:
            raise LabError(f"the firmware's {name} metadata has {count} "
                           f'sections in {length} bytes')
        return list(struct.iter_unpack(
            layout, self.image[at + 16:at + used]))


def check_range(name, gpa, size):
    """Pages can be added there."""
    if gpa % PAGE or size % PAGE or not size or gpa + size > TOP:
        raise LabError(f"the firmware's section {name} at {gpa:#x} with "
                       f'{size:#x} bytes is not whole pages below 4 GiB')


def check_overlaps(ranges):
    """No page is added twice."""
    last = None
    for this in sorted(ranges, key=lambda r: r.gpa):
        if last and this.gpa < last.gpa + last.size:
            raise LabError(f'{last.name} at {last.gpa:#x} and {this.name} at '
                           f'{this.gpa:#x} overlap')
        last = this


class Launch:
    """Pages that a launch adds.

    @ranges: [Range], in the order of the commands
    """

    def __init__(self, ranges):
        check_overlaps(ranges)
        self.ranges = ranges

    def steps(self):
        """Yields every range, and the digest so far after it."""
        raise NotImplementedError

    def digest(self):
        """The measurement of all of it."""
        *_, (_, last) = self.steps()
        return last


SNP_TYPES = {'normal': 1, 'zero': 3, 'secrets': 5, 'CPUID': 6}
SEV_KERNEL_HASHES = 0x10
SEV_SECTIONS = {
    1: ('SEC_MEM', 'zero'),
    2: ('SECRETS', 'secrets'),
    3: ('CPUID', 'CPUID'),
    4: ('SVSM_CAA', 'zero'),
    SEV_KERNEL_HASHES: ('KERNEL_HASHES', 'zero'),
}


def kernel_hashes(kernel, initrd=b'', append=''):
    """The table of hashes that QEMU makes of a directly booted kernel."""
    def entry(guid, data):
        return guid.bytes_le + struct.pack('<H', 50) + data

    table = b''.join(entry(guid, hashlib.sha256(data).digest())
                     for guid, data in ((HASH_OF_APPEND,
                                         os.fsencode(append) + b'\0'),
                                        (HASH_OF_INITRD, initrd),
                                        (HASH_OF_KERNEL, kernel)))
    table = HASH_TABLE.bytes_le + struct.pack('<H', 18 + len(table)) + table
    return table + bytes(-len(table) % 16)


class SnpLaunch(Launch):
    """Launch of an SEV-SNP guest: firmware, then its metadata's sections.

    The digest is a chain of one record a page.  It ends before the pages of
    the vCPUs' VMSAs, which the kernel adds when the launch is finished.

    @hashes: what kernel_hashes() returns, with kernel-hashes=on; else None
    """

    def __init__(self, image, hashes=None):
        firmware = Firmware(image)
        ranges = [Range('firmware', firmware.gpa, len(image), 'normal', image)]
        for gpa, size, number in firmware.metadata(SEV_METADATA, b'ASEV',
                                                   '<3I'):
            name, kind = SEV_SECTIONS.get(number, (f'type {number}', 'zero'))
            check_range(name, gpa, size)
            data = None
            if number == SEV_KERNEL_HASHES and hashes:
                kind = 'normal'
                data = self._hashes_page(firmware, gpa, hashes)
                data += bytes(size - len(data))
            ranges.append(Range(name, gpa, size, kind, data))
        if hashes and not any(r.name == 'KERNEL_HASHES' for r in ranges):
            raise LabError('the firmware has no section for hashes of a '
                           'kernel: they would not be measured')
        super().__init__(ranges)

    @staticmethod
    def _hashes_page(firmware, gpa, hashes):
        base, size = firmware.entry(SEV_HASH_TABLE, '<2I') or (0, 0)
        if not base or size < len(hashes):
            raise LabError('the firmware has no place for hashes of a kernel '
                           f'(address {base:#x}, {size} bytes)')
        if not gpa <= base <= gpa + PAGE - len(hashes):
            raise LabError(f'hashes of a kernel at {base:#x} are not in the '
                           f"first page of the firmware's section for them, "
                           f'{gpa:#x}')
        page = bytes(base - gpa) + hashes
        return page + bytes(PAGE - len(page))

    def steps(self):
        digest = bytes(48)
        for r in self.ranges:
            for gpa, data in r.pages():
                contents = hashlib.sha384(data).digest() if data else bytes(48)
                # No IMI page, nothing for VMPL 1 to 3.
                digest = hashlib.sha384(
                    digest + contents +
                    struct.pack('<HBBIQ', 0x70, SNP_TYPES[r.type], 0, 0,
                                gpa)).digest()
            yield r, digest


TDX_BFV, TDX_CFV, TDX_HOB, TDX_TEMP_MEM = range(4)
TDX_SECTIONS = ('BFV', 'CFV', 'TD_HOB', 'TEMP_MEM')
TDX_MR_EXTEND = 1


class TdxLaunch(Launch):
    """Launch of a TDX guest: its metadata's sections.

    MRTD is one hash, over a record for every page that is added.  If the
    section is measured, sixteen records with contents follow each of these.
    """

    def __init__(self, image):
        ranges = []
        sections = Firmware(image).metadata(TDX_METADATA, b'TDVF', '<2I2Q2I')
        for offset, used, gpa, size, number, attributes in sections:
            if number >= len(TDX_SECTIONS):
                raise LabError('the firmware has a TDVF section of the '
                               f'unknown type {number}')
            name = TDX_SECTIONS[number]
            check_range(name, gpa, size)
            measured = attributes & TDX_MR_EXTEND
            # The whole size is added, even if less of it has contents.
            if number in (TDX_BFV, TDX_CFV):
                if not 0 < used <= size or offset % PAGE or \
                        offset + size > len(image):
                    raise LabError(f"the firmware's section {name} is not in "
                                   f'its image: {used:#x} bytes at '
                                   f'{offset:#x} for {size:#x}')
                data = image[offset:offset + size]
            elif used:
                raise LabError(f"the firmware's section {name} has {used:#x} "
                               'bytes in the image')
            elif number == TDX_HOB and measured:
                raise LabError('the firmware wants its TD_HOB measured, which '
                               "depends on the guest's memory")
            else:
                data = bytes(size)
            ranges.append(Range(name, gpa, size, 'measured', data) if measured
                          else Range(name, gpa, size, 'added', None))
        if [r.name for r in ranges].count('TD_HOB') != 1:
            raise LabError('the firmware has not exactly one TD_HOB section')
        super().__init__(ranges)

    def steps(self):
        mrtd = hashlib.sha384()
        for r in self.ranges:
            for gpa, data in r.pages():
                mrtd.update(struct.pack('<16sQ104x', b'MEM.PAGE.ADD', gpa))
                for at in range(0, PAGE if data else 0, CHUNK):
                    mrtd.update(struct.pack('<16sQ104x', b'MR.EXTEND',
                                            gpa + at))
                    mrtd.update(data[at:at + CHUNK])
            yield r, mrtd.digest()
