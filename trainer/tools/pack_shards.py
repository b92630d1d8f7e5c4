"""Writing shards, in a folder that appears under its name only once it is complete."""

import fcntl
import hashlib
import os
import shutil
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from webdataset import TarWriter

from trainer.data.checksums import LINE, append_checksums, checksum, padded
from trainer.data.manifest import FILE_NAME, MOST_IN_A_SHARD, Shard, sample_key
from trainer.durable import sync_folder

REPORT = 'report.json'


class ShardWriter:
    """Writes samples, numbered from 0 on, and their checksums into tars of at most `max_bytes`.

    A larger sample gets a tar of its own.
    """

    def __init__(self, folder: Path, suffix: str, max_bytes: int):
        self.folder, self.suffix, self.max_bytes = folder, suffix, max_bytes
        self.shards: list[Shard] = []
        self.samples = 0          # in all
        self._file = None

    def __enter__(self) -> 'ShardWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._file:
            # Left open, the tar would complain when it is collected. A full disk has been reported already.
            with suppress(OSError), self._file:
                self._tar.close()

    def write(self, data: bytes, label: int | None) -> None:
        members = {self.suffix: data} | ({} if label is None else {'cls': str(label).encode()})
        size = sum(padded(len(content)) for content in members.values())
        if self._file and (len(self._sums) == MOST_IN_A_SHARD
                           or self._bytes + size + padded(LINE * (len(self._sums) + 1)) > self.max_bytes):
            self.close()
        if not self._file:
            self._open()
        self._tar.write({'__key__': sample_key(self.samples), **members})
        self._sums.append(checksum(*members.values()))
        self._bytes += size
        self.samples += 1

    def close(self) -> None:
        """Finish the shard at hand, if any, and put it on the disk and on the list."""
        if not self._file:
            return
        checksums = append_checksums(self._tar.tarstream, self._first, self._sums)
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, 'sha256').hexdigest()
        self._file.close()
        name = Path(self._file.name).name
        self.shards.append(Shard(name, self._first, self.samples - self._first, size, digest, checksums))
        self._file = None

    def _open(self) -> None:
        self._file = open(self.folder / f'shard-{len(self.shards):05d}.tar', 'w+b')
        self._tar = TarWriter(self._file, user='root', group='root', mtime=0)  # nothing of this machine or moment
        self._first, self._sums = self.samples, array('I')
        self._bytes = tarfile.RECORDSIZE  # the end mark and the padding after it


@contextmanager
def folder_in_the_making(out: Path, overwrite: bool) -> Iterator[tuple[Path, TextIO]]:
    """A folder beside `out`, with its open report file: becomes `out` if the block ends well, else it is removed.

    What a killed run left there is removed first. ValueError if another run is at work on the same `out`.
    """
    aside, old = out.with_name(f'{out.name}.tmp-pack'), out.with_name(f'{out.name}.tmp-old')
    if old.exists():  # a run was killed while it exchanged the folders
        shutil.rmtree(old) if out.exists() else old.rename(out)
    check_target(out, overwrite)
    aside.mkdir(parents=True, exist_ok=True)
    # Its lock, which dies with the process, tells a run at work from a killed one. A second handle on it would end it.
    with open(aside / REPORT, 'a') as report:
        try:
            fcntl.lockf(report, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f'another imago pack is writing {out}; wait for it, or choose another OUT') from error
        try:
            _empty(aside, keep=REPORT)
            report.truncate(0)
            yield aside, report
            report.flush()
            os.fsync(report.fileno())
            sync_folder(aside)
            if overwrite and out.exists():
                out.rename(old)
            aside.rename(out)
            sync_folder(out.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    if old.exists():
        shutil.rmtree(old)


def check_target(out: Path, overwrite: bool) -> None:
    """ValueError if `out` cannot become a dataset's folder, or may not: it holds something."""
    if out.is_mount():
        raise ValueError(f'{out} is a mount point, which no finished folder can be renamed to; give a folder in it')
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out} is a file; give a folder')
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ValueError(f'{out} exists and is not empty; choose another OUT, or replace it by --overwrite')
    if not (out / FILE_NAME).exists():
        raise ValueError(f'{out} is no packed dataset (it has no {FILE_NAME}), and --overwrite replaces only such; '
                         'choose another OUT')


def _empty(folder: Path, keep: str) -> None:
    for path in folder.iterdir():
        if path.name != keep:
            path.unlink()
