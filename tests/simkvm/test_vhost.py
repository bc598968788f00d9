# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that gives vhost a ring in its private memory.

The back end takes any address, as the kernel's vhost does.  When memory
changes, QEMU checks the rings again, and aborts if they are not the same.
"""
import os
import socket
import struct

from gmemlab.machine import wait_for
from gmemlab.simkvm import snp
from simtest import Server, SimTest

# Messages of vhost-user that are answered, and with what
GET_FEATURES, GET_VRING_BASE, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM = \
    1, 11, 15, 17
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
ANSWERS = {
    GET_FEATURES: struct.pack('<Q', VERSION_1 | PROTOCOL_FEATURES),
    GET_VRING_BASE: struct.pack('<II', 0, 0),
    GET_PROTOCOL_FEATURES: struct.pack('<Q', 0),
    GET_QUEUE_NUM: struct.pack('<Q', 1),
}
REPLY = 5               # flags: version 1, a reply
SET_MEM_TABLE = 5
SET_VRING_ADDR = 9

SLOT = 0x10
BAR = 0xc0000000
# Offsets in the common configuration of virtio over PCI
STATUS, SELECT, SIZE, ENABLE, DESC, AVAIL, USED = \
    0x14, 0x16, 0x18, 0x1c, 0x20, 0x28, 0x30
# PAM registers of q35: all of these areas become RAM, so memory changes.
PAM = 0x80000090


class BackEnd(Server):
    """Speaks vhost-user, and does nothing else.

    seen: messages that came, by number
    files: how many descriptors came with messages about memory
    """

    def __init__(self, path):
        self.seen = set()
        self.files = 0
        super().__init__(path)

    def run(self):
        with self.server, self.server.accept()[0] as connection:
            while True:
                # Files come along, too.
                head, fds, _, _ = socket.recv_fds(connection, 12, 16)
                for fd in fds:
                    os.close(fd)
                if len(head) < 12:
                    return
                request, _, size = struct.unpack('<III', head)
                while size:
                    size -= len(connection.recv(size))
                if request == SET_MEM_TABLE:
                    self.files += len(fds)
                self.seen.add(request)
                if request in ANSWERS:
                    body = ANSWERS[request]
                    connection.sendall(struct.pack('<III', request, REPLY,
                                                   len(body)) + body)


def write(offset, size, value):
    return f'mmio-write {BAR + offset:#x} {size} {value:#x}\n'


def config(register, value):
    return (f'out 0xcf8 4 {0x80000000 | SLOT << 11 | register:#x}\n'
            f'out 0xcfc 4 {value:#x}\n')


class Rings(SimTest):
    """virtio-net with vhost-user; its first ring is started."""

    def play_ring(self, desc, shared):
        """Returns machine and back end; @shared: GPA PAGES"""
        path = os.path.join(self.dir, 'vhost')
        end = BackEnd(path)
        script = f'map-gpa {shared} shared\n'
        # A BAR, memory and bus mastering
        script += config(0x20, BAR) + config(0x24, 0) + config(4, 6)
        for status in 0, 1, 3:
            script += write(STATUS, 1, status)
        # VIRTIO_F_VERSION_1
        script += write(8, 4, 1) + write(0xc, 4, 1) + write(STATUS, 1, 0xb)
        script += write(SELECT, 2, 0) + write(SIZE, 2, 64)
        for register, gpa in (DESC, desc), (AVAIL, 0x1001000), \
                (USED, 0x1002000):
            script += write(register, 4, gpa) + write(register + 4, 4, 0)
        script += write(ENABLE, 2, 1) + write(STATUS, 1, 0xf)
        script += f'mmio-read {BAR + STATUS:#x} 1 expect=0xf\nprint started\n'
        script += f'out 0xcf8 4 {PAM:#x}\nout 0xcfc 4 0x33333333\n'
        sim = self.start(
            f'generation g2\nvcpu 0\n{script}\nprint alive\nhalt',
            machine='q35', backend=None,
            confidential=snp(',share-file=on'), args=[
                '-bios', self.image, '-chardev', 'socket,id=c,path=' + path,
                '-netdev', 'vhost-user,id=n,chardev=c', '-device',
                f'virtio-net-pci,netdev=n,iommu_platform=off,addr={SLOT:#x}'])
        wait_for('the guest', lambda: 'alive' in sim.output(), sim)
        sim.assert_runs()
        self.quit(sim)
        return sim, end

    def test_private(self):
        sim, end = self.play_ring(0x1000000, '0x1001000 2')
        self.assertIn('unable to start vhost', sim.get_log())
        self.assertNotIn(SET_VRING_ADDR, end.seen)

    def test_shared(self):
        """The same ring in shared memory starts."""
        sim, end = self.play_ring(0x1000000, '0x1000000 3')
        self.assertNotIn('unable to start vhost', sim.get_log())
        self.assertIn(SET_VRING_ADDR, end.seen)
        # It has the guest's memory, as the user has allowed.
        self.assertGreater(end.files, 0)
