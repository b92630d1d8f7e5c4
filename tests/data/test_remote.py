import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from shards_for_tests import write_dataset

from imago.trainer.data import commands, sources
from imago.trainer.data.shards import Dataset, SampleReader, ShardError, open_dataset

FIRST, SECOND = 'shard-00000.tar', 'shard-00001.tar'


@dataclass
class Server:
    """An HTTP server on a dataset. `trouble[file]` lists how the next requests for the file fail; later requests succeed."""

    url: str
    trouble: dict[str, list[str]] = field(default_factory=dict)
    requests: Counter = field(default_factory=Counter)


class Handler(SimpleHTTPRequestHandler):
    server_state: Server

    def do_GET(self):
        name = self.path.lstrip('/')
        self.server_state.requests[name] += 1
        waiting = self.server_state.trouble.get(name)
        trouble = waiting.pop(0) if waiting else None
        if trouble is None:
            return super().do_GET()
        if trouble.isdigit():
            return self.send_error(int(trouble))
        body = Path(self.directory, name).read_bytes()
        self.send_response(200)
        if trouble == 'dropped':                        # the connection breaks in mid-body
            self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        while trouble == 'endless':                     # the body goes on until nobody reads any more
            try:
                self.wfile.write(body)
            except OSError:
                return self.server_state.requests.update(hung_up=1)
        self.wfile.write(bytes(len(body)) if trouble == 'garbled' else body[:len(body) // 2])
        self.close_connection = True

    def log_message(self, format: str, *args: str) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp('data') / 'packed', (5, 4, 6, 3), size=32)


@pytest.fixture
def server(folder, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv('no_proxy', '*')
    handler = type('StatefulHandler', (Handler,), {})
    http = ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=folder))
    handler.server_state = Server(f'http://127.0.0.1:{http.server_port}')
    thread = threading.Thread(target=http.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield handler.server_state
    http.shutdown()
    thread.join()
    http.server_close()


def fetch(dataset: Dataset, number: int) -> bytes:
    with dataset.open(dataset.manifest.shards[number]) as file:
        return file.read()


def cached(cache: Path) -> set[str]:
    return {path.stem for path in cache.glob('*.tar')}


def test_a_server_in_trouble_is_asked_again(server, folder, tmp_path, monkeypatch):
    delays = []
    monkeypatch.setattr('time.sleep', delays.append)
    server.trouble = {'dataset.json': ['503', 'dropped'], FIRST: ['dropped', '500', 'cut short', 'garbled', '429']}
    dataset = open_dataset(f'{server.url}/dataset.json', cache_dir=tmp_path, attempts=6, retry_delay=0.5)
    assert dataset.manifest == open_dataset(folder).manifest
    assert fetch(dataset, 0) == (folder / FIRST).read_bytes()
    assert server.requests == {'dataset.json': 3, FIRST: 6}
    assert delays == [0.5, 1, 0.5, 1, 2, 4, 8]


@pytest.mark.parametrize('trouble, cause', [
    ('500', '500'), ('dropped', 'broke off'), ('cut short', 'bytes came, the manifest says'), ('garbled', 'SHA-256'),
    ('endless', 'more than [0-9]+ bytes came')])
def test_a_server_that_never_recovers_is_an_error_that_names_shard_and_cause(server, tmp_path, trouble, cause):
    dataset = open_dataset(server.url, cache_dir=tmp_path, attempts=3, retry_delay=0)
    server.trouble = {SECOND: [trouble] * 9}
    with pytest.raises(ShardError, match=f'{SECOND} cannot be read from {server.url}.*3 of 3.*{cause}'):
        fetch(dataset, 1)
    assert server.requests[SECOND] == 3
    assert cached(tmp_path) == set()
    assert all(path.stat().st_size <= dataset.manifest.shards[1].bytes for path in tmp_path.iterdir())


def test_a_manifest_that_never_ends_is_read_up_to_a_limit(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'MOST_TEXT', 100_000)
    server.trouble = {'dataset.json': ['endless'] * 9}
    with pytest.raises(ShardError, match='dataset.json cannot be read .*2 of 2.*more than 100000 bytes came'):
        open_dataset(server.url, cache_dir=tmp_path, attempts=2, retry_delay=0)
    with pytest.raises(ShardError, match='more than 100000 bytes came'):
        open_dataset('pipe:yes; echo {}', cache_dir=tmp_path, attempts=2, retry_delay=0)


def test_what_is_not_there_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(ShardError, match='dataset.json cannot be read from .*1 of 6.*404'):
        open_dataset(f'{server.url}/elsewhere', cache_dir=tmp_path)
    server.trouble = {'dataset.json': ['dropped'] * 2}
    with pytest.raises(ShardError, match='dataset.json cannot be read .*2 of 2'):
        open_dataset(server.url, cache_dir=tmp_path, attempts=2, retry_delay=0)


def test_cached_shards_need_no_network_but_must_have_the_manifests_content(server, folder, tmp_path):
    dataset = open_dataset(server.url, cache_dir=tmp_path, attempts=1)
    content = fetch(dataset, 0)
    server.trouble = {FIRST: ['500'] * 9}
    assert fetch(dataset, 0) == content
    packed_again = replace(dataset.manifest.shards[0], sha256='0' * 64)
    with pytest.raises(ShardError, match=f'{FIRST} .*500'):
        dataset.open(packed_again)


def test_the_cache_drops_the_least_recently_used_beyond_its_limit(server, folder, tmp_path):
    sizes = [(folder / f'shard-{i:05d}.tar').stat().st_size for i in range(4)]
    dataset = open_dataset(server.url, cache_dir=tmp_path, cache_gb=sum(sizes[1:]) / 1e9)
    hashes = [shard.sha256 for shard in dataset.manifest.shards]
    held = dataset.open(dataset.manifest.shards[0])
    for number in (1, 0, 2):
        for path in tmp_path.glob('*.tar'):  # an hour passes
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 3600 * 10**9))
        fetch(dataset, number)
    assert sizes[0] + sizes[1] + sizes[2] > sum(sizes[1:]) >= sizes[0] + sizes[2]
    assert cached(tmp_path) == {hashes[0], hashes[2]}
    tiny = open_dataset(server.url, cache_dir=tmp_path, cache_gb=1e-9)
    assert fetch(tiny, 3) == (folder / 'shard-00003.tar').read_bytes()
    assert cached(tmp_path) == {hashes[3]}
    assert held.read() == (folder / FIRST).read_bytes()
    held.close()


