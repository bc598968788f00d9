#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit tests of scripts/integrate.py."""
import importlib.util
import os
import subprocess
import sys
import tempfile
import textwrap
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
TOOL = os.path.join(ROOT, 'scripts', 'integrate.py')
sys.dont_write_bytecode = True
spec = importlib.util.spec_from_file_location('integrate', TOOL)
integrate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(integrate)

SOURCE = '''\
#include "a.h"

static int first(int x);

static int first(int x)
{
    int ret;

    if (x) {
        lock();
    }
    unlock();
    return ret;
}

int second(int x,
           int y)
{
    unlock();
    return 0;
}

typedef struct State {
    int a;
    int b;
} State;
'''

SCHEMA = '''\
{ 'enum': 'One',
  'data': [ 'x',
            'y' ] }

{ 'enum': 'Two',
  'data': [ 'x' ] }
'''


class Tree(unittest.TestCase):
    """A small source tree and hook files."""

    def setUp(self):
        temp = tempfile.TemporaryDirectory()
        self.addCleanup(temp.cleanup)
        self.src = os.path.join(temp.name, 'src')
        self.dest = os.path.join(temp.name, 'dest')
        self.hook_file = os.path.join(temp.name, 'test.hook')
        for tree in self.src, self.dest:
            os.makedirs(os.path.join(tree, 'sub'))
            self.write(tree, 'VERSION', '1.2.3\n')
            self.write(tree, 'a.c', SOURCE)
            self.write(tree, 'sub/s.json', SCHEMA)

    @staticmethod
    def write(tree, name, text):
        with open(os.path.join(tree, name), 'w', encoding='utf-8') as f:
            f.write(text)

    def read(self, name='a.c'):
        return integrate.read(os.path.join(self.dest, name))

    def hooks(self, text):
        with open(self.hook_file, 'w', encoding='utf-8') as f:
            f.write(textwrap.dedent(text))
        return integrate.parse(self.hook_file)

    def apply(self, text):
        return integrate.apply(self.src, self.dest, self.hooks(text))

    def fails(self, text, *wanted):
        """Applying fails, prints all of @wanted, and writes nothing."""
        with self.assertRaises(integrate.HookError) as caught:
            self.apply(text)
        for words in wanted:
            self.assertIn(words, str(caught.exception))
        self.assertEqual(self.read(), SOURCE)
        self.assertEqual(self.read('sub/s.json'), SCHEMA)
        self.assertIsNone(self.read(integrate.MANIFEST))


class Places(Tree):
    """Where text goes."""

    def test_before_inserts_whole_lines(self):
        self.apply('file a.c\nin function first\nbefore unlock();\n|     x();\n')
        self.assertIn('    }\n    x();\n    unlock();\n    return ret;',
                      self.read())

    def test_after_inserts_whole_lines(self):
        self.apply('file a.c\nafter int ret;\n|\n|     x();\n')
        self.assertIn('    int ret;\n\n    x();\n\n    if (x)', self.read())

    def test_replace_takes_the_place_of_the_anchor_only(self):
        self.apply('file a.c\nreplace lock(); }\n| lock2(); }\n')
        self.assertIn('        lock2(); }\n    unlock();', self.read())

    def test_end_of_a_function(self):
        self.apply('file a.c\nin function second\nend\n|     x();\n')
        self.assertIn('    return 0;\n    x();\n}\n', self.read())

    def test_struct(self):
        self.apply('file a.c\nin struct State\nafter int a;\n|     int n;\n')
        self.assertIn('    int a;\n    int n;\n    int b;\n', self.read())

    def test_qapi(self):
        self.apply("file sub/s.json\nin qapi Two\nbefore 'x'\n|   # c\n")
        self.assertIn("'Two',\n  # c\n  'data'", self.read('sub/s.json'))

    def test_from_narrows_to_what_follows(self):
        self.apply('file a.c\nfrom int second(int x,\nbefore unlock();\n| z\n')
        self.assertIn('{\nz\n    unlock();\n    return 0;', self.read())

    def test_scopes_nest(self):
        self.apply('file a.c\nin function first\nfrom lock(); }\n'
                   'after unlock();\n| z\n')
        self.assertIn('    unlock();\nz\n    return ret;', self.read())

    def test_a_space_matches_any_white_space(self):
        self.apply('file a.c\nafter int second(int x, int y) {\n| z\n')
        self.assertIn('           int y)\n{\nz\n', self.read())

    def test_an_anchor_is_no_regular_expression(self):
        self.fails('file a.c\nafter int .et;\n| z\n', '0 matches')

    def test_text_keeps_its_indentation_and_empty_lines(self):
        self.apply('file a.c\nafter #include "a.h"\n|\n|   x\n| |y\n')
        self.assertIn('"a.h"\n\n  x\n|y\n', self.read())

    def test_two_hooks_at_one_place_keep_their_order(self):
        self.apply('file a.c\nafter int ret;\n| one\n\n'
                   'file a.c\nafter int ret;\n| two\n')
        self.assertIn('    int ret;\none\ntwo\n', self.read())

    def test_the_last_line_without_a_newline(self):
        self.write(self.src, 'a.c', SOURCE + 'last')
        self.apply('file a.c\nafter last\n| z\n')
        self.assertTrue(self.read().endswith('z\n'))


