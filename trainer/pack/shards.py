"""This module writes shards, in a folder that appears under its name only once it is complete."""

import hashlib
import os
import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from imago.trainer.data.checksums import LINE, append_checksums, checksum, padded
from imago.trainer.data.conditions import CONDITION, to_bytes
from imago.trainer.data.durable import sync_folder
from imago.trainer.data.manifest import FILE_NAME, MOST_IN_A_SHARD, SINGLE, Shard, find_manifest, sample_key
from imago.trainer.wording import listed

REPORT = 'report.json'
COPY = 'pictures.tmp'   # pictures of Parquet files are copied to it while they are packed
MARK = '.imago-pack'  # this file marks a folder that is being made or was replaced; files that we write may be deleted there
WRITTEN = re.compile(
    rf'shard-[0-9]{{5,}}\.tar|({re.escape(REPORT)}|{re.escape(FILE_NAME)})(\.tmp)?|{re.escape(MARK)}|{re.escape(COPY)}')


class ShardWriter:
    """Writes samples, numbered from 0 on, and their checksums into tars of at most `max_bytes`.

    A larger sample gets a tar of its own. Each sample has one picture of each of `domains`.
    """

    def __init__(self, folder: Path, suffix: str, max_bytes: int, domains: tuple[str, ...] = SINGLE):
        self.folder, self.max_bytes = folder, max_bytes
        self.suffixes = [suffix] if domains == SINGLE else [f'{domain}.{suffix}' for domain in domains]
        self.shards: list[Shard] = []
        self.samples = 0          # in all shards
        self._file: BufferedRandom | None = None

    def __enter__(self) -> 'ShardWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._file:
            # Left open, the tar would complain when it is collected. A full disk has been reported already.
            with suppress(OSError), self._file:
                self._tar.close()

    def write(self, pictures: Sequence[bytes], label: int | None, condition: np.ndarray | None = None) -> None:
        """Add a sample: its pictures in the order of the domains, its class, and its condition [d] or [T, d]."""
        members = dict(zip(self.suffixes, pictures, strict=True)) | ({} if label is None else {'cls': str(label).encode()})
        members |= {} if condition is None else {CONDITION: to_bytes(condition)}
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
        """Finish the shard at hand, if any; sync it to the disk and add it to `shards`."""
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
        from webdataset import TarWriter  # it imports torch
        self._file = open(self.folder / f'shard-{len(self.shards):05d}.tar', 'w+b')
        self._tar = TarWriter(self._file, user='root', group='root', mtime=0)  # the bytes do not depend on machine and time
        self._first, self._sums = self.samples, array('I')
        self._bytes = tarfile.RECORDSIZE  # the end mark and the padding after it


