# SPDX-License-Identifier: GPL-2.0-or-later
"""The model under sanitizers, with a small VMM of many threads."""
import glob
import os
import re
import subprocess
import tempfile
import unittest

from gmemlab import build_dir, watch

HERE = os.path.dirname(os.path.abspath(__file__))
# Scripts of vCPUs, and the VMM's arguments for them
GUESTS = (('random 1 2000 0 4096', []),
          ('hostile 1 500 8', ['hostile']))
CONFIG = '''
generation g2
report {report}
vcpu all
{script}
shutdown
'''


def build(directory, sanitizers):
    """Build the VMM and the model with sanitizers; returns its path.

    The model's own libc functions are not instrumented: a sanitizer calls them
    before it is ready itself.
    """
    build_tree = build_dir()
    glib = subprocess.run(['pkg-config', '--cflags', '--libs', 'glib-2.0'],
                          stdout=subprocess.PIPE, text=True, check=True).stdout
    names = os.path.join(directory, 'ioctl-names.h')
    with open(names, 'w', encoding='ascii') as f:
        subprocess.run([os.path.join(HERE, 'ioctl-names.py'), os.path.join(
            build_tree, 'src/linux-headers/linux/kvm.h')], stdout=f,
            check=True)
    flags = ['-g', '-O1', '-D_GNU_SOURCE', '-I', directory]
    for headers in 'qemu/linux-headers', 'src/linux-headers', 'src/include':
        flags += ['-isystem', os.path.join(build_tree, headers)]
    sources = set(glob.glob(os.path.join(HERE, '*.c')))
    sources -= set(glob.glob(os.path.join(HERE, 'test-*.c')))
    plain = os.path.join(HERE, 'interpose.c')
    objects = os.path.join(directory, 'interpose.o')
    program = os.path.join(directory, 'stress-' + sanitizers)
    for command in (['-c', '-o', objects, plain],
                    ['-fsanitize=' + sanitizers, '-o', program, objects,
                     *sorted(sources - {plain})]):
        subprocess.run(['gcc', *flags, *command, *glib.split(), '-ldl',
                        '-lpthread'], check=True)
    return program


def symbolize(program, report):
    """Adds names of functions to a sanitizer's report."""
    def name(match):
        text = subprocess.run(['addr2line', '-f', '-s', '-e', program,
                               match[1]], stdout=subprocess.PIPE, text=True,
                              check=True).stdout
        return ' '.join(text.split())
    return re.sub(rf'<null> <null> \({os.path.basename(program)}\+(\w+)\)',
                  name, report)


class Stress(unittest.TestCase):
    """Conversions, mappings, holes and slots at the same time"""

    def check(self, sanitizers):
        with tempfile.TemporaryDirectory(prefix='gmem-') as directory:
            program = build(directory, sanitizers)
            for script, arguments in GUESTS:
                with self.subTest(script=script):
                    self.run_guest(directory, program, script, arguments)

    def run_guest(self, directory, program, script, arguments):
        """The guest ends, and no sanitizer reports an error."""
        config = os.path.join(directory, 'config')
        with open(config, 'w', encoding='ascii') as f:
            f.write(CONFIG.format(report=config + '.report', script=script))
        # The sanitizer's symbolizer would call the model from within itself.
        done = watch.run(
            [program, *arguments], stderr=subprocess.STDOUT,
            env={**os.environ, 'SIMKVM': config,
                 'TSAN_OPTIONS': 'symbolize=0 halt_on_error=1',
                 'UBSAN_OPTIONS': 'halt_on_error=1'})
        self.assertEqual((done.returncode, done.stdout), (0, ''),
                         symbolize(program, done.stdout))
        with open(config + '.report', encoding='utf-8') as f:
            self.assertIn('"violation": null', f.read())

    def test_thread_sanitizer(self):
        self.check('thread')

    def test_address_and_undefined_behaviour_sanitizer(self):
        self.check('address,undefined')
