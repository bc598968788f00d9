# SPDX-License-Identifier: GPL-2.0-or-later
"""What a confidential guest's launch measures, by its firmware's tables.

QEMU puts firmware given by -bios right below 4 GiB of guest physical memory.
A table in it, found from the image's last bytes, has entries by GUID.  They
lead to lists of the pages that a launch has to add: "ASEV" for SEV-SNP,
"TDVF" for TDX.

Layouts: AMD SEV-SNP ABI, PAGE_INFO of SNP_LAUNCH_UPDATE; AMD64 APM volume 2,
appendix B, VMSA; Intel TDX module, MRTD; TDVF design guide.  The order of
launch commands is that of QEMU 10.2.2.
"""
import hashlib
import itertools
import os
import re
import struct
import typing
import uuid

from . import LabError

PAGE = 4096
CHUNK = 256                     # TDX measures contents in pieces of this size
TOP = 1 << 32
LARGEST_IMAGE = 0x1100000       # the local APIC has 1 MiB at 0xfee00000
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

    def entry(self, name):
        """As in "launch" of QEMU's query-guest-memfd.

        @name: of the type there
        """
        entry = {'gpa': self.gpa, 'size': self.size, 'type': name,
                 'measured': bool(self.data)}
        if self.data:
            entry['digest'] = hashlib.sha384(self.data).hexdigest()
        return entry

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

    def entries(self):
        """As "launch" of QEMU's query-guest-memfd."""
        raise NotImplementedError

    def answer(self):
        """What QEMU's query-launch-measurement answers, as far as known."""
        raise NotImplementedError


SNP_TYPES = {'normal': 1, 'VMSA': 2, 'zero': 3, 'secrets': 5, 'CPUID': 6}
SEV_KERNEL_HASHES = 0x10
SEV_SECTIONS = {
    1: ('SEC_MEM', 'zero'),
    2: ('SECRETS', 'secrets'),
    3: ('CPUID', 'CPUID'),
    4: ('SVSM_CAA', 'zero'),
    SEV_KERNEL_HASHES: ('KERNEL_HASHES', 'zero'),
}


SECTOR = 512
MULTIBOOT = struct.pack('<I', 0x1badb002)


def check_kernel(kernel):
    """QEMU makes hashes of it: it has the header of Linux's boot protocol."""
    if len(kernel) < 2 * SECTOR or len(kernel) >= 1 << 31:
        raise LabError(f'the kernel has {len(kernel)} bytes; QEMU takes '
                       f'{2 * SECTOR} to 2 GiB less one')
    if kernel[0x202:0x206] != b'HdrS' and (
            kernel.startswith(b'\x7fELF') or
            MULTIBOOT in [kernel[at:at + 4] for at in range(0, 8192, 4)]):
        raise LabError('QEMU makes no hashes of multiboot and PVH kernels')
    setup = ((kernel[0x1f1] or 4) + 1) * SECTOR
    if setup > len(kernel):
        raise LabError(f'the kernel has {len(kernel)} bytes, and its header '
                       f'says that {setup} are its setup')


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


VMSA_GPA = 0xfffffffff000
RESET_VECTOR = 0xfffffff0       # where the first vCPU starts
GUEST_FEATURES = 1              # bit 0: SNP
MOST_VCPUS = 4096               # of any kernel

CPU_TYPES = {                   # family, model, stepping
    'qemu64': (15, 107, 1),
    'EPYC': (23, 1, 2),
    'EPYC-Rome': (23, 49, 0),
    'EPYC-Milan': (25, 1, 1),
    'EPYC-Genoa': (25, 17, 0),
    'EPYC-Turin': (26, 0, 0),
}


def cpu_signature(cpu_type):
    """EAX of CPUID leaf 1, for a CPU model of QEMU or a version of it."""
    known = re.sub('-v[0-9]+$', '', cpu_type)
    if known == 'EPYC-IBPB':        # another name of a version
        known = 'EPYC'
    if known not in CPU_TYPES:
        raise LabError(f'the CPU model {cpu_type!r} is not one of '
                       f"{', '.join(CPU_TYPES)}; for others, and for "
                       '-cpu host, give --vcpu-sig')
    family, model, stepping = CPU_TYPES[known]
    extended = max(family - 15, 0)
    return (extended << 20 | model >> 4 << 16 | (family - extended) << 8 |
            (model & 15) << 4 | stepping)


class Vcpus(typing.NamedTuple):
    """The vCPUs of an SEV-SNP guest, as a launch measures them."""
    number: int
    signature: int              # EAX of CPUID leaf 1
    features: int = GUEST_FEATURES      # of the guest: SEV_FEATURES


