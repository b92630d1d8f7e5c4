"""Where pictures come from: a folder, a zip, or WebDataset tars, read in place and never extracted to disk."""

import io
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys

from trainer.data.manifest import FILE_NAME, Manifest
from trainer.tools.pack_labels import label_of_json

# By suffix, Pillow's reader. Formats that run programs (EPS) or have no signature (TGA) are left out.
FORMATS = {
    '.avif': 'AVIF', '.bmp': 'BMP', '.gif': 'GIF', '.jp2': 'JPEG2000', '.jfif': 'JPEG', '.jpe': 'JPEG', '.jpeg': 'JPEG',
    '.jpg': 'JPEG', '.pbm': 'PPM', '.pgm': 'PPM', '.png': 'PNG', '.pnm': 'PPM', '.ppm': 'PPM', '.tif': 'TIFF',
    '.tiff': 'TIFF', '.webp': 'WEBP',
}


@dataclass(frozen=True, slots=True)
class Picture:
    """`name` is the path inside the source, as in a labels file; `container` the folder, zip or tar that holds it."""

    name: str
    label: str | None
    container: str

    def open(self, max_bytes: int) -> BinaryIO:
        """A seekable file. ValueError if it is empty or has more than `max_bytes`; OSError and others if unreadable."""
        path = Path(self.container, self.name)
        if not path.is_file():  # a pipe would hang, a device never end
            raise ValueError('not a regular file, or a link to none')
        _check_bytes(path.stat().st_size, max_bytes)
        return open(path, 'rb')


@dataclass(frozen=True, slots=True)
class ZipPicture(Picture):
    def open(self, max_bytes: int) -> BinaryIO:
        archive = _open_zip(self.container)
        _check_bytes(archive.getinfo(self.name).file_size, max_bytes)
        return io.BytesIO(archive.read(self.name))


@dataclass(frozen=True, slots=True)
class TarPicture(Picture):
    offset: int
    size: int  # bytes

    def open(self, max_bytes: int) -> BinaryIO:
        _check_bytes(self.size, max_bytes)
        with open(self.container, 'rb') as tar:
            tar.seek(self.offset)
            return io.BytesIO(tar.read(self.size))


@dataclass(frozen=True)
class Listing:
    """What a source holds: pictures sorted by name, and the number of other files by suffix.

    `numeric`: labels that are whole numbers are class numbers, which `class_names`, if known, calls by name.
    """

    pictures: list[Picture]
    ignored: dict[str, int]
    note: str = ''
    numeric: bool = False
    class_names: tuple[str, ...] = ()


def list_source(source: str) -> Listing:
    """List a folder, `.zip`, `.tar`, or brace pattern of tars. ValueError if it is none of them or holds no picture."""
    path = Path(source)
    if path.is_dir():
        listing = _list_folder(path)
    elif path.suffix.lower() == '.zip' and path.is_file():
        listing = _list_zip(path)
    elif path.suffix.lower() == '.tar' and path.is_file():
        listing = _list_tars([path], path.parent)
    elif '{' in source and source.lower().endswith('.tar'):
        tars = [Path(name) for name in expand_urls(source)]
        listing = _list_tars(tars, Path(os.path.commonpath([tar.parent for tar in tars])))
    else:
        problem = 'is no folder, .zip or .tar' if path.exists() else 'does not exist'
        raise ValueError(f'{source} {problem}; give a folder of pictures, a .zip, or .tar files like '
                         'x-{000..003}.tar')
    if not listing.pictures:
        found = ', '.join(f'{count} {suffix}' for suffix, count in listing.ignored.items()) or 'nothing'
        raise ValueError(f'{source} holds no picture ({", ".join(FORMATS)}), only: {found}')
    return listing


def _check_bytes(size: int, max_bytes: int) -> None:
    if size == 0:
        raise ValueError('empty file')
    if size > max_bytes:
        raise ValueError(f'{size} bytes, more than a picture of --max-pixels can need ({max_bytes})')


def _list_folder(root: Path) -> Listing:
    names, ignored = _sort_out(_files_below(root))
    tars = sorted(path for path in root.iterdir() if path.suffix.lower() == '.tar')
    if tars and names:
        raise ValueError(f'{root} holds both tars ({tars[0].name}) and pictures ({names[0]!r}); '
                         f'name the tars ({tars[0]} or a brace pattern), or move them away')
    if tars:
        return _list_tars(tars, root)
    labels, note = _labels_from_folders(names, 0)
    return Listing([Picture(*pair, str(root)) for pair in zip(names, labels, strict=True)], ignored, note)


