# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs of tables.c: what they are made from, and what has to agree on them.

The check of firmware's tables is in the emulator, and in gmemlab.measure; both
have to decide alike.  A launch on the model of the kernel has to do what they
say, and to measure what the latter computes.
"""
import contextlib
import hashlib
import itertools
import os
import re
import struct
import subprocess
import sys
import tempfile
import typing

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
ROOT = os.path.dirname(TESTS)
sys.path[:0] = [os.path.join(ROOT, 'scripts'),
                os.path.join(TESTS, 'functional')]
import firmware                                           # noqa: E402
from gmemlab import LabError, measure                     # noqa: E402
from gmemlab.simkvm import OVMF, SimMachine, lacks_tdx, snp     # noqa: E402

# As in tables.c
MODES = 'snp', 'snp-hashes', 'tdx'
HEAD = '<4BI2H'
UNIT = 64 << 10
IMAGE_START = 0                 # RAM up to there
OWN = 1                         # RAM as the input says
RAM = 256 << 20                 # for a launch, instead of IMAGE_START
MOST_FAILURES = 5
SAMPLED = 2000                  # inputs from which a sample is taken
SCRIPT = '''
vcpu 0
print launched
shutdown'''

KERNEL = firmware.linux()
HASHES = measure.kernel_hashes(KERNEL)


def images(directory):
    """Firmware that there is: its name, and its contents."""
    paths = {'ours': firmware.build(directory)}
    for kind in 'tdx', 'amdsev':
        done = subprocess.run([os.path.join(ROOT, 'scripts/firmware'), kind],
                              stdout=subprocess.PIPE, text=True, check=False)
        if not done.returncode:
            paths[kind] = done.stdout.strip()
    if os.path.exists(OVMF):
        paths['ovmf'] = OVMF
    for name, path in paths.items():
        with open(path, 'rb') as f:
            yield name, f.read()


def seeds(directory):
    """Inputs with the tables of that: a name, and the bytes."""
    for name, image in images(directory):
        table, = struct.unpack_from('<H', image, len(image) - 50)
        tail = image[-32 - table:]
        for number, mode in enumerate(MODES):
            guid = measure.TDX_METADATA if mode == 'tdx' else \
                measure.SEV_METADATA
            entry = measure.Firmware(image).entry(guid, '<I')
            if not entry:
                continue
            distance, = entry
            length, = struct.unpack_from('<I', image,
                                         len(image) - distance + 4)
            at = len(image) - distance
            yield f'{name}-{mode}', struct.pack(
                HEAD, number, 0, len(image) // UNIT, 0, distance, len(tail),
                0) + image[at:at + length] + tail


class Answer(typing.NamedTuple):
    """What the program says of an input."""
    mode: str
    ram: int
    reason: str                 # why it is refused, or ''
    image: bytes
    data: bytes                 # the input

    def kind(self):
        """Answers of the same kind have the same reason, but for numbers."""
        return self.mode, re.sub('(0x)?[0-9a-f]*[0-9][0-9a-f]*', '#',
                                 self.reason)

    def digest(self):
        """Of the input, so that a choice does not depend on its name."""
        return hashlib.sha1(self.data).digest()

    def keep(self, directory, name):
        """Keeps an input that failed; returns how to repeat it."""
        path = os.path.join(directory,
                            f'tables-{name}-{self.digest().hex()[:12]}')
        with open(path, 'wb') as f:
            f.write(self.data)
        return f'tests/fuzz/run {path}'


class Program:
    """tables, which answers one question after the other."""

    def __init__(self, path):
        self._path = path
        self._process = subprocess.Popen(       # pylint: disable=R1732
            [path, '--serve'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self):
        """Ends it."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def ask(self, path, ram=IMAGE_START, change=0):
        """An Answer on an input; @change: by this much, if not 0."""
        question = f'{ram} {change} {path}'
        self._process.stdin.write(f'{question}\n'.encode())
        self._process.stdin.flush()
        line = self._process.stdout.readline().decode()
        if not line:
            raise LabError(f"the program has ended; repeat it: echo "
                           f"'{question}' | {self._path} --serve")
        mode, ram, size, length, reason = line[:-1].split(' ', 4)
        return Answer(mode, int(ram), reason,
                      self._process.stdout.read(int(size)),
                      self._process.stdout.read(int(length)))


@contextlib.contextmanager
def program(path):
    """A Program that is ended."""
    it = Program(path)
    try:
        yield it
    finally:
        it.close()


def files(directory):
    """Paths of a corpus, in an order that depends on contents only."""
    return [os.path.join(directory, name)
            for name in sorted(os.listdir(directory))]


def wanted(answer):
    """The Launch that gmemlab.measure makes of it, or an exception."""
    try:
        if answer.mode == 'tdx':
            return measure.TdxLaunch(answer.image)
        return measure.SnpLaunch(answer.image,
                                 HASHES if answer.mode == 'snp-hashes'
                                 else None)
    except Exception as err:            # pylint: disable=broad-except
        return err


