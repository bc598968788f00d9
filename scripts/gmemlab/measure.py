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
LARGEST_IMAGE = 0x11f0000       # the local APIC's page is at 0xfee00000
LOW_RAM_END = 0xa0000           # the VGA window and ROMs, up to:
HIGH_RAM = 0x100000
MOST_SECTIONS = 1024

TABLE_FOOTER = uuid.UUID('96b582de-1fb2-45f7-baea-a366c55a082d')
SEV_METADATA = uuid.UUID('dc886566-984a-4798-a75e-5585a7bf67cc')
SEV_ES_RESET_BLOCK = uuid.UUID('00f771de-1a7e-4fcb-890e-68c77e2fb44e')
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
        if len(image) > LARGEST_IMAGE:
            raise LabError(f'the firmware has {len(image):#x} bytes; there '
                           f'is room for {LARGEST_IMAGE:#x}')
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
        """The list that an entry leads to.

        Returns the length that it gives for itself, the distance of its
        start from the image's end, and a list of tuples of numbers.
        """
        name = signature.decode()
        entry = self.entry(guid, '<I')
        if not entry:
            raise LabError(f'the firmware has no {name} metadata')
        offset, = entry
        at = len(self.image) - offset
        if offset < 16 or at < 0 or self.image[at:at + 4] != signature:
            raise LabError(f"the firmware's {name} metadata is not where its "
                           f'table says: {offset} bytes before the end')
        length, version, count = struct.unpack_from('<3I', self.image, at + 4)
        if version != 1:
            raise LabError(f"the firmware's {name} metadata has the unknown "
                           f'version {version}')
        if count > MOST_SECTIONS:
            raise LabError(f"the firmware's {name} metadata has {count} "
                           f'sections, more than {MOST_SECTIONS}')
        used = 16 + count * struct.calcsize(layout)
        if not used <= length <= offset:
            raise LabError(f"the firmware's {name} metadata has {count} "
                           f'sections in {length} bytes')
        return length, offset, list(struct.iter_unpack(
            layout, self.image[at + 16:at + used]))

    def in_ram(self, gpa, size):
        """Is all of it in memory that every guest has, given enough of it?"""
        return (gpa + size <= LOW_RAM_END or
                HIGH_RAM <= gpa <= gpa + size <= self.gpa)

    def in_image(self, gpa, size):
        """Is all of it in the image's place?"""
        return self.gpa <= gpa <= gpa + size <= TOP


class Section:
    """A section of the firmware's metadata.

    @number: its place in the list, from 0
    """

    def __init__(self, number, name, gpa, size):
        self.label = f'section {number} ({name})'
        self.gpa, self.size = gpa, size

    def refuse(self, what):
        """Raises an error that names the section."""
        raise LabError(f"the firmware's {self.label}, {self.size:#x} bytes "
                       f'at {self.gpa:#x}: {what}')

    def check_pages(self):
        """It is whole pages, and at least one."""
        if not self.size:
            self.refuse('it is empty')
        if self.gpa % PAGE or self.size % PAGE:
            self.refuse('these are not whole pages')


def check_overlaps(sections):
    """No page is added twice."""
    last = None
    for this in sorted(sections, key=lambda s: s.gpa):
        if last and this.gpa < last.gpa + last.size:
            this.refuse(f'it overlaps {last.label}, {last.size:#x} bytes at '
                        f'{last.gpa:#x}')
        last = this