@contextmanager
def folder_in_the_making(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside `out`, which becomes `out` if the block ends well, and else is removed.

    What a killed run left there is removed first, or put back. ValueError if another run is at work on the same `out`, or
    if something is in the way that `imago pack` did not write.
    """
    aside, old = _beside(out)
    new_parents = [parent for parent in out.parents if not parent.exists()]
    try:
        aside.mkdir(parents=True, exist_ok=True)
        with _locked(aside, out):
            _end_exchange(out, old)
            check_target(out, overwrite)
            _empty(aside)
            yield aside
            sync_folder(aside)
            check_target(out, overwrite)
            _exchange(aside, out, old)
    except BaseException:
        with suppress(OSError):
            for parent in new_parents:
                parent.rmdir()
        raise


@contextmanager
def _locked(aside: Path, out: Path) -> Iterator[None]:
    """Mark `aside` as the work of this process, and hold a lock on the mark during the block. Remove `aside` if it fails.

    The lock dies with the process, which tells a run at work from a killed one.
    """
    _check_aside(aside)
    lock = FileLock(aside / MARK, timeout=0)
    try:
        lock.acquire()
    except (Timeout, PermissionError, FileNotFoundError) as error:
        raise ValueError(f'another imago pack is writing {out}; wait for it, or choose another OUT') from error
    try:
        yield
    except BaseException:
        with suppress(OSError):
            _remove(aside)
        raise
    finally:
        lock.release()


def check_target(out: Path, overwrite: bool) -> None:
    """Raise ValueError if `out` cannot become a dataset's folder, or must not, as what it holds is not proved to be a dataset."""
    if out.is_mount():
        raise ValueError(f'{out} is a mount point, which no finished folder can be renamed to; give a folder in it')
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out} is a file; give a folder')
    aside, old = _beside(out)
    _check_aside(aside)
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ValueError(f'{out} exists and is not empty; choose another OUT, or replace it by --overwrite')
    manifest = find_manifest(out)
    if manifest is None:
        raise ValueError(f'{out} is no packed dataset (it has no {FILE_NAME} of imago pack), and --overwrite replaces only such; '
                         f'it holds {listed(sorted(os.listdir(out)))}; choose another OUT')
    ours = {MARK, REPORT, FILE_NAME, *(shard.name for shard in manifest.shards if WRITTEN.fullmatch(shard.name))}
    foreign = _foreign(out, ours.__contains__)
    if foreign:
        raise ValueError(f'{out} also holds what imago pack did not write there, and --overwrite would delete it: '
                         f'{listed(foreign)}; move it away, or choose another OUT')
    if os.path.lexists(old) and not (old / MARK).is_file():
        raise ValueError(f'{old} is in the way: {out.name} would be kept there until the new one is complete; '
                         'move it away, or choose another OUT')


def _check_aside(aside: Path) -> None:
    """Raise ValueError if the folder to write in exists and holds anything that must not be deleted."""
    if aside.is_symlink() or not aside.is_dir():
        foreign = [aside.name] if os.path.lexists(aside) else []
    else:
        foreign = _foreign(aside, WRITTEN.fullmatch) if (aside / MARK).is_file() else sorted(os.listdir(aside))
    if foreign:
        raise ValueError(f'{aside} is where OUT would be made, and imago pack did not write what is there: {listed(foreign)}; '
                         'move it away, or choose another OUT')


def _beside(out: Path) -> tuple[Path, Path]:
    """Return where the dataset is made, and where the one that it replaces is kept for a moment."""
    return out.with_name(f'{out.name}.tmp-pack'), out.with_name(f'{out.name}.tmp-old')


def _exchange(aside: Path, out: Path, old: Path) -> None:
    """Move `aside` to `out`, then remove the dataset that was there, if any. If that fails, the old one stays as it was."""
    try:
        if out.exists() and any(out.iterdir()):
            (out / MARK).touch()
            out.rename(old)
        aside.rename(out)
        sync_folder(out.parent)
        (out / MARK).unlink()
    finally:
        _end_exchange(out, old)


def _end_exchange(out: Path, old: Path) -> None:
    """Remove the dataset that was replaced, or put it back if none took its place.

    It was proved to be a dataset before it was marked.
    """
    if not (old / MARK).is_file():
        return
    if find_manifest(out):
        _remove(old)
    else:
        old.rename(out)  # OSError if something else is there
        (out / MARK).unlink()


def _remove(folder: Path) -> None:
    """Delete a marked folder, except for files whose names we never write."""
    _empty(folder)
    (folder / MARK).unlink(missing_ok=True)
    with suppress(OSError):  # a folder where somebody has put something meanwhile stays, without the mark
        folder.rmdir()


def _empty(folder: Path) -> None:
    for name in set(os.listdir(folder)) - set(_foreign(folder, WRITTEN.fullmatch)) - {MARK}:
        (folder / name).unlink(missing_ok=True)


def _foreign(folder: Path, ours: Callable[[str], object]) -> list[str]:
    """List all that is in `folder`, except files whose names are `ours`."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not ours(entry.name) or not entry.is_file(follow_symlinks=False))
