# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine on the model of the kernel, tests/simkvm."""
import ctypes
import json
import mmap
import os
import re

from . import LabError, build_dir
from .machine import GUEST_MEMFD, Machine

# Of the Debian package "ovmf".
OVMF = '/usr/share/ovmf/OVMF.fd'


def library():
    """The model: ours, unless the environment's LIBSIMKVM names another."""
    path = os.path.abspath(
        os.environ.get('LIBSIMKVM') or
        os.path.join(build_dir(), 'qemu/gmem/tests/simkvm/libsimkvm.so'))
    # Without it, a program would run on the machine's own KVM.
    if not os.path.exists(path):
        raise LabError(f'there is no {path}: scripts/build all')
    return path


def preload():
    """What the dynamic linker has to load before all else.

    AddressSanitizer's runtime has to be first, if the model needs it.
    """
    with open(library(), 'rb') as f:
        runtime = re.findall(rb'\0(libasan\.so\.\d+)\0', f.read())
    return ':'.join([*(name.decode() for name in runtime), library()])


def host_cbitpos():
    """The bit that marks private memory, as CPUID has it on this machine.

    SEV guests of QEMU have to name it, and the model cannot answer CPUID.
    """
    # push %rbx; mov $0x8000001f,%eax; cpuid; mov %ebx,%eax; pop %rbx; ret
    code = bytes.fromhex('53 b81f000080 0fa2 89d8 5b c3')
    with mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE |
                   mmap.PROT_EXEC) as memory:
        memory.write(code)
        view = ctypes.c_char.from_buffer(memory)
        ebx = ctypes.CFUNCTYPE(ctypes.c_uint32)(ctypes.addressof(view))()
        del view
    return ebx & 0x3f


def snp(properties=''):
    """An SEV-SNP guest, with properties if any: ",name=value..."."""
    return (f'sev-snp-guest,cbitpos={host_cbitpos()},reduced-phys-bits=1' +
            properties)


def lacks_tdx():
    """Why QEMU cannot launch a TDX guest on the model here, or None.

    QEMU takes the width of physical addresses from this machine's processor.
    """
    with open('/proc/cpuinfo', encoding='ascii') as f:
        bits = int(re.search(r'(\d+) bits physical', f.read())[1])
    return f'TDX guests need 48 bits of physical address; there are {bits}' \
        if bits < 48 else None


class Model:
    """One run of the model: its configuration, its log and its report.

    @config: lines as docs/testing.md lists them
    """

    def __init__(self, directory, name, config):
        self.path = os.path.join(directory, name)
        self.config = config
        # The scripts of vCPUs come last.
        with open(self.path + '.config', 'w', encoding='utf-8') as f:
            f.write(f'log {self.path}.log\nreport {self.path}.report\n'
                    f'{config}\n')

    def wrapper(self):
        """Words before a command that make it run on the model."""
        return ['env', f'SIMKVM={self.path}.config',
                f'LD_PRELOAD={preload()}']

    def log(self, call=None):
        """The calls so far, of one kind or all: a list of dictionaries."""
        with open(self.path + '.log', encoding='utf-8') as f:
            lines = [json.loads(line) for line in f if line.endswith('\n')]
        return [line for line in lines if call in (None, line['call'])]

    def report(self):
        """The model's report on the whole run, once it has ended."""
        with open(self.path + '.report', encoding='utf-8') as f:
            return json.load(f)


class SimMachine(Machine):
    """A virtual machine on the model, in scripted mode.

    Its console is the debug console, port 0x402.  It ends when the guest
    shuts down.

    @confidential: the object that makes it a confidential guest, see snp()
    """

    def __init__(self, directory, config, name='sim', machine='q35', cpus=1,
                 size='128M', backend=GUEST_MEMFD, confidential=None, args=()):
        if confidential:
            machine += ',confidential-guest-support=cgs'
            args = ['-object', confidential + ',id=cgs', *args]
        super().__init__(directory, name, machine, size, backend,
                         ['-accel', 'kvm', '-smp', str(cpus), '-no-reboot'])
        self.model = Model(directory, name, config)
        self._wrapper = self.model.wrapper()
        self.add_args('-debugcon', 'file:' + self.console,
                      '-global', 'isa-debugcon.iobase=0x402', *args)

    def play(self):
        """Run it until it ends by itself.  Returns its exit status."""
        # It may be faster than QMP's greeting.
        self.set_qmp_monitor(False)
        self.launch()
        self.wait()
        return self.exitcode()

    def get_log(self):
        """Standard error, without a sanitizer's warnings of coroutines."""
        return re.sub(r'(?m)^==\d+==WARNING: ASan doesn.t fully support '
                      'makecontext.*\n', '', super().get_log() or '')