def _files_below(root: Path) -> Iterator[str]:
    """Paths relative to `root`. Links to folders are followed once, and not if their target holds or is in `root`."""
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

    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        folders[:] = [name for name in sorted(folders) if enter(Path(folder, name))]
        prefix = Path(folder).relative_to(root)
        yield from (str(prefix / name) for name in files)


def _sort_out(names: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Pictures by name, and the number of other files by suffix."""
    pictures, ignored = [], Counter()
    for name in names:
        path = PurePosixPath(name)
        if any(part.startswith('.') or part == '__MACOSX' for part in path.parts):
            ignored['hidden'] += 1
        elif path.suffix.lower() in FORMATS:
            pictures.append(name)
        else:
            ignored[path.suffix.lower() or 'no suffix'] += 1
    return sorted(pictures), dict(sorted(ignored.items()))


def _labels_from_folders(names: list[str], depth: int) -> tuple[list[str | None], str]:
    """The folder at `depth` of each name, or None for all if some have none there; and a note where only some have."""
    parts = [PurePosixPath(name).parts for name in names]
    loose = [name for name, path in zip(names, parts) if len(path) < depth + 2]
    if not loose:
        return [path[depth] for path in parts], ''
    mixed = len(loose) < len(names)
    note = f'no labels: {len(loose)} pictures, e.g. {loose[0]!r}, are in no class folder (--labels FILE gives labels)'
    return [None] * len(names), note if mixed else ''


@lru_cache(1)
def _open_zip(path: str) -> zipfile.ZipFile:
    """Kept open in each worker; processes must not share one, they would share its file position."""
    return zipfile.ZipFile(path)


def _list_zip(path: Path) -> Listing:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename for info in archive.infolist() if not info.is_dir()}
    except zipfile.BadZipFile as error:
        raise ValueError(f'{path} is not a readable zip: {error}') from error
    names, ignored = _sort_out(members)
    # Zip tools put everything into one folder named after the archive: no class.
    outermost = {PurePosixPath(name).parts[0] for name in names}
    labels, note = _labels_from_folders(names, int(len(outermost) == 1))
    return Listing([ZipPicture(*pair, str(path)) for pair in zip(names, labels, strict=True)], ignored, note)


def _list_tars(tars: list[Path], base: Path) -> Listing:
    pictures, ignored = [], Counter()
    for tar in tars:
        try:
            for sample in _samples(tar):
                member = next((value for suffix, value in sample.items() if _is_picture(suffix)), None)
                if member is None:
                    ignored['samples without a picture'] += 1
                    continue
                name = f'{tar.relative_to(base)}/{member.name}'
                pictures.append(TarPicture(name, _label(tar, sample), str(tar), member.offset_data, member.size))
        except (tarfile.TarError, ValueError, OSError) as error:
            raise ValueError(f'{tar} cannot be read as a WebDataset tar: {error}') from error
    manifest = base / FILE_NAME  # that of `imago pack`, which knows the names of the classes
    class_names = Manifest.from_json(manifest.read_text(), str(manifest)).class_names if manifest.is_file() else ()
    return Listing(sorted(pictures, key=lambda picture: picture.name), dict(ignored),
                   numeric=True, class_names=class_names)


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    """WebDataset's samples, with the members' headers for values, so that the pictures can be read in any order."""
    with tarfile.open(path, 'r:') as tar:
        files = ({'fname': member.name, 'data': member, '__url__': ''} for member in tar if member.isreg())
        yield from group_by_keys(files)
        tar.fileobj.seek(tar.offset)
        if any(tar.fileobj.read(tarfile.BLOCKSIZE)):  # a broken header reads like the end
            raise ValueError(f'broken at byte {tar.offset}')


def _is_picture(suffix: str) -> bool:
    return not suffix.startswith('__') and '.' + suffix.rpartition('.')[2] in FORMATS


def _label(tar: Path, sample: dict[str, Any]) -> str | None:
    """Of `.cls` (text), else of the `label` in `.json`; None if there is neither."""
    kind = next((kind for kind in ('cls', 'json') if kind in sample), None)
    if kind is None:
        return None
    with open(tar, 'rb') as file:
        file.seek(sample[kind].offset_data)
        text = file.read(sample[kind].size).decode()
    return text.strip() if kind == 'cls' else label_of_json(text, sample[kind].name)
