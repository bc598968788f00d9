# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that obeys a list of commands: tests/guest/firmware.

It runs wherever there is KVM.  tests/guest/firmware/run.c has the commands.
"""
import os
import re
import struct
import subprocess
import tempfile
import typing

from baremetal import CPU
from testcase import GuestTest
from gmemlab import ROOT
from gmemlab.machine import GUEST_MEMFD, Machine, wait_for

IMAGE = 'guest.fd'


def build(directory):
    """Build the firmware there; returns its path."""
    subprocess.run(['make', '-s', '-C',
                    os.path.join(ROOT, 'tests/guest/firmware'),
                    'O=' + directory], check=True)
    return os.path.join(directory, IMAGE)


def linux():
    """What QEMU takes for Linux, of one sector of setup and boot protocol
    2.11: a file's contents.
    """
    kernel = bytearray(b'A' * 1024 + b'the kernel' * 1000)
    struct.pack_into('<B', kernel, 0x1f1, 1)
    struct.pack_into('<4sH', kernel, 0x202, b'HdrS', 0x20b)
    struct.pack_into('<I', kernel, 0x22c, 0x7fffffff)
    return bytes(kernel)


class Line(typing.NamedTuple):
    """A vCPU's message on a command, without its "ok" or "FAIL"."""
    cpu: int
    ok: bool
    text: str


class Guest(Machine):
    """A virtual machine with firmware that runs commands.

    @firmware: path of the image
    @commands: text, one command a line
    """

    def __init__(self, directory, firmware, commands, name='guest',
                 machine='q35', cpus=1, size='128M', backend=GUEST_MEMFD,
                 cpu=CPU, args=()):
        super().__init__(directory, name, machine, size, backend,
                         ['-accel', 'kvm', '-cpu', cpu, '-smp', str(cpus)])
        path = os.path.join(directory, name + '.commands')
        with open(path, 'w', encoding='ascii') as f:
            f.write(commands)
        self.add_args(
            '-debugcon', 'file:' + self.console,
            '-global', 'isa-debugcon.iobase=0x402',
            '-device', 'isa-debug-exit,iobase=0xf4,iosize=4',
            '-bios', firmware,
            '-fw_cfg', 'name=opt/guest-memfd/commands,file=' + path, *args)

    def lines(self):
        """The messages of all vCPUs so far, in order."""
        return [Line(int(cpu), ok == 'ok', text) for cpu, ok, text in
                re.findall(r'^\[cpu(\d+)\] (ok|FAIL) (.*)\n', self.output(),
                           re.M)]

    def failures(self):
        """The failures so far."""
        return [line.text for line in self.lines() if not line.ok]

    def wait_done(self, times=1):
        """All vCPUs have come to the end of the list."""
        def done():
            if not self.is_running():
                self.shutdown(hard=True)        # reads the log
                raise AssertionError(f'the guest has ended; {self.state()}')
            return len(re.findall(r'^\[cpu\d+\] done, \d+ failed\n',
                                  self.output(), re.M)) >= times
        wait_for('the end of the commands', done, self)

    def wait_exit(self):
        """The guest ends the emulator; returns the status that it gave."""
        wait_for('the guest to exit', lambda: not self.is_running(), self)
        return self.exitcode() >> 1


class FirmwareTest(GuestTest):
    """Has the firmware, and guests that run it."""

    firmware = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        temp = tempfile.TemporaryDirectory(prefix='gmem-')
        cls.addClassCleanup(temp.cleanup)
        cls.firmware = build(temp.name)

    def start(self, commands, **kwargs):
        """A Guest that runs."""
        return self.launch(Guest(self.dir, self.firmware, commands, **kwargs))

    def run_list(self, commands, **kwargs):
        """A Guest that has come to the end of its list."""
        guest = self.start(commands, **kwargs)
        guest.wait_done()
        return guest

    def check_list(self, commands, **kwargs):
        """The same, and nothing went wrong."""
        guest = self.run_list(commands, **kwargs)
        self.assertEqual(guest.failures(), [], guest.output())
        return guest
