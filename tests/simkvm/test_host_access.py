# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that reads a guest's memory finds nothing of private pages.

Monitor, debugger, dumps and displays find shared pages; private ones are
absent, and QEMU survives.
"""
import array
import os
import re
import signal
import socket
import struct
import unittest
import zlib

from gmemlab.machine import wait_for
from gmemlab.simkvm import snp
from qemu.qmp import ExecuteError
from simtest import SimTest
import test_simkvm

PAGE = 4096
PAGES = 16
SHARED = 0x1000000
SECRET = SHARED + PAGES * PAGE
SIZE = PAGES * PAGE
SCRIPT = f'''
    generation g2
    vcpu all
    halt
    vcpu 0
    fill {SECRET:#x} {PAGES} 2
    map-gpa {SHARED:#x} {PAGES} shared
    fill {SHARED:#x} {PAGES} 1
'''
READY = '''
    print ready
    halt
'''


def pattern(gpa, seed, size=SIZE):
    """Bytes that the script's "fill" writes there."""
    low = (1 << 64) - 1
    words = array.array('Q')
    for at in range(gpa, gpa + size, 8):
        x = ((seed + 1) * 0x9e3779b97f4a7c15 & low) ^ at
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 & low
        words.append(x ^ x >> 27)
    return words.tobytes()


def words_in(data, wanted):
    """Which 8-byte words of the bytes @wanted are in @data, anywhere.

    Returns them as a set of numbers.
    """
    wanted = set(array.array('Q', wanted))
    found = set()
    step = 1 << 16
    for start in range(0, len(data), step):
        chunk = data[start:start + step + 7]
        if chunk.count(0) == len(chunk):
            continue
        for shift in range(8):
            end = len(chunk) - (len(chunk) - shift) % 8
            found |= wanted.intersection(
                array.array('Q', bytes(chunk[shift:end])))
    return found


def kdump_pages(data):
    """The contents of all pages in a kdump file, as bytes."""
    # The header's time stamp is longer where the processor has 64 bits.
    block, sub_header, bitmap = next(
        sizes for at in (416, 428)
        if (sizes := struct.unpack_from('<III', data, at))[0] == PAGE)
    at = (1 + sub_header + bitmap) * block
    pages, first_data = {}, len(data)
    while at < first_data:
        offset, size, flags, _ = struct.unpack_from('<QIIQ', data, at)
        first_data = min(first_data, offset)
        if offset not in pages:
            page = data[offset:offset + size]
            pages[offset] = zlib.decompress(page) if flags & 1 else page
        at += 24
    return b''.join(pages.values())


class Gdb:
    """A client of the debugger's remote protocol, at a socket's path."""

    def __init__(self, sim, path):
        self._sim = sim
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._data = b''

    def close(self):
        """Disconnect; the guest runs on."""
        self._socket.close()

    def _byte(self):
        if not self._data:
            self._data = self._socket.recv(4096)
            assert self._data, 'the debug server has hung up'
        first, self._data = self._data[:1], self._data[1:]
        return first

    def ask(self, text):
        """Send a packet; returns the answer's text."""
        with self._sim.waiting('the debug server'):
            return self._ask(text)

    def _ask(self, text):
        check = sum(text.encode()) & 0xff
        self._socket.sendall(f'${text}#{check:02x}'.encode())
        while self._byte() != b'$':
            pass
        answer = b''
        while (byte := self._byte()) != b'#':
            answer += byte
        self._byte(), self._byte()
        self._socket.sendall(b'+')
        return answer.decode()

    def read(self, address, size):
        """Memory; None where there is an error."""
        answer = self.ask(f'm{address:x},{size:x}')
        return None if re.fullmatch('E..', answer) else bytes.fromhex(answer)