def disagree(answer):
    """Why gmemlab.measure does not decide as the check, or None."""
    other = wanted(answer)
    refused = isinstance(other, Exception)
    if refused == bool(answer.reason) and \
            (not refused or isinstance(other, LabError)):
        return None
    return f'the emulator: {answer.reason or "accepted"}; measure.py: ' + \
        (repr(other) if refused else 'accepted')


def compare(path, paths, most, directory):
    """Does gmemlab.measure decide alike?  Of inputs, and of changed ones.

    Returns reasons why it has failed.
    """
    failures, accepted = [], 0
    changes = ((n, name) for n in itertools.count() for name in paths)
    with program(path) as tables:
        for change, name in itertools.islice(changes, most):
            answer = tables.ask(name, change=change)
            accepted += not answer.reason
            reason = disagree(answer)
            if reason:
                failures.append(f'{reason}; repeat it: ' +
                                answer.keep(directory, 'compare'))
            if len(failures) == MOST_FAILURES:
                break
    print(f'{most} compared, {accepted} of them accepted')
    return failures


class Launcher:
    """Launches inputs on the model of the kernel, in files of @directory."""

    def __init__(self, directory):
        self._directory = directory
        self._names = itertools.count()
        self._firmware = os.path.join(directory, 'firmware')
        self._kernel = os.path.join(directory, 'kernel')
        with open(self._kernel, 'wb') as f:
            f.write(KERNEL)

    def _machine(self, answer, generation):
        args, extra = ['-bios', self._firmware], {}
        if answer.mode == 'tdx':
            args += ['-cpu', 'host']
            extra = {'machine': 'q35,kernel-irqchip=split'}
            confidential = 'tdx-guest'
        elif answer.mode == 'snp':
            confidential = snp()
        else:
            confidential = snp(',kernel-hashes=on')
            args += ['-kernel', self._kernel]
        return SimMachine(self._directory, f'generation {generation}{SCRIPT}',
                          name=f'launch{next(self._names)}',
                          size=f'{answer.ram >> 20}M',
                          backend=None, confidential=confidential, args=args,
                          **extra)

    def launch(self, answer, generation):
        """Launches it.  Returns why it has failed, or None."""
        with open(self._firmware, 'wb') as f:
            f.write(answer.image)
        sim = self._machine(answer, generation)
        status = sim.play()
        log = sim.get_log()
        said = f'{log[:2000]!r} (status {status})'
        if not answer.reason:
            launch = wanted(answer)
            if status:
                return f'it was not launched: {said}'
            digest = sim.model.report()['launch']['digest']
            if digest != launch.digest().hex():
                return f'digest {digest}, and not {launch.digest().hex()}'
            return None
        if status != 1:
            return f'it did not end with status 1: {said}'
        # Its size is checked before its tables are, and told in other words.
        reason = '' if len(answer.image) % UNIT or not answer.image else \
            answer.reason
        if f": firmware '{self._firmware}': {reason}" not in log:
            return f'it did not say why, {answer.reason!r}: {said}'
        try:
            exits = sim.model.report()['exits']
        except FileNotFoundError:
            exits = 0
        return f'the guest ran: {said}' if exits else None


def sample(path, paths, most):
    """Answers on inputs, as unlike each other as can be.

    Half of them are accepted, if there are so many.
    """
    kinds = {}
    with program(path) as tables:
        for change in 0, 1:
            for name in paths[:SAMPLED]:
                answer = tables.ask(name, OWN, change)
                if answer.ram not in (1 << n for n in range(32)):
                    answer = tables.ask(name, RAM, change)
                if answer.mode == 'tdx' and lacks_tdx():
                    continue
                # Images would fill memory.
                kinds.setdefault(answer.kind(), []).append(
                    (answer.digest(), name, answer.ram, change))
        queues = [[], []]
        for refused, queue in enumerate(queues):
            groups = [sorted(group) for (_, reason), group in
                      sorted(kinds.items(), key=lambda kind:
                             min(kind[1])) if bool(reason) == bool(refused)]
            for row in itertools.zip_longest(*groups):
                queue += filter(None, row)
        accepted = queues[0][:max(most // 2, most - len(queues[1]))]
        for _, name, ram, change in accepted + \
                queues[1][:most - len(accepted)]:
            yield tables.ask(name, ram, change)


def launch(path, paths, most, directory):
    """Do launches do what the program says?  Returns why they failed."""
    failures, counts = [], [0, 0]
    with tempfile.TemporaryDirectory(prefix='gmem-') as temp:
        launcher = Launcher(temp)
        for answer in sample(path, paths, most):
            for generation in 'g2', 'g1':
                reason = launcher.launch(answer, generation)
                if reason:
                    failures.append(
                        f'{generation} {answer.mode}: {reason}; repeat it: '
                        + answer.keep(directory, 'launch'))
            counts[bool(answer.reason)] += 1
            if len(failures) >= MOST_FAILURES:
                break
    print('{} launched, {} refused, in place and separate'.format(*counts))
    return failures
