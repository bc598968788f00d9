# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware and kernels that no guest can be launched with.

Each ends QEMU with the reason and exit status 1, separate and in place, before
the guest runs; test_launch_ranges has sections that are in order as such.
"""
import base64
import os
import struct

from gmemlab.simkvm import snp
from test_measure import (FOOTER, SEV_HASH_TABLE, SEV_METADATA, TDX_METADATA,
                          entry, image, number, table)
import test_launch

UNIT = 64 << 10                 # of the size of images
PAGE = 4096
# At this distance from the end is the metadata.
DISTANCE = 0x800
SEV_RESET = 'de71f7007e1acb4f890e68c77e2fb44e'
RESET = entry(SEV_RESET, number(0xfffff000))


class BadFirmware:
    """Launches what cannot be launched; for a LaunchTest.

    GUID: of the entry that leads to the metadata
    BEFORE: entries that firmware needs besides
    GOOD: metadata that is not broken
    """

    GUID = BEFORE = GOOD = None

    def file(self, name, data):
        """Path of a new file."""
        path = os.path.join(self.dir, name)
        with open(path, 'wb') as f:
            f.write(data)
        return path

    def firmware(self, metadata, distance=DISTANCE, more=b''):
        """Firmware with that metadata, and what leads to it."""
        return image(table(more, self.BEFORE,
                           entry(self.GUID, number(distance))), metadata)

    def refuse_call(self, reason, script=test_launch.SCRIPT.format(reset=0),
                    **kwargs):
        """It ends with that reason; @kwargs are those of guest()."""
        for generation in 'g1', 'g2':
            with self.subTest(generation=generation, reason=reason):
                sim = self.play(f'generation {generation}{script}', status=1,
                                **self.guest(**kwargs))
                self.assertRegex(sim.get_log(), reason)
                self.assertEqual(sim.report['exits'], 0)

    def refuse(self, data, reason, **kwargs):
        """Firmware of these bytes is not launched."""
        path = self.file('firmware', data)
        self.refuse_call(f"firmware '{path}': .*{reason}", path=path, **kwargs)

    def test_files(self):
        """-bios that is no firmware, as a file"""
        missing = os.path.join(self.dir, 'missing')
        self.refuse_call(f"firmware '{missing}': there is no such file",
                         path=missing)
        self.refuse_call(f"firmware '{self.dir}': .* it is a directory",
                         path=self.dir)
        fifo = os.path.join(self.dir, 'fifo')
        os.mkfifo(fifo)
        self.refuse_call(f"firmware '{fifo}': .* it is no regular file",
                         path=fifo)
        for size, reason in ((0, 'it is empty'),
                             (1000, '0x3e8 bytes, .* multiples of 0x10000'),
                             (18 << 20, '0x1200000 bytes; .* up to 0x1100000,'
                              ' as .* local APIC')):
            self.refuse(bytes(size), reason)

    def test_tables(self):
        """Tables of GUIDs, and metadata, that are broken"""
        good = self.GOOD
        head = number(len(good)) + number(1)
        self.refuse(bytes(UNIT), 'no table of GUIDs')
        for length in 0, 17, 0xffff:
            self.refuse(image(number(length, 2) + bytes.fromhex(FOOTER)),
                        f'table of GUIDs says that it has {length} bytes')
        for length in 0, 17, 0x1000:
            broken = number(length, 2) + bytes.fromhex(self.GUID)
            self.refuse(image(table(broken)), r'table of GUIDs is broken at '
                        f'offset .*: an entry of {length} bytes, with 18 left')
        self.refuse(image(table(self.BEFORE)), 'no entry for (ASEV|TDVF)')
        self.refuse(image(table(self.BEFORE, entry(self.GUID, b''))),
                    'entry for .* has 0 bytes of data, and not 4')
        for distance in 0, 15, 0x80000000, UNIT + 16, 0xffffffff:
            self.refuse(self.firmware(good, distance),
                        f'would begin {distance:#x} bytes before the end')
        self.refuse(self.firmware(good, DISTANCE + 16),
                    'there is no (ASEV|TDVF) metadata')
        self.refuse(self.firmware(good[:8] + number(2) + good[12:]),
                    'has version 2')
        for count in 1000, 1025, 0x7ffffff, 0xffffffff:
            self.refuse(self.firmware(good[:4] + head + number(count)),
                        f'has {count} sections in a length of')
        self.refuse(self.firmware(good[:4] + number(0xfffffff0) + number(1) +
                                  number(0x7ffffff)), 'has 134217727 sections')
        self.refuse(self.firmware(good[:4] + number(DISTANCE + 1) +
                                  good[8:]), 'in a length of 0x801 bytes')

    def test_kernels(self):
        """-kernel that is none"""
        header = bytes(0x1f1) + b'\xff' + bytes(16) + b'HdrS' + bytes(9000)
        for path, reason in (
                (self.file('empty', b''), 'it is empty'),
                (self.dir, 'it is a directory'),
                (f'{self.dir}/missing', 'No such file'),
                ('/dev/zero', 'it is no regular file'),
                (self.file('small', bytes(1023)),
                 'it has 1023 bytes, too few for any kernel'),
                (self.file('setup', header), 'it has 9518 bytes, and says in '
                 'its header that 131072 are its setup')):
            self.refuse_call(f"kernel '{path}': it cannot be used: {reason}",
                             args=['-kernel', path])

    def test_flash(self):
        """Firmware in a flash device"""
        path = self.file('flash', bytes(UNIT))
        self.refuse_call(
            'flash device, .*give the image by -bios', args=[
                '-drive', f'if=pflash,format=raw,readonly=on,file={path}'])


def sections(signature, layout, *entries):
    """Metadata with these sections."""
    body = b''.join(struct.pack(layout, *e) for e in entries)
    return signature + number(16 + len(body)) + number(1) + \
        number(len(entries)) + body


class Snp(BadFirmware, test_launch.SnpLaunchTest):
    """SEV-SNP."""

    GUID, BEFORE = SEV_METADATA, RESET
    GOOD = sections(b'ASEV', '<3I', (0x8000, PAGE, 2), (0x9000, PAGE, 3))
    HASHES = (0xa000, PAGE, 0x10)

    def test_metadata_at_the_start(self):
        # QEMU takes it for too long.
        data = self.GOOD + bytes(UNIT - len(self.GOOD))
        tail = image(table(RESET, entry(SEV_METADATA, number(UNIT))))
        self.refuse(data[:0x1000] + tail[0x1000:],
                    'QEMU does not look so near to the start')

    def test_reset_block(self):
        metadata = entry(SEV_METADATA, number(DISTANCE))
        self.refuse(image(table(metadata), self.GOOD),
                    'no entry for the SEV-ES reset block')
        self.refuse(image(table(metadata, entry(SEV_RESET, number(0))),
                          self.GOOD), 'gives 0 as the address')
        self.refuse(image(table(metadata, entry(SEV_RESET, b'123')),
                          self.GOOD), 'has 3 bytes of data, and not 4')

    def refuse_hashes(self, reason, area, *found, **kwargs):
        """Hashes of a kernel have no place in this firmware.

        @area: (address, bytes) of them
        @found: its sections
        """
        _, args = self.kernel()
        more = entry(SEV_HASH_TABLE, b''.join(map(number, area))) \
            if area else b''
        self.refuse(self.firmware(sections(b'ASEV', '<3I', *found),
                                  more=more), reason,
                    confidential=snp(',kernel-hashes=on'), args=args, **kwargs)

    def test_kernel_hashes(self):
        self.refuse_hashes('no entry for hashes of a kernel', None,
                           self.HASHES)
        self.refuse_hashes('no section for hashes of a kernel, so they would '
                           'not be measured', (0xa000, 0x400))
        for area in (0, 0x400), (0xa000, 0), (0xa000, 175):
            self.refuse_hashes('area for hashes of a kernel has '
                               f'{area[1]:#x} bytes at gpa {area[0]:#x}',
                               area, self.HASHES)
        for base in 0x9fff, 0xaf51, 0xb000, 0xffffffff:
            self.refuse_hashes(f'at gpa {base:#x}, is not in the first page '
                               r'of section 0 \(KERNEL_HASHES\)',
                               (base, 0x400), self.HASHES)
        for size in 0, 0x80:
            self.refuse_hashes('has to be whole pages', (0xa000, 0x400),
                               (0xa000, size, 0x10))

    def test_no_kernel_to_hash(self):
        self.refuse_call('there is no -kernel',
                         confidential=snp(',kernel-hashes=on'))

    def test_a_kernel_that_qemu_does_not_hash(self):
        # A multiboot header: load all of it to 1 MiB, enter at its end.
        flags = 1 << 16
        kernel = self.file('multiboot', struct.pack(
            '<8I', 0x1badb002, flags, -(0x1badb002 + flags) & 0xffffffff,
            0x100000, 0x100000, 0, 0, 0x100020) + bytes(8192))
        self.refuse_call(f"kernel '{kernel}' cannot be hashed",
                         confidential=snp(',kernel-hashes=on'),
                         args=['-kernel', kernel])

    def test_hashes_where_the_kernel_is_read_first(self):
        _, args = self.kernel()
        self.refuse_call('works where QEMU reads firmware .*not with microvm',
                         confidential=snp(',kernel-hashes=on'), args=args,
                         machine='microvm')

    def test_initrds(self):
        _, args = self.kernel()
        for path, reason in ((self.dir, 'it is a directory'),
                             (f'{self.dir}/missing', 'No such file')):
            self.refuse_call(f"initrd '{path}': it cannot be used: {reason}",
                             args=[*args, '-initrd', path])
        self.check(args=[*args, '-initrd', self.file('empty', b'')])

    def test_a_device_tree_in_the_kernel(self):
        _, args = self.kernel()
        self.refuse_call('-dtb cannot be used with kernel-hashes=on',
                         confidential=snp(',kernel-hashes=on'),
                         args=[*args, '-dtb', self.file('dtb', b'dtb')])

    def test_policy(self):
        self.refuse_call('policy=0x0 of sev-snp-guest cannot be: bit 17',
                         confidential=snp(',policy=0'))

    def test_half_an_id_block(self):
        block = ',id-block=' + base64.b64encode(bytes(96)).decode()
        auth = ',id-auth=' + base64.b64encode(bytes(4096)).decode()
        short = ',id-auth=' + base64.b64encode(bytes(100)).decode()
        for properties, reason in (
                (block, 'id-block= and id-auth= .* belong together'),
                (auth, 'id-block= and id-auth= .* belong together'),
                (block + short, 'id-auth= .* has 100 bytes, .* has 4096')):
            self.refuse_call(reason, confidential=snp(properties))


class Tdx(BadFirmware, test_launch.TdxLaunchTest):
    """TDX."""

    GUID, BEFORE = TDX_METADATA, b''
    GOOD = sections(b'TDVF', '<2I2Q2I', (0, UNIT, 0xffff0000, UNIT, 0, 1),
                    (0, 0, 0x8000, PAGE, 2, 0))

    def test_more_than_sections(self):
        self.refuse(self.firmware(self.GOOD[:4] + number(len(self.GOOD) + 1) +
                                  self.GOOD[8:]), 'nothing else in it')
