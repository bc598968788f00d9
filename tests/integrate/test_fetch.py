#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit tests of scripts/fetch: wrong sources are refused."""
import functools
import hashlib
import http.server
import io
import os
import subprocess
import tarfile
import tempfile
import threading
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
NAME = 'qemu_1.2.3.tar.xz'


def make_tarball(version='1.2.3'):
    """A tarball, as bytes, whose only file is VERSION."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:xz') as tar:
        member = tarfile.TarInfo('qemu/VERSION')
        content = (version + '\n').encode()
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory; files below /cut/ break off half-way."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append(self.path)
        if not self.path.startswith('/cut/'):
            super().do_GET()
            return
        self.send_response(200)
        self.send_header('Content-Length', '1000000')
        self.end_headers()
        self.wfile.write(b'x' * 1000)
        self.close_connection = True


class Fetch(unittest.TestCase):
    """The table is one of our own, and names a server of ours."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = directory.name
        self.build = os.path.join(self.dir, 'build')
        self.env = {'PATH': os.environ['PATH'], 'BUILD': self.build,
                    'QEMU_SOURCES': os.path.join(self.dir, 'table')}
        self.tarball = make_tarball()
        self.apt()

        os.mkdir(os.path.join(self.dir, 'www'))
        self.server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), functools.partial(
                Handler, directory=os.path.join(self.dir, 'www')))
        self.server.requests = []
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        thread = threading.Thread(target=self.server.serve_forever,
                                  args=(0.02,))
        thread.start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(self.server.shutdown)

    def write(self, name, data):
        """Writes a file of the test's directory; returns its path."""
        path = os.path.join(self.dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as f:
            f.write(data)
        return path

    def apt(self, sources=None):
        """Configures an apt without lists, with these sources."""
        config = (f'Dir::State::Lists "{self.dir}/lists";'
                  f'Dir::Cache "{self.dir}/cache"; Acquire::Retries 0;'
                  'APT::Sandbox::User "root";')
        if sources is not None:
            path = self.write('sources.list', sources.encode())
            config += (f'Dir::Etc::SourceList "{path}";'
                       'Dir::Etc::SourceParts "-";')
        self.env['APT_CONFIG'] = self.write('apt.conf', config.encode())

    def rows(self, *urls, name=NAME):
        """A table with these URLs for version 1.2.3."""
        self.write('table', ''.join(
            f'{row}\n' for row in
            ['# version, name, hash, URL',
             '1.2.2 other.tar.xz ' + '0' * 64 + ' http://localhost/'] +
            [f'1.2.3 {name} {sha256(self.tarball)} {url}'
             for url in urls]).encode())

    def fetch(self, *args, status=0, **env):
        """Runs scripts/fetch; returns its output."""
        done = subprocess.run(
            [os.path.join(ROOT, 'scripts', 'fetch'), *args, '1.2.3'],
            env={**self.env, **env}, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        self.assertEqual(done.returncode, status, done.stdout)
        return done.stdout

    def fails(self, *args, **env):
        """The same; it fails, and leaves no file."""
        output = self.fetch(*args, status=1, **env)
        self.assertIsNone(self.version())
        self.assertEqual(self.downloads(), [])
        self.assertNotIn('unpacking', output)
        return output

    def version(self):
        """The version that is in BUILD/pristine, or None."""
        try:
            with open(os.path.join(self.build, 'pristine', 'VERSION'),
                      encoding='utf-8') as f:
                return f.read().strip()
        except FileNotFoundError:
            return None

    def downloads(self):
        """Files that fetch has left among the downloads, but for its log."""
        return [name for name in
                os.listdir(os.path.join(self.build, 'downloads'))
                if name != 'fetch.log']

    def test_a_download_is_unpacked_and_kept(self):
        self.write('www/file', self.tarball)
        self.rows(self.url + '/file')
        output = self.fetch()
        self.assertEqual(self.version(), '1.2.3')
        self.assertEqual(self.downloads(), [NAME])
        self.assertLess(output.index(self.url + '/file'),
                        output.index('unpacking'))

    def test_sources_that_are_there_are_not_fetched_again(self):
        self.write('www/file', self.tarball)
        self.rows(self.url + '/file')
        self.fetch()
        self.assertEqual(self.fetch(), '')
        os.remove(os.path.join(self.build, 'pristine', 'VERSION'))
        self.fetch()
        self.assertEqual(self.version(), '1.2.3')
        self.assertEqual(self.server.requests, ['/file'])

    def test_another_version_is_replaced(self):
        self.write('build/pristine/VERSION', b'1.2.2\n')
        self.write('build/pristine/old', b'')
        self.write('www/file', self.tarball)
        self.rows(self.url + '/file')
        self.fetch()
        self.assertEqual(self.version(), '1.2.3')
        self.assertFalse(os.path.exists(
            os.path.join(self.build, 'pristine', 'old')))

    def test_the_mirror_is_the_one_that_apt_is_configured_with(self):
        self.write('www/debian/pool/q/' + NAME, self.tarball)
        self.rows('MIRROR/pool/q/' + NAME)
        self.apt(
            'deb http://other.invalid/node x main\n'
            f'deb {self.url}/debian x main\n'
            'deb http://security.invalid/debian-security x-security main\n')
        self.fetch()
        self.assertEqual(self.version(), '1.2.3')

    def test_an_archive_is_known_by_its_lists(self):
        packages = b'Package: x\nVersion: 1\nArchitecture: all\n'
        for name, label in (('debian', 'Debian-Security'), ('ftp', 'Debian')):
            dist = f'www/{name}/dists/x/'
            self.write(dist + 'main/binary-amd64/Packages', packages)
            self.write(dist + 'Release', (
                f'Origin: Debian\nLabel: {label}\nCodename: x\n'
                'Date: Sat, 01 Jan 2000 00:00:00 UTC\n'
                'Components: main\nArchitectures: amd64\nSHA256:\n'
                f' {sha256(packages)} {len(packages)} '
                'main/binary-amd64/Packages\n').encode())
        self.write('www/ftp/pool/q/' + NAME, self.tarball)
        self.rows('MIRROR/pool/q/' + NAME)
        self.apt(f'deb [arch=amd64 trusted=yes] {self.url}/debian x main\n'
                 f'deb [arch=amd64 trusted=yes] {self.url}/ftp x main\n')
        os.makedirs(os.path.join(self.dir, 'lists', 'partial'))
        subprocess.run(['apt-get', '-q', 'update'], check=True,
                       env=self.env, stdout=subprocess.DEVNULL)
        self.fetch()
        self.assertEqual(self.version(), '1.2.3')

    def test_the_environment_may_name_another_mirror(self):
        self.write('www/m/pool/' + NAME, self.tarball)
        self.rows('MIRROR/pool/' + NAME)
        self.fetch(DEBIAN_MIRROR=self.url + '/m/')
        self.assertEqual(self.server.requests, ['/m/pool/' + NAME])

    def test_no_mirror_is_a_reason_among_others(self):
        self.apt('')
        self.rows('MIRROR/pool/' + NAME, self.url + '/none')
        output = self.fails()
        self.assertRegex(output, 'MIRROR/pool.*: .*set DEBIAN_MIRROR')
        self.assertIn('/none: 404', output)

    def test_places_are_tried_in_order(self):
        self.write('www/right', self.tarball)
        self.write('www/late', self.tarball)
        self.rows(self.url + '/none', self.url + '/right', self.url + '/late')
        self.fetch()
        self.assertEqual(self.server.requests, ['/none', '/right'])

    def test_a_wrong_hash_leads_to_the_next_place(self):
        self.write('www/wrong', make_tarball('6.6.6'))
        self.write('www/right', self.tarball)
        self.rows(self.url + '/wrong', self.url + '/right')
        self.fetch()
        self.assertEqual(self.version(), '1.2.3')

    def test_the_error_names_every_place_and_its_reason(self):
        wrong = make_tarball('6.6.6')
        self.write('www/wrong', wrong)
        self.rows(self.url + '/none', 'http://127.0.0.1:1/closed',
                  'file:///nowhere/file', self.url + '/wrong')
        output = self.fails(QEMU_TARBALLS='/nowhere')
        for line in (f'/nowhere/{NAME}: there is no such file',
                     f'{self.url}/none: 404',
                     f'{self.url}/wrong: its SHA-256 is {sha256(wrong)}, '
                     f'not {sha256(self.tarball)}',
                     'http://127.0.0.1:1/closed: Could not connect',
                     'file:///nowhere/file: there is no such file',
                     f'{NAME}, SHA-256 {sha256(self.tarball)}'):
            self.assertIn('\n  ' + line, output)

    def test_an_unknown_version_is_an_error(self):
        self.write('table', b'# nothing\n')
        self.assertIn('knows no tarball of QEMU 1.2.3', self.fails())

    def test_a_download_that_breaks_off_is_not_taken(self):
        self.write('www/right', self.tarball)
        self.rows(self.url + '/cut/file')
        self.fails()
        self.rows(self.url + '/cut/file', self.url + '/right')
        self.fetch()
        self.assertEqual(self.version(), '1.2.3')

    def test_files_of_an_interrupted_run_are_not_taken(self):
        self.write(f'build/downloads/{NAME}.part', b'half a file')
        self.write(f'build/downloads/{NAME}', b'half a file')
        self.write('build/pristine.new/VERSION', b'1.2.3\n')
        self.rows(self.url + '/none')
        self.fails()

    def test_a_broken_file_among_the_downloads_is_replaced(self):
        path = self.write('build/downloads/' + NAME, b'half a file')
        self.write('www/file', self.tarball)
        self.rows(self.url + '/file')
        self.fetch()
        with open(path, 'rb') as f:
            self.assertEqual(f.read(), self.tarball)

    def test_a_directory_of_tarballs_comes_first(self):
        self.write('tarballs/' + NAME, self.tarball)
        self.rows(self.url + '/file')
        self.fetch(QEMU_TARBALLS=os.path.join(self.dir, 'tarballs'))
        self.assertEqual(self.version(), '1.2.3')
        self.assertEqual(self.server.requests, [])

    def test_a_wrong_file_in_the_directory_is_left_alone(self):
        path = self.write('tarballs/' + NAME, b'somebody needs it')
        self.write('www/file', self.tarball)
        self.rows(self.url + '/file')
        self.fetch(QEMU_TARBALLS=os.path.dirname(path))
        self.assertEqual(self.version(), '1.2.3')
        self.assertTrue(os.path.exists(path))

    def test_a_tarball_that_is_named_is_the_only_one_tried(self):
        right = self.write('right', self.tarball)
        wrong = self.write('wrong', make_tarball('6.6.6'))
        self.write('www/file', self.tarball)
        self.rows(self.url + '/file')
        output = self.fails('--tarball', wrong)
        self.assertIn(f'{wrong}: its SHA-256 is', output)
        self.assertEqual(self.server.requests, [])
        self.fetch('--tarball', right)
        self.assertEqual(self.version(), '1.2.3')

    def test_a_tarball_of_another_version_is_an_error(self):
        self.tarball = make_tarball('6.6.6')
        path = self.write('tarball', self.tarball)
        self.rows('file://' + path)
        self.assertIn('holds QEMU 6.6.6', self.fetch(status=1))
        self.assertIsNone(self.version())

    def test_a_tarball_that_cannot_be_unpacked_leaves_nothing(self):
        self.tarball = b'no tarball at all'
        path = self.write('tarball', self.tarball)
        self.rows('file://' + path)
        self.assertIn('cannot unpack', self.fetch(status=1))
        self.assertIsNone(self.version())

    def test_our_own_table_has_the_version_that_configure_wants(self):
        with open(os.path.join(ROOT, 'configure'), encoding='utf-8') as f:
            known = [line.strip().split('=')[1] for line in f
                     if line.startswith('known=')]
        with open(os.path.join(ROOT, 'scripts', 'qemu-sources'),
                  encoding='utf-8') as f:
            rows = [line.split() for line in f if line[0] != '#']
        self.assertIn(known[0], [row[0] for row in rows])
        for row in rows:
            self.assertEqual(len(row), 4)
            self.assertRegex(row[2], '^[0-9a-f]{64}$')


if __name__ == '__main__':
    unittest.main()
