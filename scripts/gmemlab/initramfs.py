# SPDX-License-Identifier: GPL-2.0-or-later
"""Initial ram file systems: busybox, an init script, kernel modules."""
import hashlib
import os
import stat
import tempfile

from . import LabError, build_dir

BUSYBOX = '/bin/busybox'


class Archive:
    """A cpio archive in the "newc" format, as the kernel unpacks it."""

    def __init__(self):
        self._parts = []
        self._inode = 0

    def _add(self, name, mode, data=b''):
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data),
                  0, 0, 0, 0, len(name) + 1, 0)
        head = b'070701' + b''.join(b'%08X' % field for field in fields)
        for part in (head + name.encode() + b'\0', data):
            self._parts += [part, b'\0' * (-len(part) % 4)]

    def directory(self, name):
        self._add(name, stat.S_IFDIR | 0o755)

    def symlink(self, name, target):
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def file(self, name, data, mode=0o644):
        self._add(name, stat.S_IFREG | mode, data)

    def finish(self):
        """Returns the archive as bytes."""
        self._add('TRAILER!!!', 0)
        return b''.join(self._parts)


def _read(path):
    with open(path, 'rb') as file:
        return file.read()


def image(kind, kernel, modules, init, files=()):
    """Returns the path of an initramfs for @kernel.

    It has busybox, @modules with what they depend on (names in the order
    of loading in /modules/list), the script @init as /init, and @files:
    pairs of a name and a path.  It is made if there is none of the same
    inputs yet; @kind is the first part of its name.
    """
    inputs = [kernel.path, init, __file__, BUSYBOX] + \
             [path for _, path in files]
    try:
        stamp = [(path, os.stat(path).st_mtime_ns) for path in inputs]
    except FileNotFoundError as err:
        raise LabError(f'{err.filename} is missing; scripts/deps installs '
                       'the packages that are needed') from err
    key = hashlib.sha256(repr((stamp, modules)).encode()).hexdigest()[:16]
    where = os.path.join(build_dir(), 'kernel', 'initramfs')
    path = os.path.join(where, f'{kind}-{kernel.release}-{key}')
    if os.path.exists(path):
        return path

    archive = Archive()
    for name in ('bin', 'dev', 'host', 'modules', 'proc', 'ro', 'sys', 'tmp'):
        archive.directory(name)
    archive.file('bin/busybox', _read(BUSYBOX), 0o755)
    archive.symlink('bin/sh', 'busybox')
    archive.file('init', _read(init), 0o755)
    order = []
    for name, data in kernel.modules(modules).items():
        order.append(name)
        archive.file(f'modules/{name}.ko', data)
    archive.file('modules/list', ''.join(f'{n}\n' for n in order).encode())
    for name, source in files:
        archive.file(name, _read(source), os.stat(source).st_mode & 0o755)

    os.makedirs(where, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=where, delete=False) as new:
        new.write(archive.finish())
    os.replace(new.name, path)
    return path