def fetch_all(dataset: Dataset, barrier) -> None:
    for number in range(4):
        barrier.wait()
        fetch(dataset, number)


def test_processes_that_want_the_same_shard_fetch_it_once(server, tmp_path):
    dataset = open_dataset(server.url, cache_dir=tmp_path, attempts=1)
    context = multiprocessing.get_context('spawn')
    barrier = context.Barrier(2, timeout=60)
    processes = [context.Process(target=fetch_all, args=(dataset, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.requests == {'dataset.json': 1} | {f'shard-{i:05d}.tar': 1 for i in range(4)}


def test_a_command_is_a_source_too(folder, tmp_path):
    odd = shutil.copytree(folder, tmp_path / "it's; exit 1")
    dataset = open_dataset(f'pipe:cat "{odd}"/{{}}', cache_dir=tmp_path / 'cache')
    sample, damaged = SampleReader(dataset, (32, 32), max_open=1).read(1, 2)
    assert (sample.key, damaged) == ('000000007', [])


def test_a_command_that_fails_or_stops_early_is_an_error(folder, tmp_path):
    settings = dict(cache_dir=tmp_path, attempts=2, retry_delay=0)
    for command, why in ('exit 3; {}', 'ended with exit status 3'), ('kill -9 $$; {}', 'signal 9 ended the command'):
        with pytest.raises(ShardError, match=f'dataset.json cannot be read from pipe:.*2 of 2.*{why}'):
            open_dataset(f'pipe:{command}', **settings)
    dataset = open_dataset(f'pipe:head -c 3000 {folder}/{{}}', **settings)
    with pytest.raises(ShardError, match=f'{FIRST} .*3000 bytes came'):
        fetch(dataset, 0)


@pytest.mark.parametrize('command, why', [
    ('echo $$ > {pids}; sleep 600 & echo $! >> {pids}; wait; echo {{}}', 'no byte came for 0.2 seconds'),
    ('echo $$ > {pids}; exec >&-; sleep 600 & echo $! >> {pids}; wait; echo {{}}', 'did not end within 0.2 seconds')])
def test_a_command_that_hangs_is_killed_with_all_that_it_started(tmp_path, monkeypatch, command, why):
    monkeypatch.setattr(commands, 'SILENCE', 0.2)
    command = command.format(pids=tmp_path / 'pids')
    with pytest.raises(ShardError, match=f'dataset.json cannot be read .*: .*{why}'):
        open_dataset(f'pipe:{command}', cache_dir=tmp_path, attempts=1)
    pids = [int(pid) for pid in (tmp_path / 'pids').read_text().split()]
    assert len(pids) == 2 and all(wait_for_end(pid) for pid in pids)


def wait_for_end(pid: int) -> bool:
    """Wait until a killed process is gone: one that is not a child of this one may take a moment."""
    _, alive = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=60)
    return not alive


@pytest.mark.parametrize('location, argument', [('gs://bucket/some/folder', 'gs://bucket/some/folder/dataset.json'),
                                                ('gs://bucket/', 'gs://bucket/dataset.json')])
def test_buckets_are_read_by_gsutil_without_a_shell(folder, tmp_path, monkeypatch, location, argument):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ShardError, match=r"1 of 6.*No such file.*'gsutil'"):
        open_dataset(location, cache_dir=tmp_path)
    program = tmp_path / 'gsutil'
    program.write_text(f'#!/bin/sh\n[ "$1" = cat ] && [ $# = 2 ] && [ "$2" = {argument} ] '
                       f'&& exec /bin/cat {folder}/dataset.json\n')
    program.chmod(0o755)
    assert open_dataset(location, cache_dir=tmp_path).manifest == open_dataset(folder).manifest


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no readable dataset.json; make one with: imago pack SOURCE'):
        open_dataset(tmp_path)


@pytest.mark.parametrize('name', ['dataset.json', FIRST])
@pytest.mark.parametrize('put', [os.mkfifo, partial(os.symlink, '/dev/zero'), os.mkdir], ids=['pipe', 'device', 'folder'])
def test_only_regular_files_are_opened(folder, tmp_path, name, put):
    copy = shutil.copytree(folder, tmp_path / 'copy')
    (copy / name).unlink()
    put(copy / name)
    with pytest.raises((ValueError, ShardError), match=f'{name}.* is not a regular file|{name}.*Is a directory'):
        fetch(open_dataset(copy), 0)


def test_a_cache_that_cannot_be_written_is_found_out_at_once(server, tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere' / 'else')
    for folder in ('/dev/null', '/proc', '/proc/none', tmp_path / 'file', tmp_path / 'file' / 'in it', tmp_path / 'link'):
        with pytest.raises(ShardError, match=f'data.cache_dir={folder} cannot be written .*; give a folder that can'):
            open_dataset(server.url, cache_dir=folder)
    assert not server.requests