class Faults(Tree):
    """Hooks that do not apply are named, and nothing is written."""

    def test_no_match(self):
        self.fails('file a.c\nafter nothing;\n| z\n', self.hook_file + ':1',
                   'a.c', "after 'nothing;': 0 matches")

    def test_two_matches_and_their_lines(self):
        self.fails('file a.c\nafter unlock();\n| z\n',
                   '2 matches (lines 12, 19)')

    def test_no_file(self):
        self.fails('file b.c\nafter x\n| z\n', 'b.c: no such file')

    def test_no_function(self):
        self.fails('file a.c\nin function third\nafter x\n| z\n',
                   'function third: 0 matches')

    def test_a_declaration_is_no_function(self):
        self.write(self.src, 'a.c', 'int third(int x);\n')
        self.write(self.dest, 'a.c', SOURCE)
        self.fails('file a.c\nin function third\nend\n| z\n', '0 matches')

    def test_an_anchor_outside_its_scope(self):
        self.fails('file a.c\nin function second\nafter return ret;\n| z\n',
                   '0 matches')

    def test_overlap(self):
        self.fails('file a.c\nreplace lock(); }\n| x\n\n'
                   'file a.c\nreplace } unlock(); return ret;\n| y\n',
                   'overlaps')

    def test_an_insertion_within_a_replacement(self):
        self.fails('file a.c\nreplace lock(); } unlock();\n| x\n\n'
                   'file a.c\nin function first\nbefore unlock();\n| y\n',
                   'overlaps')

    def test_every_failing_hook_is_named(self):
        self.fails('file a.c\nafter int ret;\n| good\n\n'
                   'file a.c\nafter no1\n| z\n\nfile a.c\nafter no2\n| z\n',
                   'test.hook:5', 'test.hook:9', '2 of 3 hooks')

    def test_no_tree(self):
        os.unlink(os.path.join(self.src, 'VERSION'))
        self.fails('file a.c\nafter int ret;\n| z\n', 'no QEMU source tree')


class Syntax(Tree):
    """A hook file that cannot be read."""

    def bad(self, text, where, what):
        self.fails(text, f'{self.hook_file}:{where}: ', what)

    def test_unknown_word(self):
        self.bad('file a.c\nbehind x\n| z\n', 2, "'behind x'")

    def test_unknown_scope(self):
        self.bad('file a.c\nin enum X\nafter x\n| z\n', 2, "'in enum X'")

    def test_no_place(self):
        self.bad('\nfile a.c\n| z\n', 2, 'a place')

    def test_no_text(self):
        self.bad('file a.c\nafter x\n', 1, "'|' lines")

    def test_two_places(self):
        self.bad('file a.c\nafter x\nbefore y\n| z\n', 3, 'both')

    def test_two_files(self):
        self.bad('file a.c\nfile b.c\nafter x\n| z\n', 2, "'file b.c'")

    def test_anchor_after_text(self):
        self.bad('file a.c\nafter x\n| z\nafter y\n', 4, 'after the text')

    def test_empty_anchor(self):
        self.bad('file a.c\nafter\n| z\n', 2, 'says nothing')

    def test_a_hook_is_in_one_file(self):
        self.bad('file a.c b.c\nafter x\n| z\n', 1, "'file a.c b.c'")

    def test_link_with_text(self):
        self.bad('link x\n| z\n', 1, 'stands alone')

    def test_end_without_scope(self):
        self.bad('file a.c\nend\n| z\n', 1, 'needs a scope')


