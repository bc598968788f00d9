# SPDX-License-Identifier: GPL-2.0-or-later
"""The Linux guest that the tests and "make run" boot."""
import functools
import os
import re
import subprocess
import tempfile
import time

from . import LabError, ROOT, build_dir, kernel
from .initramfs import image
from .machine import GUEST_MEMFD, Machine, wait_for
from .watch import STALL_LIMIT

SOURCES = os.path.join(ROOT, 'tests', 'guest', 'linux')
MODULES = ('virtio_pci', 'virtio_balloon', 'virtio_mem')

# noxsave: Linux oopses on what TCG reports about xsave, which a KVM in the
# emulated host passes on.  With -cpu host,-xsave AVX would still be there.
APPEND = ('console=ttyS0 loglevel=4 panic=-1 oops=panic mitigations=off '
          'nokaslr no_timer_check noxsave random.trust_cpu=on '
          'memhp_default_state=online_movable')


def memcheck():
    """Returns the path of the memory checker, compiled if need be."""
    source = os.path.join(SOURCES, 'memcheck.c')
    where = os.path.join(build_dir(), 'kernel', 'guest')
    path = os.path.join(where, 'memcheck')
    if os.path.exists(path) and \
            os.stat(path).st_mtime_ns >= os.stat(source).st_mtime_ns:
        return path
    os.makedirs(where, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where) as new:
        output = os.path.join(new, 'memcheck')
        command = [os.environ.get('CC') or 'cc', '-O2', '-Wall', '-static',
                   '-pthread', '-o', output, source]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as err:
            raise LabError(f'cannot compile {source}: {err}') from err
        os.replace(output, path)
    return path


def initramfs(image_of):
    """Returns the path of the guest's initramfs for a kernel.Kernel."""
    return image('guest', image_of, MODULES, os.path.join(SOURCES, 'init'),
                 [('bin/memcheck', memcheck())])


@functools.lru_cache
def files():
    """Returns the paths of the guest's kernel and initramfs."""
    chosen = kernel.Kernel(kernel.chosen())
    return chosen.path, initramfs(chosen)


def boot_args(append, image_path=None):
    """Returns QEMU's arguments to boot it; @append as its init wants it.

    @image_path: the kernel in another form; else as a bzImage
    """
    bzimage, initrd = files()
    return ['-kernel', image_path or bzimage, '-initrd', initrd,
            '-append', f'{APPEND} {append}']


class LinuxGuest(Machine):
    """A Linux guest that takes commands on its console.

    @image_path: see boot_args()
    """

    def __init__(self, directory, name='guest', machine='q35', cpus=1,
                 size='512M', backend=GUEST_MEMFD, accel='kvm',
                 image_path=None, args=()):
        super().__init__(directory, name, machine, size, backend,
                         [*boot_args('gmem.mode=command', image_path),
                          '-accel', accel, '-cpu', 'host', '-smp', str(cpus)])
        self._input = os.path.join(directory, name + '.input')
        self._keyboard = None
        self._commands = 0
        self.add_args('-chardev', f'file,id=serial,path={self.console},'
                      f'input-path={self._input}', '-serial', 'chardev:serial')
        self.add_args(*args)

    def launch(self):
        # Both ends are opened here, as QEMU would wait for the other one.
        os.mkfifo(self._input)
        self._keyboard = os.open(self._input, os.O_RDWR | os.O_CLOEXEC)
        super().launch()

    def _post_shutdown(self):
        super()._post_shutdown()
        if self._keyboard is not None:
            os.close(self._keyboard)
            os.unlink(self._input)
            self._keyboard = None

    def wait_for(self, what, condition, stall_limit=STALL_LIMIT):
        """Wait until condition() is true; fail as soon as the guest does.

        A guest that takes memory makes progress: while Linux boots, it prints
        next to nothing.
        """
        asked, taken = 0, None

        def checked():
            nonlocal asked, taken
            assert self.is_running(), f'the guest ended; {self.state()}'
            for bad in 'Kernel panic', 'CORRUPT':
                assert bad not in self.output(), self.state()
            if time.monotonic() > asked + 1:
                self.assert_runs()
                taken = [block.get('allocated')
                         for block in self.blocks().values()]
                asked = time.monotonic()
            return condition()
        return wait_for(what, checked, self, lambda: taken, stall_limit)

    def wait_ready(self, times=1, stall_limit=STALL_LIMIT):
        """Wait for the shell of the first boot, or of a later one."""
        self.wait_for('the guest to boot', lambda:
                      self.output().count('gmem: ready\n') >= times,
                      stall_limit)

    def report(self):
        """What the guest printed about itself when it had booted: a dict."""
        return dict(re.findall(r'^gmem: (\S+) (.*)$', self.output(), re.M))

    def run(self, command):
        """Run a shell command in the guest; returns what it printed."""
        self._commands += 1
        start = f'gmem: begin {self._commands}\n'
        end = re.compile(f'gmem: end {self._commands} ([0-9]+)\n')
        # Quoted, so that an echo of the command does not match.
        os.write(self._keyboard, f'echo gmem: "begin" {self._commands}; '
                 f'{command}; echo gmem: "end" {self._commands} $?\n'.encode())
        match = self.wait_for(f'the command {command}', lambda:
                              end.search(self.output()))
        text = self.output()
        text = text[text.index(start) + len(start):match.start()]
        assert match[1] == '0', f'{command}: status {match[1]}: {text}'
        return text

    def start_memcheck(self, megabytes, threads=1):
        """Start a program that writes and checks so much of the memory."""
        self.run(f'memcheck {megabytes} {threads} & true')
        self.assert_works()

    def assert_works(self, passes=2):
        """The memory checker passes so many times more, without an error."""
        before = self.output().count('check: pass=')
        self.wait_for('the guest to check its memory', lambda:
                      self.output().count('check: pass=') >= before + passes)
