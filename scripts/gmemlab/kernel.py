# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux kernel in a file, and its modules."""
import glob
import lzma
import os
import re
import struct
import subprocess
import zlib

from . import LabError, build_dir


def fetched():
    """Path of the kernel that scripts/kernel unpacked, or None."""
    found = glob.glob(os.path.join(build_dir(), 'kernel', 'default',
                                   'vmlinuz'))
    return os.path.realpath(found[0]) if found else None


def chosen():
    """Path of the kernel to use: the environment's KERNEL, or Debian's."""
    path = os.environ.get('KERNEL') or fetched()
    if not path:
        raise LabError('there is no kernel yet: run scripts/kernel, '
                       'or set KERNEL to a bzImage')
    return os.path.abspath(path)


def release_of(path):
    """The release (as "uname -r" shows it) of a bzImage."""
    try:
        with open(path, 'rb') as image:
            head = image.read(64 << 10)
    except OSError as err:
        raise LabError(f'cannot read the kernel: {err}') from err
    if head[0x202:0x206] != b'HdrS':
        raise LabError(f'{path} is not a Linux bzImage for x86')
    at = struct.unpack_from('<H', head, 0x20e)[0] + 0x200
    return head[at:head.index(b'\0', at)].decode('latin-1').split()[0]


def elf_of(path):
    """The ELF file that a bzImage unpacks, as bytes.

    Its compression has to be gzip or xz.
    """
    with open(path, 'rb') as image:
        data = image.read()
    # Behind the setup sectors, as the boot protocol has it from 2.08 on.
    at = (data[0x1f1] or 4) * 512 + 512
    at += struct.unpack_from('<I', data, 0x248)[0]
    payload = data[at:at + struct.unpack_from('<I', data, 0x24c)[0]]
    if payload.startswith(b'\x1f\x8b'):
        elf = zlib.decompressobj(31).decompress(payload)
    elif payload.startswith(b'\xfd7zXZ'):
        elf = lzma.LZMADecompressor().decompress(payload)
    else:
        raise LabError(f'{path} is compressed by something else than gzip '
                       'and xz')
    if not elf.startswith(b'\x7fELF'):
        raise LabError(f'there is no ELF file in {path}')
    return elf


def _read_module(path):
    """Returns the module's bytes, uncompressed."""
    if path.endswith('.zst'):
        return subprocess.run(['zstd', '-dcq', path], check=True,
                              stdout=subprocess.PIPE).stdout
    with (lzma.open if path.endswith('.xz') else open)(path, 'rb') as module:
        return module.read()


class Kernel:
    """A bzImage.

    Its modules are below lib/modules/RELEASE in the directory of the image,
    which is where "make modules_install INSTALL_MOD_PATH=DIR" puts them.
    Without that directory, all that is needed has to be built in.
    """

    def __init__(self, path):
        self.path = os.path.abspath(path)
        self.release = release_of(self.path)
        self._files = {}
        top = os.path.join(os.path.dirname(self.path), 'lib', 'modules',
                           self.release)
        for parent, _, names in os.walk(os.path.join(top, 'kernel')):
            for name in names:
                match = re.fullmatch(r'(.+)\.ko(?:\.xz|\.zst)?', name)
                if match:
                    self._files[match[1].replace('-', '_')] = \
                        os.path.join(parent, name)

    def modules(self, names):
        """Returns a dict of name to bytes, in the order of loading.

        It has @names and the modules they depend on.  Modules that have no
        file are left out: they may be built in.
        """
        found = {}

        def add(name):
            name = name.replace('-', '_')
            if name in found or name not in self._files:
                return
            data = _read_module(self._files[name])
            match = re.search(rb'\0depends=([^\0]*)\0', data)
            for other in match[1].decode().split(',') if match else ():
                add(other)
            found[name] = data

        for name in names:
            add(name)
        return found
