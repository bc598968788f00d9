# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's interface for guest_memfd, for programs without an emulator.

They ask the model for answers to calls that no emulator makes.  Calls raise
OSError.
"""
import fcntl
import os
import struct

MMAP, INIT_SHARED = 1, 2        # flags of a guest_memfd
PRIVATE = 8                     # attribute of a page
DEFAULT_VM, SW_PROTECTED_VM, SNP_VM, TDX_VM = 0, 1, 4, 5

WRITE, READ = 1, 2              # directions of an ioctl


def ioctl(fd, number, argument, directions=0):
    """A call of KVM.  Returns its result.

    @argument: a number, or a structure: a bytearray, which may be written to
    """
    size = len(argument) if directions else 0
    return fcntl.ioctl(fd, directions << 30 | size << 16 | 0xae << 8 | number,
                       argument)


def structure(layout, *values):
    """Returns a structure for a call."""
    return bytearray(struct.pack('<' + layout, *values))


class Vm:
    """A virtual machine."""

    def __init__(self, kind=SW_PROTECTED_VM):
        self.kvm = os.open('/dev/kvm', os.O_RDWR)
        self.fd = ioctl(self.kvm, 0x01, kind)

    def vcpu(self, number=0):
        """Returns a descriptor."""
        return ioctl(self.fd, 0x41, number)

    def guest_memfd(self, size, flags=MMAP | INIT_SHARED):
        """Returns a descriptor."""
        return ioctl(self.fd, 0xd4, structure('2Q48x', size, flags),
                     READ | WRITE)

    def set_slot(self, gpa, size, address, flags=0):
        """Make memslot 0 without a guest_memfd, or change or delete it."""
        ioctl(self.fd, 0x49, structure('2I3Q128x', 0, flags, gpa, size,
                                       address), WRITE)

    def set_attributes(self, gpa, size, attributes):
        """Set the state of pages where it is kept VM-wide."""
        ioctl(self.fd, 0xd2, structure('3Q8x', gpa, size, attributes), WRITE)


def convert(gmem, offset, size, attributes, flags=0):
    """Convert pages of a guest_memfd.

    Returns 0 or the errno, and the offset of the error, 1 if none was written.
    """
    data = structure('5Q88x', offset, size, attributes, flags, 1)
    try:
        ioctl(gmem, 0xd2, data, READ | WRITE)
        error = 0
    except OSError as err:
        error = err.errno
    return error, struct.unpack_from('<Q', data, 32)[0]


def pre_fault(vcpu, gpa, size):
    """Make pages present."""
    ioctl(vcpu, 0xd5, structure('2Q48x', gpa, size), READ | WRITE)
