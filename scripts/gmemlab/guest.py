# SPDX-License-Identifier: GPL-2.0-or-later
"""The Linux guest that the tests and "make run" boot."""
import os
import subprocess
import tempfile

from . import LabError, ROOT, build_dir
from .initramfs import image

SOURCES = os.path.join(ROOT, 'tests', 'guest', 'linux')
MODULES = ('virtio_mmio', 'virtio_blk', 'virtio_balloon', 'virtio_mem')

# -cpu for a guest on KVM.  In the emulated host TCG's xsave leaves are
# too odd for a Linux kernel.
CPU = 'host,-xsave'
APPEND = ('console=ttyS0 loglevel=4 panic=-1 oops=panic mitigations=off '
          'nokaslr no_timer_check cryptomgr.notests random.trust_cpu=on '
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


def initramfs(kernel):
    """Returns the path of the guest's initramfs for @kernel."""
    return image('guest', kernel, MODULES, os.path.join(SOURCES, 'init'),
                 [('bin/memcheck', memcheck())])
