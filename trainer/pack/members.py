"""This module lists what a folder, a zip or a tar holds. Each member is read where it lies; none is extracted to disk."""

import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from imago.trainer.data.reading import open_regular

FOLDERS, SPECIAL, LISTED = 'folders', 'links and special files', 'links to folders that are listed already'
MOST_EXTENDED = 1 << 16   # bytes of a tar's extended header, which holds little but a long name
UNIX = 3                  # the system, noted in a zip's member, whose attributes tell what kind of file it is
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the folder, zip or tar `container`. `name` is its path inside the source, as in a labels file."""

    name: str
    container: str

    def open(self, max_bytes: int) -> BinaryIO:
        """Open a seekable file. ValueError if it is empty or has more than `max_bytes`; OSError and others if unreadable."""
        path = Path(self.container, self.name)
        if not path.is_file():  # a pipe would hang, and a device would never end
            raise ValueError('not a regular file, or a link to none')
        check_bytes(path.stat().st_size, max_bytes)
        return open_regular(path)


@dataclass(frozen=True, slots=True)
class ZipMember(Member):
    index: int  # among the zip's members, as names may repeat

    def open(self, max_bytes: int) -> BinaryIO:
        archive = _open_zip(self.container)
        info = archive.infolist()[self.index]
        check_bytes(info.file_size, max_bytes)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile inflates others without a bound
            raise ValueError('neither stored nor deflated; zip it again so')
        with archive.open(info) as file:
            return io.BytesIO(file.read(info.file_size))  # without a number, read() may inflate more than the size claims


@dataclass(frozen=True, slots=True)
class PartMember(Member):
    """A part of a file, which lies there as it is: in a tar, or among pictures that were copied out of Parquet files."""

    offset: int
    size: int  # bytes

    def open(self, max_bytes: int) -> BinaryIO:
        check_bytes(self.size, max_bytes)
        with open_regular(self.container) as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


def tidy(name: str) -> str:
    """Write a path as all sources and labels files do: some Windows tools put backslashes in it, some `tar` a `./` before it."""
    return str(PurePosixPath(name.replace('\\', '/').lstrip('/')))


def members_of_folder(root: Path) -> Iterator[tuple[str, Member, str]]:
    """Yield (path inside, member, why it is not read or '').

    Links to folders are followed once, and not at all if their target holds `root` or is in it.
    """
    home, followed = root.resolve(), set()

    def enter(folder: Path) -> bool:
        if not folder.is_symlink():
            return True
        target = folder.resolve()
        known = target in followed or target.is_relative_to(home) or home.is_relative_to(target)
        followed.add(target)
        return not known

    def fail(error: OSError) -> None:
        raise error

    try:
        for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
            prefix = Path(folder).relative_to(root)
            entered = {name: enter(Path(folder, name)) for name in sorted(folders)}
            folders[:] = [name for name in entered if entered[name]]
            for name in (*files, *(name for name in entered if not entered[name])):
                path = str(prefix / name)
                yield path, Member(path, str(root)), '' if entered.get(name, True) else LISTED
    except RecursionError as error:
        raise ValueError(f'{root} holds folders in folders, too many to follow; flatten them') from error


def members_of_zip(path: Path) -> Iterator[tuple[str, Member, str]]:
    """Yield what `members_of_folder` does, from a zip. ValueError if it is no zip that can be read."""
    try:
        infos = _open_zip(str(path)).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise ValueError(f'{path} is not a readable zip: {error}') from error
    for index, info in enumerate(infos):
        kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == UNIX else 0
        special = SPECIAL if kind not in (0, stat.S_IFREG) else ''
        name = tidy(info.filename)
        yield name, ZipMember(name, str(path), index), FOLDERS if info.filename.endswith(('/', '\\')) else special


def members_of_tar(path: Path, base: Path) -> Iterator[tuple[str, Member, str]]:
    """Yield what `members_of_folder` does, from a tar, with names as seen from `base`.

    ValueError if it is no tar, is cut, or claims more than it has.
    """
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode='r:', tarinfo=Header) as tar:
            end = os.fstat(file.fileno()).st_size
            for header in iter(tar.next, None):
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all headers in memory
                has_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
                if has_data and not 0 <= header.size <= end - header.offset_data:
                    raise ValueError(f'{header.name!r} should have {header.size} bytes, {end - header.offset_data} are there')
                inside, special = tidy(header.name), '' if header.isreg() and not header.issparse() else SPECIAL
                member = PartMember(f'{path.relative_to(base)}/{inside}', str(path), header.offset_data, header.size)
                yield inside, member, FOLDERS if header.isdir() else special
            file.seek(tar.offset)
            if file.read(MOST_EXTENDED).strip(b'\0'):  # tarfile takes a broken header for the end
                raise ValueError(f'broken at byte {tar.offset}, or another tar was appended there; write them as one tar')
    except (tarfile.TarError, ValueError, OSError, LookupError, OverflowError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read as a WebDataset tar: {error}') from error


def has_end_mark(tar: Path) -> bool:
    """Tell whether a tar has its end mark. A tar without it may have been cut between two members."""
    with open_regular(tar) as file:
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        return not file.read().strip(b'\0')


class Header(tarfile.TarInfo):
    """This class refuses some headers: tarfile itself follows sizes below 0 for ever, and reads extended headers of any size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or header.type in EXTENDED and header.size > MOST_EXTENDED:
            raise ValueError(f'a header claims {header.size} bytes')
        return header


def _open_zip(path: str) -> zipfile.ZipFile:
    found = os.stat(path)
    return _kept_open(path, (found.st_ino, found.st_size, found.st_mtime_ns), os.getpid())


@lru_cache(1)
def _kept_open(path: str, version: tuple[int, ...], process: int) -> zipfile.ZipFile:
    """Open a zip once in each process: processes that shared one would share its file position."""
    return zipfile.ZipFile(open_regular(path))


def check_bytes(size: int, max_bytes: int) -> None:
    if size == 0:
        raise ValueError('empty file')
    if size > max_bytes:
        raise ValueError(f'{size} bytes, more than {max_bytes} (of a picture: 16 for each of --max-pixels)')
