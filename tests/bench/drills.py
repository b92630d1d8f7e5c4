"""Each drill breaks something on purpose and prints in one line, with figures, what becomes of a run.

    python tests/bench/drills.py [NAME ...]     (default: all)

A drill passes if the run ends with the bits of a run that was left alone, or with the expected refusal; else status 1.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
os.environ |= {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'no_proxy': '*'}

from runs_for_tests import differing, read_checkpoint, write_tiny
from shards_for_tests import write_dataset

from imago.trainer.runs.checkpoint import find_damage, list_checkpoints

SCRATCH = Path(tempfile.mkdtemp(prefix='imago-drills-'))
with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    PORT = probe.getsockname()[1]
TRAIN = '-m', 'imago.trainer'
NODE = '-m', 'imago.launch.node', '--nodes', '1', '--gpus-per-node', '2', '--rendezvous', f'localhost:{PORT}'
STEPS = 40
# at every call of time.time the clock leaps by up to a hundred days, forwards or backwards
LEAPING = '''import random, time, sys; true = time.time
time.time = lambda: true() + random.uniform(-1, 1) * 8640000
from imago.trainer.tools.train import main; sys.exit(main(sys.argv[1:]))'''


class Run:
    """A tiny run in a folder of its own, through any launcher."""

    def __init__(self, name: str, launcher: tuple[str, ...] = TRAIN, steps: int = STEPS, folder: Path | None = None):
        self.folder = folder or SCRATCH / name / 'run'
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.config = write_tiny(dataset(), self.folder, SCRATCH / f'{name}.yaml', total_kimg=steps * 0.012,
                                 checkpoint={'interval_kimg': 0.036})
        self._launcher = launcher

    def start(self, *overrides: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, *self._launcher, str(self.config), *overrides], cwd=ROOT, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self, *overrides: str) -> tuple[int, str]:
        process = self.start(*overrides)
        output, errors = process.communicate()
        return process.returncode, output + errors

    @property
    def checkpoints(self) -> list[Path]:
        return list_checkpoints(self.folder / 'checkpoints')

    def lines(self) -> int:
        return sum(path.read_text().count('\n') for path in self.folder.glob('keys-rank*.jsonl'))

    def wait_for_lines(self, more: int) -> float:
        """Seconds until the ranks have noted `more` further steps."""
        started, target = time.monotonic(), self.lines() + more
        while self.lines() < target:
            assert time.monotonic() < started + 300, f'{self.folder} stands still'
            time.sleep(0.01)
        return time.monotonic() - started

    def check_bits(self, other: 'Run') -> None:
        ends = [read_checkpoint(run.checkpoints[-1]) for run in (self, other)]
        assert ends[0]['nimg'] == ends[1]['nimg'] and not differing(*ends), 'other bits than a run left alone'
        assert keys_of_steps(self.folder) == keys_of_steps(other.folder), 'pictures were skipped or repeated'


def keys_of_steps(folder: Path) -> dict[tuple[str, int], list[str]]:
    """{(rank, nimg): keys}; a step that was run again must have seen the same ones."""
    found = {}
    for path in folder.glob('keys-rank*.jsonl'):
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:   # torn by a kill; its step is run again
                continue
            keys = found.setdefault((path.name, record['nimg']), record['keys'])
            assert keys == record['keys'], f'step {record["nimg"]} saw other pictures the second time'
    return found


@cache
def dataset() -> Path:
    return write_dataset(SCRATCH / 'data', (13, 10, 7), classes=3, size=16)


@cache
def left_alone(launcher: tuple[str, ...] = TRAIN, steps: int = STEPS) -> Run:
    run = Run(f'alone-{len(launcher)}-{steps}', launcher, steps)
    status, output = run.finish()
    assert status == 0, output
    return run


def kills(count: int = 30, steps: int = 120) -> str:
    """Kill a random rank of two at random moments, also while it starts. A new launcher takes over after three restarts."""
    rng, recovered, relaunched = random.Random(0), [], 0
    run = Run('kills', NODE, steps)
    process = run.start()
    for number in range(count):
        noted, killed = run.lines(), time.monotonic()
        moment = killed + rng.uniform(0, 3)
        # every other kill comes once it trains again, the rest at any moment
        while not (ranks := ranks_of(process)) or time.monotonic() < moment or number % 2 and run.lines() == noted:
            if process.poll() is not None:
                assert process.returncode in (1, 143), process.stderr.read()   # see README
                process, relaunched = run.start(), relaunched + 1
            assert time.monotonic() < killed + 300, f'{run.folder} stands still'
            time.sleep(0.01)
        if number % 2:
            recovered.append(time.monotonic() - killed)
        rng.choice(ranks).kill()
    output, errors = process.communicate()
    if process.returncode != 0:
        assert run.finish()[0] == 0
    assert 'Traceback' not in errors, errors
    run.check_bits(left_alone(NODE, steps))
    return (f'{count} kills, {relaunched} launchers; a step again after {statistics.median(recovered):.1f} s '
            f'(at most {max(recovered):.1f})')


def ranks_of(launcher: subprocess.Popen) -> list[psutil.Process]:
    try:
        return [child for child in psutil.Process(launcher.pid).children() if 'imago.trainer' in child.cmdline()]
    except psutil.Error:
        return []


def terminate() -> str:
    """SIGTERM to every process at once."""
    run = Run('terminate', NODE)
    process = run.start()
    run.wait_for_lines(6)
    started = time.monotonic()
    for each in (process, *psutil.Process(process.pid).children(recursive=True)):
        each.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143 and not errors and run.checkpoints, (process.returncode, errors)
    seconds, saved = time.monotonic() - started, int(run.checkpoints[-1].name)
    assert run.finish()[0] == 0
    run.check_bits(left_alone(NODE))
    return f'saved at {saved} images and ended in {seconds:.1f} s, status 143'


def full_disk() -> str:
    """The run fills a file system of 8 MB, is refused, and goes on after it has grown."""
    mount = SCRATCH / 'small'
    mount.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'imago', str(mount)], check=True)
    try:
        run = Run('full', folder=mount / 'run')
        process = run.start('checkpoint.keep=50')
        status, errors = process.wait(), process.stderr.read()
        assert status == 2 and errors.count('\n') == 1 and 'No space left' in errors, (status, errors)
        kept = run.checkpoints
        assert kept and not any(find_damage(path) for path in kept)
        subprocess.run(['mount', '-o', 'remount,size=200m', str(mount)], check=True)
        assert run.finish('checkpoint.keep=50')[0] == 0
        run.check_bits(left_alone())
        return f'status 2, {len(kept)} checkpoints whole: {errors.strip()[-90:]}'
    finally:
        subprocess.run(['umount', str(mount)], check=True)


class Troubled(SimpleHTTPRequestHandler):
    """The first `times` requests for each shard fail in the way that `trouble` names."""

    trouble, times = '', 2
    asked: dict[str, int] = {}

    def do_GET(self) -> None:
        self.asked[self.path] = self.asked.get(self.path, 0) + 1
        if self.path.endswith('.json') or self.asked[self.path] > self.times:
            return super().do_GET()
        if self.trouble == '500':
            return self.send_error(500)
        body = (dataset() / self.path.lstrip('/')).read_bytes()
        self.send_response(200)
        if self.trouble in ('drops', 'slow'):
            self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.trouble == 'slow':
            for start in range(0, len(body), 4096):
                self.wfile.write(body[start:start + 4096])
                time.sleep(0.2)
        else:
            self.wfile.write(body[:len(body) // 2])
        self.close_connection = True

    def log_message(self, format: str, *arguments: str) -> None:
        """Print nothing, as the drill prints its own line."""


def server() -> str:
    """The server is slow, drops connections, answers 500, or sends half a tar, first for a while and then for ever."""
    told = []
    for trouble, times in (('slow', 99), ('drops', 2), ('500', 2), ('half a tar', 2), ('500', 99), ('half a tar', 99)):
        handler = type('Handler', (Troubled,), {'trouble': trouble, 'times': times, 'asked': {}})
        http = ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=dataset()))
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url, run = f'http://127.0.0.1:{http.server_port}', Run(f'server-{trouble.split()[0]}-{times}')
        started = time.monotonic()
        status, output = run.finish(f'data.path={url}', f'data.cache_dir={run.folder.parent}/cache')
        http.shutdown()
        told.append(f'{trouble} {"for ever" if times == 99 else "twice"}: status {status} in {time.monotonic() - started:.0f} s')
        if times == 99 and trouble != 'slow':
            assert status == 1 and 'Traceback' not in output, output
            assert f'cannot be read from {url}' in output and not keys_of_steps(run.folder), output
        else:
            assert status == 0, output
            run.check_bits(left_alone())
    return '; '.join(told)


def damaged() -> str:
    """The newest checkpoint with a flipped bit, then with a file gone."""
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    told = []
    for name, damage in (('flipped bit', flip), ('missing file', Path.unlink)):
        run = Run(f'damaged-{name.split()[0]}')
        shutil.copytree(left_alone().folder, run.folder)
        newest = run.checkpoints[-1]
        damage(next(newest.glob('*.distcp')))
        status, output = run.finish()
        assert status == 0 and f'{newest} is damaged' in output, output
        run.check_bits(left_alone())
        told.append(f'{name}: {int(newest.name)} passed over, {output.partition(" at ")[2].split()[0]} kimg taken')
    return '; '.join(told)


def clock() -> str:
    """time.time leaps by up to a hundred days at every look."""
    run = Run('clock', ('-c', LEAPING))
    status, output = run.finish()
    assert status == 0, output
    run.check_bits(left_alone())
    return f'{STEPS} steps, the same bits'


def twice() -> str:
    """Start a second run on the folder of a run that is under way."""
    run = Run('twice', steps=100000)
    process = run.start()
    run.wait_for_lines(2)
    started = time.monotonic()
    status, output = run.finish()
    seconds = time.monotonic() - started
    assert process.poll() is None, 'the first one was disturbed'
    process.terminate()
    process.communicate()
    assert status == 2 and 'is in use by another process' in output, output
    return f'refused after {seconds:.1f} s with status 2; the first one went on'


DRILLS: dict[str, Callable[[], str]] = {drill.__name__: drill for drill in
                                        (terminate, full_disk, server, damaged, clock, twice, kills)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(DRILLS))
    names, failed = parser.parse_args().names or list(DRILLS), 0
    try:
        for name in names:
            started = time.monotonic()
            try:
                told = DRILLS[name]()
            except AssertionError as error:
                failed, told = failed + 1, f'FAILED: {error}'
            print(f'| {name:10} | {time.monotonic() - started:5.0f} s | {told} |', flush=True)
    finally:
        shutil.rmtree(SCRATCH)
    return min(failed, 1)


if __name__ == '__main__':
    sys.exit(main())