class HostAccessTest(SimTest):
    """Has an SNP guest with shared and private pages of known contents.

    ARGS: of the emulator
    """

    ARGS = ()

    def guest(self, script='', **kwargs):
        """Arguments of machine(); the guest's script ends with @script."""
        return {'config': SCRIPT + script + READY, 'size': '64M',
                'backend': None, 'confidential': snp(),
                'args': ['-bios', self.image, *self.ARGS], **kwargs}

    def start_guest(self, *args, **kwargs):
        """The guest runs, and has written its pages."""
        sim = self.start(**self.guest(*args, **kwargs))
        self.wait_ready(sim)
        return sim

    def wait_ready(self, sim):
        wait_for('the guest', lambda: 'ready' in sim.output(), sim)

    def hmp(self, sim, line):
        """Output of a command of the human monitor."""
        return sim.cmd('human-monitor-command', command_line=line)

    def path(self, name='out'):
        """Path of a file that the emulator writes."""
        return os.path.join(self.dir, name)

    def read(self, name='out'):
        """Bytes of that file."""
        with open(self.path(name), 'rb') as f:
            return f.read()

    def check_no_secret(self, data, what='the output'):
        found = words_in(data, pattern(SECRET, 2))
        self.assertFalse(found, f'{what} has {len(found)} private words')

    def check_shared(self, data):
        """All shared pages are in there."""
        found = words_in(data, pattern(SHARED, 1))
        self.assertEqual(len(found), SIZE // 8)

    def check_secret_is_kept(self, sim):
        """Private pages have what the guest wrote.

        The model's guest_memfd can be read, whatever state a page has.
        """
        directory = f'/proc/{sim.get_pid()}/fd'
        for fd in os.listdir(directory):
            path = os.path.join(directory, fd)
            if 'simkvm-guest_memfd' in os.readlink(path) and \
                    os.stat(path).st_size > SECRET:
                with open(path, 'rb') as f:
                    f.seek(SECRET)
                    self.assertEqual(f.read(SIZE), pattern(SECRET, 2))
                return
        self.fail('there is no guest_memfd')

    def check_alive(self, sim):
        """Guest and emulator run; shared pages can be read."""
        sim.assert_runs()
        self.check_secret_is_kept(sim)
        # No private page was touched.
        for block in sim.blocks().values():
            self.assertEqual(block['counters']['touched'], 0)
        sim.cmd('pmemsave', val=SHARED, size=SIZE, filename=self.path('live'))
        self.assertEqual(self.read('live'), pattern(SHARED, 1))

    def refused_or_absent(self, sim, command, **kwargs):
        """A command that writes a file is refused, or its file is empty of
        private contents.  Returns the file's bytes; None if it was refused.
        """
        try:
            sim.cmd(command, filename=self.path(), **kwargs)
        except ExecuteError as err:
            self.assertTrue(str(err))
            if os.path.exists(self.path()):
                self.check_no_secret(self.read())
            return None
        data = self.read()
        self.check_no_secret(data)
        return data


class TheTest(unittest.TestCase):
    """The tests' own comparison"""

    def test_words_are_found_at_any_place(self):
        secret = pattern(SECRET, 2)
        data = bytearray(1 << 17)
        self.assertEqual(words_in(data, secret), set())
        for at in 3, (1 << 16) - 3, (1 << 17) - 8:
            data[at:at + 8] = secret[64:72]
            self.assertEqual(len(words_in(data, secret)), 1, at)
            data[at:at + 8] = bytes(8)


class Monitor(HostAccessTest):
    """Commands of QMP and HMP."""

    def test_pmemsave(self):
        sim = self.start_guest()
        sim.cmd('pmemsave', val=SHARED, size=SIZE, filename=self.path())
        self.assertEqual(self.read(), pattern(SHARED, 1))
        # From a shared page into a private one, unaligned
        for start, size in ((SECRET, SIZE), (SHARED, 2 * SIZE),
                            (SECRET - 13, 26), (SECRET + SIZE - 9, 18)):
            data = self.refused_or_absent(sim, 'pmemsave', val=start,
                                          size=size)
            if data:
                self.assertEqual(len(data), size)
                known = max(0, SECRET - start)
                self.assertEqual(
                    data[:known],
                    pattern(SHARED, 1)[start - SHARED:][:known])
                # Absent pages read as zeros.
                self.assertFalse(any(data[known:]))
        self.check_alive(sim)

    def test_memsave(self):
        sim = self.start_guest()
        sim.cmd('memsave', val=SHARED, size=SIZE, filename=self.path())
        self.assertEqual(self.read(), pattern(SHARED, 1))
        for start, size in (SECRET, SIZE), (SECRET - PAGE, 2 * PAGE):
            self.refused_or_absent(sim, 'memsave', val=start, size=size)
        self.check_alive(sim)

    def test_examine(self):
        sim = self.start_guest()
        first = struct.unpack('<Q', pattern(SHARED, 1)[:8])[0]
        for command in 'x', 'xp':
            self.assertIn(f'{first:#018x}',
                          self.hmp(sim, f'{command} /512gx {SHARED:#x}'))
            for start in SECRET, SECRET - 8 * PAGE, SECRET - 3:
                text = self.hmp(sim, f'{command} /8192gx {start:#x}')
                self.check_no_secret(b''.join(
                    struct.pack('<Q', int(word, 16)) for word in
                    re.findall('0x([0-9a-f]{16})', text)))
            self.assertIn('Cannot access memory',
                          self.hmp(sim, f'{command} /1gx {SECRET:#x}'))
            # Byte by byte, and as instructions.
            text = self.hmp(sim, f'{command} /4096bx {SECRET:#x}')
            self.check_no_secret(bytes(
                int(byte, 16) for byte in re.findall(r'\b0x(..)\b', text)))
            self.hmp(sim, f'{command} /4i {SECRET:#x}')
        self.check_alive(sim)

    def test_sum(self):
        sim = self.start_guest()
        empty = self.hmp(sim, f'sum {SECRET:#x} {PAGE}')
        self.assertNotEqual(self.hmp(sim, f'sum {SHARED:#x} {PAGE}'), empty)
        self.assertEqual(int(empty), 0)
        self.check_alive(sim)

    def test_it_cannot_be_saved_or_migrated(self):
        sim = self.start_guest()
        self.assertRegex(self.hmp(sim, 'savevm x'), '(?i)migrat')
        path = self.path('migration')
        with self.assertRaisesRegex(ExecuteError, '(?i)migrat'):
            sim.cmd('migrate', uri='file:' + path)
        self.assertFalse(os.path.exists(path))
        self.check_alive(sim)


class Dump(HostAccessTest):
    """dump-guest-memory"""

    def dump(self, sim, **kwargs):
        """Bytes of the file."""
        sim.cmd('dump-guest-memory', protocol='file:' + self.path(), **kwargs)
        return self.read()

    def test_elf(self):
        sim = self.start_guest()
        data = self.dump(sim, paging=False)
        self.assertTrue(data.startswith(b'\x7fELF'))
        self.check_shared(data)
        self.check_no_secret(data)
        self.check_alive(sim)

    def test_elf_of_a_range(self):
        sim = self.start_guest()
        data = self.dump(sim, paging=False, begin=SHARED, length=SIZE)
        self.check_shared(data)
        with self.assertRaisesRegex(ExecuteError, 'no guest memory to dump'):
            sim.cmd('dump-guest-memory', protocol='file:' + self.path(),
                    paging=False, begin=SECRET, length=SIZE)
        self.check_alive(sim)

    def test_kdump(self):
        sim = self.start_guest()
        data = self.dump(sim, paging=False, format='kdump-raw-zlib')
        self.check_no_secret(data)
        pages = kdump_pages(data)
        self.check_shared(pages)
        self.check_no_secret(pages)
        self.check_alive(sim)

    def test_windows_dump_is_refused(self):
        sim = self.start_guest(args=['-bios', self.image,
                                     '-device', 'vmcoreinfo'])
        with self.assertRaises(ExecuteError):
            sim.cmd('dump-guest-memory', protocol='file:' + self.path(),
                    paging=False, format='win-dmp')
        if os.path.exists(self.path()):
            self.check_no_secret(self.read())
        self.check_alive(sim)


class Debugger(HostAccessTest):
    """The debug server for gdb."""

    def debug(self):
        """Returns a guest, which is stopped, and a client."""
        path = self.path('gdb')
        sim = self.start_guest(args=[
            '-bios', self.image, '-chardev',
            f'socket,id=gdb,path={path},server=on,wait=off',
            '-gdb', 'chardev:gdb'])
        gdb = Gdb(sim, path)
        self.addCleanup(gdb.close)
        gdb.ask('?')
        return sim, gdb

    def check(self, sim, gdb):
        self.assertEqual(gdb.read(SHARED, 1024), pattern(SHARED, 1)[:1024])
        # Reads and writes of private pages are answered with errors.
        shared = pattern(SHARED, 1)[-16:].hex()
        for address, size in (SECRET, 8), (SECRET, 1024), (SECRET - 8, 16), (
                SECRET + SIZE - 8, 8):
            self.assertIsNone(gdb.read(address, size))
            self.assertRegex(gdb.ask(f'M{address:x},{size:x}:' + '5a' * size),
                             '^E..$')
            self.check_secret_is_kept(sim)
            # Shared pages can be written.
            self.assertEqual(gdb.ask(f'M{SECRET - 16:x},10:{shared}'), 'OK')
        self.assertEqual(gdb.read(SECRET - 16, 16), pattern(SHARED, 1)[-16:])

    def test_virtual_addresses(self):
        sim, gdb = self.debug()
        self.check(sim, gdb)

    def test_physical_addresses(self):
        sim, gdb = self.debug()
        self.assertEqual(gdb.ask('Qqemu.PhyMemMode:1'), 'OK')
        self.check(sim, gdb)

    def test_a_breakpoint_in_private_memory(self):
        sim, gdb = self.debug()
        # A private instruction cannot be patched; hardware breakpoints work.
        self.assertRegex(gdb.ask(f'Z0,{SECRET:x},1'), '^E..$')
        gdb.ask(f'Z1,{SECRET:x},1')
        gdb.ask(f'z1,{SECRET:x},1')
        gdb.ask('D')
        wait_for('the guest to run', lambda:
                 sim.cmd('query-status')['running'], sim)
        self.check_alive(sim)


class Display(HostAccessTest):
    """A frame buffer in RAM, which the guest makes private."""

    WIDTH, HEIGHT = 64, 64      # of 4 bytes: 4 pages
    CONTROL = SHARED + 8 * PAGE

    def key(self):
        """Key of etc/ramfb in fw_cfg, which firmware would look up."""
        sim = self.start(**self.guest(args=['-bios', self.image,
                                            '-device', 'ramfb']))
        self.wait_ready(sim)

        def byte():
            return int(self.hmp(sim, 'i /b 0x511').split('=')[1], 16)

        def number(size):
            return int.from_bytes(bytes(byte() for _ in range(size)), 'big')

        self.hmp(sim, 'o /h 0x510 0x19')
        for _ in range(number(4)):
            number(4)
            key = number(2)
            number(2)
            name = bytes(byte() for _ in range(56))
            if name.startswith(b'etc/ramfb\0'):
                break
        else:
            self.fail('there is no etc/ramfb')
        sim.shutdown()
        return key

    def show(self, address, script=''):
        """A guest that displays memory at @address, then runs @script."""
        config = struct.pack('>QIIIII', address, 0x34325258, 0,
                             self.WIDTH, self.HEIGHT, 0)
        # Select the file, and write it.
        access = struct.pack('>IIQ', self.key() << 16 | 0x18, len(config),
                             self.CONTROL + 64)
        data = access.ljust(64, b'\0') + config.ljust(32, b'\0')
        lines = ''.join(
            f'write {self.CONTROL + at:#x} 8 {word:#x}\n'
            for at, word in zip(range(0, len(data), 8),
                                array.array('Q', data)))
        low = int.from_bytes(struct.pack('>I', self.CONTROL), 'little')
        return self.start_guest(
            lines + f'out 0x514 4 0\nout 0x518 4 {low:#x}\n'
            # The transfer has succeeded.
            f'read {self.CONTROL:#x} 4 expect=0\n' + script,
            args=['-bios', self.image, '-device', 'ramfb'])

    def screendump(self, sim):
        """Bytes of the picture."""
        if 'screendump' not in {c['name'] for c in sim.cmd('query-commands')}:
            self.skipTest('this QEMU has no screendump: it is built without '
                          'pixman')
        sim.cmd('screendump', filename=self.path())
        return self.read()

    def visible(self, address, seed):
        """Pictures have 3 bytes of 4, in another order."""
        return b''.join(
            bytes((b[2], b[1], b[0])) for b in struct.iter_unpack(
                '4B', pattern(address, seed, self.WIDTH * self.HEIGHT * 4)))

    def test_shared(self):
        sim = self.show(SHARED)
        self.assertIn(self.visible(SHARED, 1), self.screendump(sim))

    def test_private_from_the_start(self):
        sim = self.show(SECRET)
        sim.assert_runs()
        self.assertNotIn(self.visible(SECRET, 2)[:24], self.screendump(sim))

    def test_made_private(self):
        sim = self.show(SHARED, script=f'''
            map-gpa {SHARED:#x} 4 private
            fill {SHARED:#x} 4 2
        ''')
        picture = self.screendump(sim)
        for at in range(0, 4 * PAGE, 64):
            secret = self.visible(SHARED + at, 2)[:24]
            self.assertNotIn(secret, picture)
        # The display touched the private memory, and QEMU survived.
        self.assertGreater(sum(block['counters']['touched']
                               for block in sim.blocks().values()), 0)
        sim.assert_runs()


class CoreDump(HostAccessTest):
    """The emulator's own memory."""

    def test_core_of_the_emulator(self):
        with open('/proc/sys/kernel/core_pattern', encoding='ascii') as f:
            where = f.read().strip()
        if where.startswith('|') or '/' in where:
            self.skipTest(f'cores go elsewhere here: {where}')
        if 'ASAN_OPTIONS' in os.environ:
            self.skipTest('AddressSanitizer lets nobody write a core')
        sim = self.machine(**self.guest())
        # Cores go to the working directory, if they are wanted.
        sim._wrapper = ['sh', '-c', f'cd {self.dir} && ulimit -c unlimited && '
                        'exec "$@"', 'sh', *sim._wrapper]
        sim.launch()
        self.addCleanup(sim.shutdown, hard=True)
        self.wait_ready(sim)
        os.kill(sim.get_pid(), signal.SIGABRT)
        sim.wait()
        cores = [name for name in os.listdir(self.dir)
                 if name.startswith('core')]
        self.assertEqual(len(cores), 1, os.listdir(self.dir))
        data = self.read(cores[0])
        self.check_shared(data)
        self.check_no_secret(data)

    def test_memory_seen_by_another_process(self):
        sim = self.start_guest()
        text = self.hmp(sim, f'gpa2hva {SHARED:#x}')
        host = int(re.search('0x[0-9a-f]+$', text.strip())[0], 16)
        with open(f'/proc/{sim.get_pid()}/mem', 'rb', buffering=0) as memory:
            memory.seek(host)
            self.assertEqual(memory.read(SIZE), pattern(SHARED, 1))
            with self.assertRaises(OSError):
                memory.seek(host + SIZE)
                memory.read(PAGE)
        self.check_alive(sim)


class PageTables(test_simkvm.KvmModeTest):
    """Guest code on KVM: its page tables are private."""

    CONFIG = test_simkvm.KvmModeInPlace.CONFIG
    BACKEND = None

    def test_the_monitor_walks_them(self):
        guest = self.play_snp(f'convert {SHARED:#x} 4 shared\n'
                              f'write {SHARED:#x} 4 1\n')
        for line in ('info tlb', 'info mem', f'x /4gx {SHARED:#x}',
                     f'gva2gpa {SHARED:#x}', 'x /4i $eip', 'info registers'):
            guest.cmd('human-monitor-command', command_line=line)
        guest.assert_runs()
        text = guest.cmd('human-monitor-command',
                         command_line=f'xp /1gx {SHARED:#x}')
        self.assertNotIn('Cannot', text)
