"""Where shards lie: in a folder, or elsewhere, whence they come whole, are verified and kept in a shared cache."""

import fcntl
import hashlib
import http.client
import os
import shlex
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from webdataset.gopen import gopen

from trainer.data.manifest import FILE_NAME, Shard

T = TypeVar('T')
CHUNK = 1 << 20          # bytes
HTTP_TIMEOUT = 60        # seconds without a byte


class ShardError(RuntimeError):
    """A file of a dataset cannot be had, or holds nothing good. The message names it and the cause."""


@dataclass(frozen=True)
class Folder:
    """Shards read in place."""

    path: Path

    def read_manifest(self) -> str:
        try:
            return (self.path / FILE_NAME).read_text()
        except OSError as error:
            raise ValueError(f'{self.path} is no packed dataset, it holds no readable {FILE_NAME}; '
                             f'make one with: imago pack SOURCE {self.path}') from error

    def open(self, shard: Shard) -> BinaryIO:
        try:
            return open(self.path / shard.name, 'rb')
        except OSError as error:
            raise ShardError(f'{shard.name} cannot be opened: {error}') from error


@dataclass(frozen=True)
class Remote:
    """Shards fetched over HTTP, another scheme of `webdataset.gopen`, or a command (`pipe:CMD` with `{}` for the file).

    The cache is keyed by content, shared by all processes of a host, and drops the least recently opened shards beyond
    `cache_gb` (1e9 bytes); processes that have such a shard open keep it. `retry_delay` is in seconds and doubles.
    """

    source: str
    cache_dir: Path
    cache_gb: float
    attempts: int
    retry_delay: float

    def read_manifest(self) -> str:
        def read() -> str:
            with self._connect(FILE_NAME) as body:
                return body.read().decode()
        return self._retry(FILE_NAME, read)

    def open(self, shard: Shard) -> BinaryIO:
        """ShardError when every attempt to fetch it failed."""
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShardError(f'data.cache_dir={self.cache_dir} cannot be written: {error}') from error
        path = self.cache_dir / f'{shard.sha256}.tar'
        with _locked(path.with_suffix('.lock')):  # processes that want the same shard fetch it once
            try:
                file = open(path, 'rb')
                os.utime(file.fileno())           # marks the use: many file systems keep no access times
            except FileNotFoundError:
                file = self._retry(shard.name, lambda: self._fetch(shard, path))
                self._evict(path)
        return file

    def _fetch(self, shard: Shard, path: Path) -> BinaryIO:
        aside = path.with_suffix('.part')
        digest = hashlib.sha256()
        with self._connect(shard.name) as body, open(aside, 'wb') as out:
            while chunk := body.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
            size = out.tell()
            out.flush()
            os.fsync(out.fileno())
        if size != shard.bytes:
            raise OSError(f'{size} bytes came, the manifest says {shard.bytes}')
        if digest.hexdigest() != shard.sha256:
            raise OSError('its SHA-256 is not the one in the manifest')
        file = open(aside, 'rb')                  # before the rename: afterwards another process may evict it
        os.replace(aside, path)
        return file

    def _connect(self, name: str) -> BinaryIO:
        if self.source.startswith('pipe:'):
            return gopen(self.source.replace('{}', shlex.quote(name)))
        url = f'{self.source}/{urllib.parse.quote(name)}'
        if url.startswith(('http://', 'https://')):
            # Not gopen: it runs curl, which may be missing, retries for a minute unasked and hides the cause.
            return urllib.request.urlopen(url, timeout=HTTP_TIMEOUT)
        return gopen(url)

    def _retry(self, name: str, read: Callable[[], T]) -> T:
        for attempt in range(1, self.attempts + 1):
            try:
                return read()
            except (OSError, http.client.HTTPException) as error:
                if attempt == self.attempts or _is_final(error):
                    raise ShardError(f'{name} cannot be read from {self.source} '
                                     f'(attempt {attempt} of {self.attempts}): {error}') from error
            time.sleep(self.retry_delay * 2 ** (attempt - 1))

    def _evict(self, keep: Path) -> None:
        with _locked(self.cache_dir / 'evict.lock'):
            cached = [(path.stat(), path) for path in self.cache_dir.glob('*.tar')]
            total = 0
            for stat, path in sorted(cached, key=lambda entry: entry[0].st_mtime_ns, reverse=True):
                total += stat.st_size
                if total > self.cache_gb * 1e9 and path != keep:
                    path.unlink()


def _is_final(error: Exception) -> bool:
    """A 4xx answer other than time-out and too many requests will not change."""
    return isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
