#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Put this project's hooks into a copy of pristine QEMU sources.

    integrate.py check SRC HOOKFILE...          do all hooks apply to SRC?
    integrate.py apply SRC DEST HOOKFILE...     make DEST, a copy of SRC, so
    integrate.py changed OLD NEW HOOKFILE...    what differs around the hooks?

A hook file is a list of stanzas, separated by blank lines.  '#' starts a
comment line.  A stanza either changes a file of QEMU's:

    file accel/kvm/kvm-all.c
    in function kvm_region_commit   search there only
    before kvm_slots_unlock();      or: after, replace, end
    | text to insert, a line each

or puts a file of ours in its place there, by a link to gmem/PATH:

    link qapi/guest-memfd.json

Scopes are 'in function NAME', 'in struct NAME', 'in qapi NAME' (a definition
in a QAPI schema) and 'from TEXT' (what follows TEXT); several narrow the
search one after the other.  In TEXT and anchors a space matches any white
space, everything else matches itself.  'before' and 'after' insert whole
lines before or after the lines in which the anchor stands; 'replace'
replaces the anchor itself; 'end' inserts at the end of the scope.

Every scope and anchor must match exactly once in SRC.  If one does not,
nothing is written and every hook that fails is named.  So a hook file is for
one version of QEMU: where another one differs, the hook is changed.  'changed'
shows the scopes of hooks that differ in OLD and NEW: a hook in one of these may
apply and be wrong.
"""
import difflib
import json
import os
import re
import sys

MANIFEST = '.gmem-integrated.json'
SCOPES = ('function', 'struct', 'qapi')
PLACES = ('before', 'after', 'replace')


class HookError(Exception):
    """A hook that cannot be read, or does not apply."""


class Hook:
    """One stanza; @at is FILE:LINE of its first line."""

    def __init__(self, at):
        self.at = at
        self.file = None
        self.links = []
        self.scopes = []
        self.place = self.anchor = None
        self.text = []

    def add_line(self, line):
        """Take one line of the stanza."""
        if line.startswith('|'):
            self.text.append(line[2:] if line.startswith('| ') else line[1:])
            return
        word, _, rest = line.partition(' ')
        rest = rest.strip()
        if self.text:
            raise HookError(f'{word!r} after the text to insert')
        if word == 'end' and not rest:
            self.place = word
            return
        if not rest:
            raise HookError(f'{word!r} says nothing')
        if word == 'file' and not self.file and ' ' not in rest:
            self.file = rest
        elif word == 'link':
            self.links += rest.split()
        elif word == 'in' and rest.split()[0] in SCOPES and ' ' in rest:
            self.scopes.append(tuple(rest.split(None, 1)))
        elif word == 'from':
            self.scopes.append(('from', rest))
        elif word in PLACES:
            if self.place:
                raise HookError(f'both {self.place!r} and {word!r}')
            self.place, self.anchor = word, rest
        else:
            raise HookError(f'what is {line!r}?')

    def check(self):
        """Is the stanza complete?"""
        if self.links and (self.file or self.place or self.text):
            raise HookError("'link' stands alone")
        if not self.links and not (self.file and self.place and self.text):
            raise HookError("a hook needs 'file', a place and '|' lines")
        if self.place == 'end' and not self.scopes:
            raise HookError("'end' needs a scope")


def parse(path):
    """The hooks in a hook file."""
    hooks, hook = [], None
    with open(path, encoding='utf-8') as f:
        for number, line in enumerate(f, 1):
            line = line.rstrip()
            at = f'{path}:{number}'
            try:
                if not line:
                    if hook:
                        hook.check()
                    hook = None
                elif not line.startswith('#'):
                    if not hook:
                        hook = Hook(at)
                        hooks.append(hook)
                    hook.add_line(line)
            except HookError as e:
                raise HookError(f'{at}: {e}') from e
    try:
        if hook:
            hook.check()
    except HookError as e:
        raise HookError(f'{hook.at}: {e}') from e
    return hooks


def pattern(anchor):
    """A regular expression for the text of an anchor."""
    return r'\s+'.join(re.escape(word) for word in anchor.split())


def find_once(text, regex, lo, hi, what):
    """The only match of @regex in text[lo:hi]."""
    found = list(re.compile(regex, re.M).finditer(text, lo, hi))
    if len(found) != 1:
        lines = ', '.join(str(text.count('\n', 0, m.start()) + 1)
                          for m in found)
        raise HookError(f'{what}: {len(found)} matches'
                        + (f' (lines {lines})' if lines else '')
                        + ', need exactly 1')
    return found[0]


def find_scope(text, kind, name, lo, hi):
    """(start, end) of what a scope encloses, within text[lo:hi]."""
    what = f'{kind} {name}'
    if kind == 'from':
        return find_once(text, pattern(name), lo, hi, what).end(), hi
    n = re.escape(name)
    if kind == 'function':
        # A definition opens and closes in column 0; a declaration does not.
        head = r'^(?:\w[^;{}()=#\n]*[\s*])?' + n + r'\([^;{}]*\)\s*^\{$'
        tail = r'^\}'
    elif kind == 'struct':
        head = r'^(?:typedef )?struct ' + n + r'\s*\{$'
        tail = r'^\}'
    else:
        head = r"^\{ '\w+': '" + n + r"'"
        tail = r'\}$(?=\n(?:\n|\Z))'
    start = find_once(text, head, lo, hi, what)
    end = re.compile(tail, re.M).search(text, start.end(), hi)
    if not end:
        raise HookError(f'{what}: no end')
    return start.end(), end.start()


def enclosing(text, hook):
    """(start, end) of where @hook searches."""
    lo, hi = 0, len(text)
    for kind, name in hook.scopes:
        lo, hi = find_scope(text, kind, name, lo, hi)
    return lo, hi


def locate(text, hook):
    """(start, end, new): the edit that @hook makes in @text."""
    lo, hi = enclosing(text, hook)
    lines = '\n'.join(hook.text)
    if hook.place == 'end':
        return hi, hi, lines + '\n'
    match = find_once(text, pattern(hook.anchor), lo, hi,
                      f'{hook.place} {hook.anchor!r}')
    if hook.place == 'replace':
        return match.start(), match.end(), lines
    if hook.place == 'before':
        at = text.rfind('\n', 0, match.start()) + 1
    else:
        at = text.find('\n', match.end() - 1) + 1 or len(text)
    return at, at, lines + '\n'


def edit(text, edits):
    """@text with (start, end, new) edits; those at one place keep order."""
    out, done = [], 0
    for start, end, new in sorted(edits, key=lambda e: e[:2]):
        out += text[done:start], new
        done = end
    return ''.join(out) + text[done:]


def overlapping(edits):
    """Does an edit reach into another?"""
    ordered = sorted(edits, key=lambda e: e[:2])
    return any(a[1] > b[0] for a, b in zip(ordered, ordered[1:]))


def read(path):
    """Text of a file; None if there is none."""
    try:
        with open(path, encoding='utf-8') as f:
            return f.read()
    except FileNotFoundError:
        return None


def plan(src, hooks):
    """({file: its new text}, [links]); or HookError that names all faults."""
    if read(os.path.join(src, 'VERSION')) is None:
        raise HookError(f'{src} is no QEMU source tree: it has no VERSION')
    texts, edits, links, errors = {}, {}, [], []
    for hook in hooks:
        if hook.links:
            links += hook.links
            continue
        name = hook.file
        try:
            if name not in texts:
                texts[name] = read(os.path.join(src, name))
            if texts[name] is None:
                raise HookError('no such file')
            new = locate(texts[name], hook)
            if overlapping(edits.get(name, []) + [new]):
                raise HookError('overlaps another hook')
            edits.setdefault(name, []).append(new)
        except HookError as e:
            errors.append(f'{hook.at}: {name}: {e}')
    if errors:
        raise HookError('\n'.join(errors) + f'\n{len(errors)} of {len(hooks)} '
                        f'hooks do not apply to {src}; nothing written')
    return {n: edit(texts[n], edits[n]) for n in edits}, links


def write_if_changed(path, text):
    """Write @text unless it is there already; time stamps matter to ninja."""
    if read(path) == text:
        return 0
    temp = path + '.gmem-new'
    with open(temp, 'w', encoding='utf-8') as f:
        f.write(text)
    os.replace(temp, path)
    return 1


def link_target(link):
    """From where the link stands to our file, which is below gmem/."""
    return os.path.join('../' * link.count('/'), 'gmem', link)


def apply(src, dest, hooks):
    """Make @dest what @src is with @hooks.  Returns what was written."""
    texts, links = plan(src, hooks)
    manifest = os.path.join(dest, MANIFEST)
    before = json.loads(read(manifest) or '{"files": [], "links": []}')
    wrote = 0
    for link in set(before['links']) - set(links):
        os.unlink(os.path.join(dest, link))
        wrote += 1
    for name in set(before['files']) - set(texts):
        wrote += write_if_changed(os.path.join(dest, name),
                                  read(os.path.join(src, name)))
    for link in links:
        path = os.path.join(dest, link)
        if not os.path.islink(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(link_target(link), path)
            wrote += 1
    for name, text in texts.items():
        wrote += write_if_changed(os.path.join(dest, name), text)
    write_if_changed(manifest, json.dumps({'files': sorted(texts),
                                           'links': sorted(links)}) + '\n')
    return wrote


def around(tree, hook):
    """The lines in which @hook searches, or why there are none."""
    text = read(os.path.join(tree, hook.file))
    if text is None:
        return ['no such file']
    try:
        lo, hi = enclosing(text, hook)
        if hook.scopes[-1][0] == 'from':    # it has no end of its own
            hi = locate(text, hook)[1]
    except HookError as e:
        return [str(e)]
    return text[lo:hi].splitlines()


def changed(old, new, hooks):
    """Differences between two trees in the scopes of @hooks."""
    scopes = {}
    for hook in hooks:
        if hook.scopes:
            scopes.setdefault((hook.file, *hook.scopes), hook)
    for hook in scopes.values():
        names = [f'{tree}/{hook.file}: {" ".join(hook.scopes[-1])}'
                 for tree in (old, new)]
        yield from difflib.unified_diff(around(old, hook), around(new, hook),
                                        *names, n=5, lineterm='')


def main(argv):
    """Returns the exit status."""
    trees = {'check': 1, 'apply': 2, 'changed': 2}.get(argv[0] if argv else '')
    if not trees or len(argv) < trees + 2:
        print(__doc__, file=sys.stderr)
        return 2
    paths = argv[trees + 1:]
    try:
        hooks = [hook for path in paths for hook in parse(path)]
        if argv[0] == 'check':
            texts, links = plan(argv[1], hooks)
            print(f'{len(hooks)} hooks in {len(paths)} hook files apply to '
                  f'{argv[1]}: {len(texts)} files, {len(links)} links')
        elif argv[0] == 'changed':
            print(*changed(argv[1], argv[2], hooks), sep='\n')
        else:
            print(f'{apply(argv[1], argv[2], hooks)} files written')
    except (HookError, OSError) as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
