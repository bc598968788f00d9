#!/usr/bin/python3 -B
# SPDX-License-Identifier: GPL-2.0-or-later
"""ioctl-names.py LINUX/KVM.H: a C table of the names of KVM's ioctls

By number only: some have arguments that other architectures define.
"""
import re
import sys

names = {}
with open(sys.argv[1], encoding='utf-8') as header:
    for name, number in re.findall(
            r'#\s*define\s+(KVM_\w+)\s+_IO[WR]*\(KVMIO,\s*(0x\w+)',
            header.read()):
        names.setdefault(int(number, 16), []).append(name)
print('static const char *const ioctl_names[256] = {')
for number, same in sorted(names.items()):
    print(f'    [{number:#04x}] = "{" or ".join(same)}",')
print('};')