def vmsa(eip, vcpus):
    """The page with the state of a vCPU that has been reset.

    Linux makes it in sev_es_sync_vmsa(), a struct sev_es_save_area, of what
    QEMU has set.  QEMU sets no x87 and SSE state that counts, so these are
    the kernel's own initial values.
    """
    page = bytearray(PAGE)

    def put(at, layout, *values):
        struct.pack_into('<' + layout, page, at, *values)

    def segment(at, attributes, limit=0xffff, selector=0, base=0):
        put(at, '2HIQ', selector, attributes, limit, base)

    for at in 0x00, 0x20, 0x30, 0x40, 0x50:     # ES, SS, DS, FS, GS
        segment(at, 0x93)
    segment(0x10, 0x9b, selector=0xf000, base=eip & 0xffff0000)     # CS
    segment(0x60, 0)                            # GDTR
    segment(0x70, 0x82)                         # LDTR
    segment(0x80, 0)                            # IDTR
    segment(0x90, 0x8b)                         # TR
    put(0x0d0, 'Q', 0x1000)                     # EFER: KVM sets SVME
    put(0x148, 'Q', 0x40)                       # CR4: KVM sets MCE
    put(0x158, 'Q', 0x10)                       # CR0: KVM clears CD and NW
    put(0x160, 'Q', 0x400)                      # DR7
    put(0x168, 'Q', 0xffff0ff0)                 # DR6
    put(0x170, 'Q', 2)                          # RFLAGS
    put(0x178, 'Q', eip & 0xffff)               # RIP
    put(0x268, 'Q', 0x7040600070406)            # PAT
    put(0x310, 'Q', vcpus.signature)            # RDX
    put(0x3b0, 'Q', vcpus.features)             # SEV_FEATURES
    put(0x3e8, 'Q', 1)                          # XCR0
    put(0x408, 'I', 0x1f80)                     # MXCSR
    put(0x410, 'H', 0x37f)                      # x87 control word
    return bytes(page)


class SnpLaunch(Launch):
    """Launch of an SEV-SNP guest: firmware, then its metadata's sections.

    The digest is a chain of one record a page.  When the launch is finished,
    the kernel adds the pages of the vCPUs' VMSAs.  An attestation report has
    the digest after them.

    @hashes: what kernel_hashes() returns, with kernel-hashes=on; else None
    @vcpus: Vcpus; without, the launch ends before VMSAs
    """

    def __init__(self, image, hashes=None, vcpus=None):
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
        self.vcpus = vcpus
        for n in range(vcpus.number if vcpus else 0):
            ranges.append(Range(f'VMSA {n}', VMSA_GPA, PAGE, 'VMSA',
                                vmsa(reset if n else RESET_VECTOR, vcpus)))
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

    def digest_before_vmsas(self):
        """The measurement of the firmware's part."""
        return [digest for r, digest in self.steps() if r.type != 'VMSA'][-1]

    def entries(self):
        return [r.entry(r.type.lower()) for r in self.ranges]

    def answer(self):
        answer = {'type': 'sev-snp',
                  'digest-before-vmsas': self.digest_before_vmsas().hex()}
        if self.vcpus:
            answer |= {'digest-after-vmsas': self.digest().hex(),
                       'guest-features': self.vcpus.features,
                       'vcpu-signature': self.vcpus.signature,
                       'vcpus': self.vcpus.number}
        return answer


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
                data = bytes(size) if measured else None
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

    def entries(self):
        return [r.entry(r.name.lower().replace('_', '-'))
                for r in self.ranges]

    def answer(self):
        return {'type': 'tdx', 'mrtd': self.digest().hex()}


def first_difference(launch, query):
    """Compares a launch with the answer to a query of QEMU's.

    That is query-launch-measurement or query-guest-memfd.  Returns None, or
    (what differs, the value in the launch, the value in the answer).
    """
    if isinstance(query, dict) and 'return' in query:
        query = query['return']
    if not isinstance(query, dict) or not (
            'type' in query or isinstance(query.get('launch'), list)):
        raise LabError('this is no answer to query-launch-measurement or '
                       'query-guest-memfd')
    if 'type' in query:
        answer = launch.answer()
        # What goes into a digest comes first, as it is the reason.
        for name in sorted(answer, key=lambda name: 'digest' in name):
            if answer[name] != query.get(name):
                return name, answer[name], query.get(name)
    if isinstance(query.get('launch'), list):
        return _first_entry(launch, query['launch'])
    return None


def _first_entry(launch, found):
    if isinstance(launch, SnpLaunch) and not launch.vcpus:
        found = [entry for entry in found if not (
            isinstance(entry, dict) and entry.get('type') == 'vmsa')]
    names = [r.name for r in launch.ranges]
    for n, (wanted, entry) in enumerate(itertools.zip_longest(
            launch.entries(), found)):
        have = entry
        if wanted and isinstance(entry, dict):
            # A later QEMU may tell more.
            have = {name: entry[name] for name in
                    ('gpa', 'size', 'type', 'measured', 'digest')
                    if name in entry}
        if wanted != have:
            name = f' ({names[n]})' if wanted else ''
            return f'range {n}{name} of the launch', wanted, entry
    return None
