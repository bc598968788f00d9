# SPDX-License-Identifier: GPL-2.0-or-later
"""Other processes get no file of memory in place unless the user allows it.

With that file they can convert and discard the guest's pages.
"""
import json
import os
import socket
import struct

from gmemlab.machine import GUEST_MEMFD, MEMFD
from gmemlab.simkvm import lacks_tdx, snp
from qemu.qmp import ExecuteError
from simtest import Server, SimTest
from test_vhost import BackEnd

SW_PROTECTED = 'generation g2\nvm-types default sw-protected'
REFUSED = ('vhost-user is not possible with memory of a {0} that is '
           'converted in place, .* add share-file=on to the {0} object')


class VhostUser(SimTest):
    """Back ends of vhost-user want the file of all memory."""

    def back_end(self, device=False):
        """A back end, and arguments that connect to it."""
        path = os.path.join(self.dir, self._name())
        args = ['-chardev', 'socket,id=c,path=' + path]
        if device:
            args += ['-device', 'vhost-user-blk-pci,chardev=c,'
                     'iommu_platform=off']
        else:
            args += ['-netdev', 'vhost-user,id=n,chardev=c']
        return BackEnd(path), args

    def check_refused(self, kind, confidential, config='generation g2',
                      device=False, **kwargs):
        end, args = self.back_end(device)
        sim = self.play(f'{config}\nvcpu 0\nshutdown', status=1, backend=None,
                        confidential=confidential,
                        args=['-bios', self.image, *args], **kwargs)
        self.assertRegex(sim.get_log(), REFUSED.format(kind))
        # One error, and not one for each attempt to connect
        self.assertEqual(sim.get_log().count('vhost-user is not possible'), 1)
        self.assertEqual(end.seen, set())

    def test_snp(self):
        for device in False, True:
            with self.subTest(device=device):
                self.check_refused('sev-snp-guest', snp(), device=device)

    def test_asking_for_the_default_changes_nothing(self):
        self.check_refused('sev-snp-guest', snp(',share-file=off'))

    def test_tdx(self):
        if lacks_tdx():
            self.skipTest(lacks_tdx())
        self.check_refused('tdx-guest', 'tdx-guest',
                           machine='q35,kernel-irqchip=split')

    def test_sw_protected(self):
        self.check_refused('sw-protected-guest', 'sw-protected-guest',
                           SW_PROTECTED)

    def test_hot_plug(self):
        path = os.path.join(self.dir, 'vhost')
        end = BackEnd(path)
        sim = self.start('generation g2\nvcpu 0\nhalt', backend=None,
                         confidential=snp(), args=[
                             '-bios', self.image, '-device',
                             'pcie-root-port,id=rp', '-chardev',
                             'socket,id=c,path=' + path])
        with self.assertRaisesRegex(ExecuteError,
                                    REFUSED.format('sev-snp-guest')):
            sim.cmd('device_add', driver='vhost-user-blk-pci', chardev='c',
                    bus='rp')
        sim.assert_runs()
        self.assertEqual(end.seen, set())

    def check_taken(self, config, **kwargs):
        end, args = self.back_end()
        self.play(f'{config}\nvcpu 0\nshutdown', args=[
            '-bios', self.image, *args], **kwargs)
        self.assertTrue(end.seen)

    def test_what_the_user_allows(self):
        self.check_taken('generation g2', backend=None,
                         confidential=snp(',share-file=on'))
        self.check_taken(SW_PROTECTED, backend=None,
                         confidential='sw-protected-guest,share-file=on')

    def test_separate_memory(self):
        """The file of shared memory gives no control of private memory."""
        self.check_taken('generation g1', backend=MEMFD, confidential=snp())

    def test_ordinary_guests(self):
        for config in 'generation g1', 'generation g2':
            self.check_taken(config, backend=GUEST_MEMFD)


# Commands and flags of vfio-user
VERSION, DMA_MAP, GET_INFO = 1, 2, 4
REPLY, NO_REPLY, ERROR = 0x1, 0x10, 0x20


class VfioUserServer(Server):
    """Speaks vfio-user until the client asks for the device, which is none.

    maps: maps of guest memory so far; files: descriptors that came with them
    """

    def __init__(self, path):
        self.maps = self.files = 0
        super().__init__(path)

    def run(self):
        with self.server, self.server.accept()[0] as connection:
            while True:
                head, fds, _, _ = socket.recv_fds(connection, 16, 16)
                if len(head) < 16:
                    return
                number, command, size, flags, _ = struct.unpack('<HHIII', head)
                size -= 16
                while size:
                    size -= len(connection.recv(size))
                for fd in fds:
                    os.close(fd)
                if command == DMA_MAP:
                    self.maps += 1
                    self.files += len(fds)
                if flags & NO_REPLY:
                    continue
                # Version 0.0, no capabilities
                body = struct.pack('<HH', 0, 0) if command == VERSION else b''
                flags = REPLY | (ERROR if command == GET_INFO else 0)
                connection.sendall(struct.pack('<HHIII', number, command,
                                               16 + len(body), flags, 19) +
                                   body)


class VfioUser(SimTest):
    """A vfio-user server without a file asks QEMU for each access."""

    def play_device(self, properties):
        path = os.path.join(self.dir, 'vfio')
        server = VfioUserServer(path)
        self.play(f'{SW_PROTECTED}\nvcpu 0\nshutdown', status=1, backend=None,
                  confidential='sw-protected-guest' + properties,
                  args=['-bios', self.image, '-device', json.dumps({
                      'driver': 'vfio-user-pci',
                      'socket': {'type': 'unix', 'path': path}})])
        # It gets maps of all memory, which is shared at first.
        self.assertGreater(server.maps, 0)
        return server

    def test_no_file_by_default(self):
        self.assertEqual(self.play_device('').files, 0)

    def test_files_if_the_user_allows_it(self):
        self.assertGreater(self.play_device(',share-file=on').files, 0)