class Rerun(Tree):
    """A second run"""

    HOOK = 'file a.c\nafter int ret;\n| z\n'

    def test_nothing_to_do_touches_nothing(self):
        self.assertGreater(self.apply(self.HOOK + '\nlink sub/new.h\n'), 0)
        path = os.path.join(self.dest, 'a.c')
        os.utime(path, (1, 1))
        self.assertEqual(self.apply(self.HOOK + '\nlink sub/new.h\n'), 0)
        self.assertEqual(os.stat(path).st_mtime, 1)

    def test_text_comes_from_the_pristine_file(self):
        self.apply(self.HOOK)
        self.apply(self.HOOK.replace('| z', '| y'))
        self.assertIn('int ret;\ny\n', self.read())
        self.assertNotIn('z\n', self.read())

    def test_a_file_no_longer_hooked_is_pristine_again(self):
        self.apply(self.HOOK)
        self.apply("file sub/s.json\nin qapi Two\nbefore 'x'\n| c\n")
        self.assertEqual(self.read(), SOURCE)

    def test_the_pristine_tree_stays(self):
        self.apply(self.HOOK)
        self.assertEqual(integrate.read(os.path.join(self.src, 'a.c')), SOURCE)

    def test_links_lead_to_gmem(self):
        self.apply('link top.h\nlink sub/new.h\n')
        for name, target in (('top.h', 'gmem/top.h'),
                             ('sub/new.h', '../gmem/sub/new.h')):
            self.assertEqual(os.readlink(os.path.join(self.dest, name)),
                             target)

    def test_a_link_no_longer_wanted_goes(self):
        self.apply('link sub/new.h\n')
        self.apply(self.HOOK)
        self.assertFalse(os.path.lexists(os.path.join(self.dest, 'sub/new.h')))


class Changed(Tree):
    """Differences around hooks, in src and dest"""

    def changed(self, text):
        return list(integrate.changed(self.dest, self.src, self.hooks(text)))

    def test_the_scope_of_a_hook_that_still_applies(self):
        self.write(self.src, 'a.c', SOURCE.replace('lock();', 'lock2();', 1))
        lines = self.changed('file a.c\nin function first\nend\n| z\n')
        self.assertIn('-        lock();', lines)
        self.assertIn('+        lock2();', lines)
        self.assertIn(f'+++ {self.src}/a.c: function first', lines)

    def test_nothing_else(self):
        self.write(self.src, 'a.c', SOURCE.replace('lock();', 'lock2();', 1))
        self.assertEqual(self.changed(
            'file a.c\nin function second\nend\n| z\n\n'
            'file a.c\nafter #include "a.h"\n| z\n\nlink x\n'), [])

    def test_a_scope_is_shown_once(self):
        self.write(self.src, 'a.c', SOURCE.replace('lock();', 'lock2();', 1))
        lines = self.changed('file a.c\nin function first\nend\n| z\n\n'
                             'file a.c\nin function first\nend\n| y\n')
        self.assertEqual(lines.count('+        lock2();'), 1)

    def test_from_reaches_to_the_anchor(self):
        self.write(self.src, 'a.c', SOURCE.replace('return 0;', 'return 1;'))
        hook = 'file a.c\nfrom int second(int x,\nafter {}\n| z\n'
        self.assertEqual(self.changed(hook.format('unlock();')), [])
        self.assertTrue(self.changed(hook.format('return')))

    def test_a_scope_that_is_gone(self):
        self.write(self.src, 'a.c', SOURCE.replace('second', 'third'))
        lines = self.changed('file a.c\nin function second\nend\n| z\n')
        self.assertIn('+function second: 0 matches, need exactly 1', lines)
        os.unlink(os.path.join(self.src, 'a.c'))
        lines = self.changed('file a.c\nin function second\nend\n| z\n')
        self.assertIn('+no such file', lines)


class CommandLine(Tree):
    """The program."""

    def run_tool(self, *args):
        return subprocess.run([sys.executable, TOOL, *args], text=True,
                              capture_output=True, check=False)

    def test_check_writes_nothing(self):
        self.hooks(Rerun.HOOK)
        done = self.run_tool('check', self.src, self.hook_file)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('1 hooks in 1 hook files apply', done.stdout)
        self.assertEqual(integrate.read(os.path.join(self.src, 'a.c')), SOURCE)

    def test_apply(self):
        self.hooks(Rerun.HOOK)
        done = self.run_tool('apply', self.src, self.dest, self.hook_file)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('int ret;\nz\n', self.read())

    def test_failure_is_status_1_and_no_backtrace(self):
        self.hooks('file a.c\nafter nothing\n| z\n')
        done = self.run_tool('check', self.src, self.hook_file)
        self.assertEqual(done.returncode, 1)
        self.assertNotIn('Traceback', done.stderr)
        done = self.run_tool('check', self.src, '/nowhere.hook')
        self.assertEqual(done.returncode, 1)
        self.assertNotIn('Traceback', done.stderr)

    def test_changed(self):
        self.hooks('file a.c\nin function first\nend\n| z\n')
        self.write(self.src, 'a.c', SOURCE.replace('lock();', 'lock2();', 1))
        done = self.run_tool('changed', self.dest, self.src, self.hook_file)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('+        lock2();', done.stdout)

    def test_usage(self):
        self.assertEqual(self.run_tool().returncode, 2)
        self.assertEqual(self.run_tool('apply', 'x', 'y').returncode, 2)
        self.assertEqual(self.run_tool('changed', 'x', 'y').returncode, 2)
        self.assertEqual(self.run_tool('list', 'x', 'y').returncode, 2)


if __name__ == '__main__':
    unittest.main()
