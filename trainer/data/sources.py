"""Shards lie in a folder, or elsewhere: from there they are fetched whole, verified and kept in a shared cache."""

import hashlib
import http.client
import os
import shlex
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeVar

from filelock import FileLock

from imago.trainer.data.commands import Command
from imago.trainer.data.locations import hide_secrets, masked, scheme_of
from imago.trainer.data.manifest import FILE_NAME, Shard
from imago.trainer.data.reading import MOST_TEXT, open_regular, read_text
from imago.trainer.data.web import PASSWORD, open_hub, open_url
from imago.trainer.ranks.stop_signals import interruptible

T = TypeVar('T')
CHUNK = 1 << 20          # bytes
EVICT_LOCK = 'evict.lock'


class ShardError(RuntimeError):
    """A file of a dataset cannot be had, or holds nothing good. The message names it and the cause."""


@dataclass(frozen=True)
class Folder:
    """The shards in this folder are read in place."""

    path: Path
    remote = False

    def read_manifest(self) -> str:
        try:
            return read_text(self.path / FILE_NAME)
        except OSError as error:
            raise ValueError(f'{self.path} is no packed dataset, it holds no readable {FILE_NAME}; '
                             f'make one with: imago pack SOURCE {self.path}') from error

    def open(self, shard: Shard) -> BinaryIO:
        try:
            return open_regular(self.path / shard.name)
        except (OSError, ValueError) as error:
            raise ShardError(f'{shard.name} cannot be opened: {error}') from error


@dataclass(frozen=True)
class Remote:
    """These shards are fetched over HTTP(S), `gs:`, `hf:`, or by a command (`pipe:CMD` with `{}` for the file).

    The cache is keyed by content, shared by all processes of a host, and drops the least recently opened shards beyond
    `cache_gb` (1e9 bytes); processes that have such a shard open keep it. `retry_delay` is in seconds and doubles.
    """

    source: str = field(repr=False)   # a location, with its password
    cache_dir: Path
    cache_gb: float
    attempts: int
    retry_delay: float
    remote = True

    def read_manifest(self) -> str:
        self._make_cache()   # fails early: shards will need it

        def read() -> str:
            with self._connect(FILE_NAME) as body:
                return b''.join(_at_most(MOST_TEXT, body)).decode()
        try:
            with interruptible():
                return self._retry(FILE_NAME, read)
        except UnicodeDecodeError as error:
            raise ValueError(f'{FILE_NAME} of {masked(self.source)} is no UTF-8 text ({error})') from error

    def open(self, shard: Shard) -> BinaryIO:
        """Open a shard in the cache, which fetches it if needed. Raises ShardError if every attempt to fetch it fails."""
        self._make_cache()
        path = self.cache_dir / f'{shard.sha256}.tar'
        try:
            # processes that want the same shard fetch it once
            with interruptible(), FileLock(path.with_suffix('.lock')):
                return self._open_cached(shard, path)
        except ValueError as error:   # it is no regular file, or the password is gone
            raise ShardError(f'{shard.name}: {error}') from error

    def _open_cached(self, shard: Shard, path: Path) -> BufferedReader:
        try:
            file = open_regular(path)
            os.utime(file.fileno())               # marks the use: many file systems keep no access times
        except FileNotFoundError:
            file = self._retry(shard.name, lambda: self._fetch(shard, path))
            self._evict(path)
        return file

    def _make_cache(self) -> None:
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            open(self.cache_dir / EVICT_LOCK, 'a').close()
        except OSError as error:
            raise ShardError(f'data.cache_dir={self.cache_dir} cannot be written ({error}); give a folder that can') from error

    def _fetch(self, shard: Shard, path: Path) -> BufferedReader:
        aside = path.with_suffix('.part')
        digest = hashlib.sha256()
        with self._connect(shard.name) as body, open(aside, 'wb') as out:
            for chunk in _at_most(shard.bytes, body):
                out.write(chunk)
                digest.update(chunk)
            size = out.tell()
            out.flush()
            os.fsync(out.fileno())
        if size != shard.bytes:
            raise OSError(f'{size} bytes came, the manifest says {shard.bytes}')
        if digest.hexdigest() != shard.sha256:
            raise OSError('its SHA-256 is not the one in the manifest')
        file = open(aside, 'rb')                  # comes before the rename: afterwards another process may evict it
        os.replace(aside, path)
        return file

    def _connect(self, name: str) -> BinaryIO | Command:
        match scheme_of(self.source):
            case 'pipe':
                return Command(['/bin/sh', '-c', self.source.removeprefix('pipe:').replace('{}', shlex.quote(name))])
            case 'gs':
                return Command(['gsutil', 'cat', f'{self.source.rstrip("/")}/{name}'])
            case 'hf':
                return open_hub(self.source, name)
            case _:
                return open_url(self.source, name)

    def _retry(self, name: str, read: Callable[[], T]) -> T:
        for attempt in range(1, self.attempts + 1):
            try:
                return read()
            except (OSError, http.client.HTTPException) as error:
                if attempt == self.attempts or _is_final(error):
                    raise ShardError(f'{name} cannot be read from {masked(self.source)} (attempt {attempt} of {self.attempts}): '
                                     f'{hide_secrets(str(error))}{_advice(error)}') from error
            time.sleep(self.retry_delay * 2 ** (attempt - 1))
        raise AssertionError('the last attempt returns or raises')

    def _evict(self, keep: Path) -> None:
        with FileLock(self.cache_dir / EVICT_LOCK):
            cached = [(path.stat(), path) for path in self.cache_dir.glob('*.tar')]
            total = 0
            for stat, path in sorted(cached, key=lambda entry: entry[0].st_mtime_ns, reverse=True):
                total += stat.st_size
                if total > self.cache_gb * 1e9 and path != keep:
                    path.unlink()


def _at_most(most: int, body: BinaryIO | Command) -> Iterator[bytes]:
    """Yield what comes, in pieces. Raises OSError as soon as it is more than `most` bytes: some sources never end."""
    size = 0
    while chunk := body.read(min(CHUNK, most - size + 1)):
        size += len(chunk)
        if size > most:
            raise OSError(f'more than {most} bytes came, which is all that it may have')
        yield chunk
    if left := getattr(body, 'length', None):   # HTTP said how many bytes would come
        raise OSError(f'the connection broke off {left} bytes before the end')


def _is_final(error: Exception) -> bool:
    """Return whether trying again is useless: most 4xx answers will not change, nor will a missing program appear."""
    if isinstance(error, urllib.error.HTTPError):
        return 400 <= error.code < 500 and error.code not in (408, 429)
    return isinstance(error, FileNotFoundError)


def _advice(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError) and error.code == 401:
        return f'; passwords are taken from https://user:password@host, from {PASSWORD} for https://user@host, and from .netrc'
    return ''