class Launch:
    """Pages that a launch adds.

    @ranges: [Range], in the order of the commands
    """

    def __init__(self, ranges):
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
        sections = []
        reset, = firmware.entry(SEV_ES_RESET_BLOCK, '<I') or (0,)
        if not reset:
            raise LabError('the firmware has no SEV-ES reset block: there is '
                           'no address where vCPUs start')
        length, offset, numbers = firmware.metadata(SEV_METADATA, b'ASEV',
                                                    '<3I')
        if length > len(image) - offset:
            # QEMU does not find it there.
            raise LabError(f"the firmware's ASEV metadata of {length} bytes "
                           f'is only {len(image) - offset} bytes from the '
                           "start of the image")
        for n, (gpa, size, number) in enumerate(numbers):
            name, kind = SEV_SECTIONS.get(number, (f'type {number}', 'zero'))
            section = Section(n, name, gpa, size)
            section.check_pages()
            if not firmware.in_ram(gpa, size):
                section.refuse('that is not in RAM below 4 GiB')
            data = None
            if number == SEV_KERNEL_HASHES and hashes:
                kind = 'normal'
                data = self._hashes_page(firmware, section, hashes)
                data += bytes(size - len(data))
            sections.append(section)
            ranges.append(Range(name, gpa, size, kind, data))
        if hashes and not any(r.name == 'KERNEL_HASHES' for r in ranges):
            raise LabError('the firmware has no section for hashes of a '
                           'kernel: they would not be measured')
        check_overlaps(sections)
        super().__init__(ranges)

    @staticmethod
    def _hashes_page(firmware, section, hashes):
        base, size = firmware.entry(SEV_HASH_TABLE, '<2I') or (0, 0)
        if not base or size < len(hashes):
            section.refuse('the firmware has no place for hashes of a kernel '
                           f'(address {base:#x}, {size} bytes)')
        if not section.gpa <= base <= section.gpa + PAGE - len(hashes):
            section.refuse(f'the hashes of a kernel, {len(hashes)} bytes at '
                           f'{base:#x}, are not in its first page')
        page = bytes(base - section.gpa) + hashes
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
# A TD_HOB is a head with an end, and an entry for each area of memory.
HOB_HEAD, HOB_AREA = 64, 48


class TdxLaunch(Launch):
    """Launch of a TDX guest: its metadata's sections.

    MRTD is one hash, over a record for every page that is added.  If the
    section is measured, sixteen records with contents follow each of these.
    """

    def __init__(self, image):
        firmware = Firmware(image)
        ranges, sections = [], []
        length, _, numbers = firmware.metadata(TDX_METADATA, b'TDVF',
                                               '<2I2Q2I')
        if length != 16 + 32 * len(numbers) or len(numbers) < 2:
            raise LabError(f"the firmware's TDVF metadata has {len(numbers)} "
                           f'sections in {length} bytes')
        for n, (offset, used, gpa, size, number, attributes) in \
                enumerate(numbers):
            name = dict(enumerate(TDX_SECTIONS)).get(number, f'type {number}')
            section = Section(n, name, gpa, size)
            if name not in TDX_SECTIONS:
                section.refuse('the type is unknown')
            section.check_pages()
            measured = attributes & TDX_MR_EXTEND
            if number in (TDX_BFV, TDX_CFV):
                data = self._contents(firmware, section, offset, used)
                if number == TDX_BFV and not any(data):
                    section.refuse('all of it is zeros')
            else:
                self._check_memory(firmware, section, used)
                data = bytes(size)
            if number == TDX_HOB and measured:
                section.refuse('it is measured, but its contents depend on '
                               "the guest's memory")
            sections.append(section)
            ranges.append(Range(name, gpa, size, 'measured', data) if measured
                          else Range(name, gpa, size, 'added', None))
        self._check_hob(ranges, sections)
        check_overlaps(sections)
        super().__init__(ranges)

    @staticmethod
    def _contents(firmware, section, offset, used):
        """What a BFV or CFV has in memory: of its whole size there."""
        if not 0 < used <= section.size or offset % PAGE or \
                offset + section.size > len(firmware.image):
            section.refuse(f'it is not in the image: {used:#x} bytes at '
                           f'offset {offset:#x}')
        if not (firmware.in_ram(section.gpa, section.size) or
                firmware.in_image(section.gpa, section.size)):
            section.refuse('that is neither in RAM below 4 GiB nor in the '
                           "image's place")
        return firmware.image[offset:offset + section.size]

    @staticmethod
    def _check_memory(firmware, section, used):
        if used:
            section.refuse(f'it has {used:#x} bytes in the image')
        if not firmware.in_ram(section.gpa, section.size):
            section.refuse('that is not in RAM below 4 GiB')

    @staticmethod
    def _check_hob(ranges, sections):
        names = [r.name for r in ranges]
        if names.count('TD_HOB') != 1:
            raise LabError(f"the firmware has {names.count('TD_HOB')} TD_HOB "
                           'sections, not exactly one')
        # Each of them may split an area of RAM in three.
        memory = names.count('TD_HOB') + names.count('TEMP_MEM')
        needed = HOB_HEAD + HOB_AREA * (2 + 2 * memory)
        hob = sections[names.index('TD_HOB')]
        if hob.size < needed:
            hob.refuse(f'it needs {needed:#x} bytes for a list of the '
                       "guest's memory")

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
