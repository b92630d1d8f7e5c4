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

import pytest
from shards_for_tests import write_dataset

from trainer.data.manifest import Manifest
from trainer.data.shards import Dataset, SampleReader, ShardError, open_dataset

FIRST, SECOND = 'shard-00000.tar', 'shard-00001.tar'


@dataclass
class Server:
    """An HTTP server on a dataset. `trouble[file]` lists what befalls the next requests for it; then all is well."""

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
    ('500', '500'), ('dropped', 'bytes came, the manifest says'), ('cut short', 'bytes came'), ('garbled', 'SHA-256')])
def test_a_server_that_never_recovers_is_an_error_that_names_shard_and_cause(server, tmp_path, trouble, cause):
    dataset = open_dataset(server.url, cache_dir=tmp_path, attempts=3, retry_delay=0)
    server.trouble = {SECOND: [trouble] * 9}
    with pytest.raises(ShardError, match=f'{SECOND} cannot be read from {server.url}.*3 of 3.*{cause}'):
        fetch(dataset, 1)
    assert server.requests[SECOND] == 3
    assert cached(tmp_path) == set()


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
    odd = shutil.copytree(folder, tmp_path / 'it is here')
    (odd / SECOND).rename(odd / "the second; exit 1 'or so'.tar")
    manifest = (odd / 'dataset.json').read_text()
    (odd / 'dataset.json').write_text(manifest.replace(SECOND, "the second; exit 1 'or so'.tar"))
    dataset = open_dataset(f"pipe:cat '{odd}'/{{}}", cache_dir=tmp_path / 'cache')
    sample, damaged = SampleReader(dataset, (32, 32), max_open=1).read(1, 2)
    assert (sample.key, damaged) == ('000000007', [])


def test_a_command_that_fails_or_stops_early_is_an_error(folder, tmp_path):
    settings = dict(cache_dir=tmp_path, attempts=2, retry_delay=0)
    with pytest.raises(ShardError, match='dataset.json cannot be read from pipe:.*2 of 2.*exit 3'):
        open_dataset('pipe:exit 3; {}', **settings)
    dataset = open_dataset(f'pipe:head -c 3000 {folder}/{{}}', **settings)
    with pytest.raises(ShardError, match=f'{FIRST} .*3000 bytes came'):
        fetch(dataset, 0)


def test_what_is_no_dataset_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match='pipe:cat /data .*no {} .*ssh host cat'):
        open_dataset('pipe:cat /data')
    with pytest.raises(ValueError, match='s3://bucket.*use pipe:'):
        open_dataset('s3://bucket/data')
    with pytest.raises(ValueError, match='no readable dataset.json; make one with: imago pack SOURCE'):
        open_dataset(tmp_path)
    manifest = open_dataset(folder).manifest
    for change in ({'name': '../shard.tar'}, {'sha256': '../' * 20 + 'home'}):
        shards = (replace(manifest.shards[0], **change), *manifest.shards[1:])
        fields = {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}
        Manifest(**fields | {'shards': shards}).write(tmp_path)
        with pytest.raises(ValueError, match='is no shard; pack it again'):
            open_dataset(tmp_path)
