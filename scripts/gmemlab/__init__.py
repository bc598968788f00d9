# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tools of the emulated host and of its guests share."""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))


def build_dir():
    """The directory for everything that is built or downloaded."""
    return os.path.abspath(os.environ.get('BUILD') or
                           os.path.join(ROOT, 'build'))


def emulator():
    """The emulator: ours, unless the environment's QEMU names another."""
    return os.path.abspath(os.environ.get('QEMU') or
                           os.path.join(build_dir(), 'qemu-system-x86_64'))


class LabError(Exception):
    """Something that the user should read, without a traceback."""
