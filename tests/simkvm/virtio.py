# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver of virtio 1 over PCI, as lines of a script for the model.

The device needs "addr=10", its place on the bus, "iommu_platform=off", and
"ioeventfd=off", so that it takes a request before the script goes on.
"""
SLOT, BAR = 0x10, 0xc0000000
OPTIONS = f'addr={SLOT:#x},iommu_platform=off,ioeventfd=off'
PAGE = 4096

# Offsets in the BAR
FEATURES_SELECT, FEATURES, STATUS, QUEUE, SIZE, ENABLE, DESCRIPTORS, \
    AVAILABLE, USED = 8, 0xc, 0x14, 0x16, 0x18, 0x1c, 0x20, 0x28, 0x30
NOTIFY = 0x3000
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
# Flags of a descriptor
NEXT, WRITE = 1, 2
# A queue's number of descriptors, and offsets of its rings in its page
ENTRIES, AVAILABLE_AT, USED_AT = 32, 0x200, 0x400


def _mmio(offset, size, value):
    return f'mmio-write {BAR + offset:#x} {size} {value:#x}\n'


def _config(register, value):
    return (f'out 0xcf8 4 {0x80000000 | SLOT << 11 | register:#x}\n'
            f'out 0xcfc 4 {value:#x}\n')


class Driver:
    """A driver with a page for each virtqueue.

    @rings: gpa of these pages, which are shared
    @queues: numbers of the queues that it uses
    """

    def __init__(self, rings, queues):
        self.rings = rings
        self.requests = {queue: 0 for queue in queues}
        self.descriptors = {queue: 0 for queue in queues}

    def page(self, queue):
        """gpa of a queue's page."""
        return self.rings + queue * PAGE

    def used_index(self, queue):
        """gpa of the used index, 2 bytes: number of completed requests."""
        return self.page(queue) + USED_AT + 2

    def start(self):
        """Lines: get the device ready."""
        lines = _config(0x20, BAR) + _config(0x24, 0) + _config(4, 6)
        for status in 0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER:
            lines += _mmio(STATUS, 1, status)
        # VIRTIO_F_VERSION_1 and nothing else
        lines += _mmio(FEATURES_SELECT, 4, 1) + _mmio(FEATURES, 4, 1)
        status = ACKNOWLEDGE | DRIVER | FEATURES_OK
        lines += _mmio(STATUS, 1, status)
        for queue in self.requests:
            gpa = self.page(queue)
            for at in AVAILABLE_AT, USED_AT:
                lines += f'write {gpa + at:#x} 8 0\n'
            lines += _mmio(QUEUE, 2, queue) + _mmio(SIZE, 2, ENTRIES)
            for register, at in (DESCRIPTORS, 0), (AVAILABLE, AVAILABLE_AT), \
                    (USED, USED_AT):
                lines += _mmio(register, 4, gpa + at)
                lines += _mmio(register + 4, 4, 0)
            lines += _mmio(ENABLE, 2, 1)
        status |= DRIVER_OK
        return lines + _mmio(STATUS, 1, status) + \
            f'mmio-read {BAR + STATUS:#x} 1 expect={status:#x}\n'

    def submit(self, queue, buffers):
        """Lines: hand a request over.

        @buffers: [(gpa, bytes, may the device write there?)]
        """
        gpa, first = self.page(queue), self.descriptors[queue]
        lines = ''
        for n, (address, size, write) in enumerate(buffers, first):
            last = n == first + len(buffers) - 1
            flags = (WRITE if write else 0) | (0 if last else NEXT)
            word = size | flags << 32 | n + 1 << 48
            lines += f'write {gpa + n * 16:#x} 8 {address:#x}\n'
            lines += f'write {gpa + n * 16 + 8:#x} 8 {word:#x}\n'
        self.descriptors[queue] += len(buffers)
        index = self.requests[queue]
        self.requests[queue] += 1
        at = gpa + AVAILABLE_AT
        return lines + (f'write {at + 4 + 2 * index:#x} 2 {first}\n'
                        f'write {at + 2:#x} 2 {index + 1}\n') + \
            _mmio(NOTIFY + 4 * queue, 2, queue)

    def done(self, queue):
        """Lines: all requests have completed."""
        return (f'read {self.used_index(queue):#x} 2 '
                f'expect={self.requests[queue]}\n')
