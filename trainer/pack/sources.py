"""Pictures come from a folder, a zip, WebDataset tars, or files of many pictures. This module lists what is packed of them."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imago.trainer.data.manifest import find_manifest
from imago.trainer.pack import heif
from imago.trainer.pack.cifar import is_archive, read_archive, read_cifar
from imago.trainer.pack.contents import FORMATS, METADATA, Contents
from imago.trainer.pack.idx import IMAGES, read_idx
from imago.trainer.pack.labels import labels_beside, labels_from_folders
from imago.trainer.pack.members import Member, has_end_mark, members_of_folder, members_of_tar, members_of_zip, tidy
from imago.trainer.pack.parquet import ParquetMember, read_parquet
from imago.trainer.pack.patterns import expand_braces
from imago.trainer.pack.splits import ALL, choose_split, split_of, without_split
from imago.trainer.pack.tables import last
from imago.trainer.wording import listed

HOW = 'give a folder of pictures, a .zip, .tar or .parquet files like x-{000..003}.tar, or the files of CIFAR or MNIST'


@dataclass(frozen=True)
class Listing:
    """What a source holds: pictures sorted by name, the label of each if any has one, and the number of others by kind.

    `members` counts pictures and others. `numeric` says that labels that are whole numbers are class numbers, whose names
    are `class_names` if known. `elsewhere` names the pictures of other splits.
    """

    pictures: list[Member]
    labels: list[str | None]
    ignored: dict[str, int]
    members: int
    notes: list[str]
    numeric: bool
    class_names: tuple[str, ...]
    elsewhere: list[str]


def list_source(source: str, *, labels: bool = True, split: str | None = None, columns: str | None = None) -> Listing:
    """List what SOURCE holds of a split. ValueError if there is no picture, or no such split.

    Labels are looked for unless `labels` is False; ValueError if one cannot be read. `columns` names those of tables.
    """
    paths = locate(source)
    tars = paths if paths[0].suffix.lower() == '.tar' and not paths[0].is_dir() else []
    base = Path(os.path.commonpath([path.parent for path in paths]))
    contents = [_sort_out(members_of_tar(tar, base)) for tar in tars] or [_open(paths, base, labels, columns)]
    waiting = [path for held in contents for path in held.heif]
    if not any(held.pictures for held in contents):
        found = listed([f'{count} {kind}' for kind, count in sum((held.ignored for held in contents), Counter()).most_common()])
        mend = f'; {heif.HOW}, which reads them' if waiting else ''
        raise ValueError(f'{source} holds no picture ({", ".join(FORMATS)}), only: {found or "nothing"}{mend}')
    notes = _notes_on_tars(tars, contents)
    if waiting:
        notes.append(f'{len(waiting)} HEIF pictures are left out: {listed(waiting)}; {heif.HOW}, which reads them')
    unread = [path for held in contents for path in held.collections if path.endswith('.parquet')]
    if unread:
        notes.append(f'beside pictures, Parquet files are left out: {listed(unread)}; give them by themselves')
    if columns and not any(_has_columns(held) for held in contents):
        raise ValueError(f'--columns {columns}: {source} holds neither Parquet files nor {" or ".join(METADATA)}; leave it out')
    chosen, note = choose_split([member.name for held in contents for member in held.pictures.values()], split, source)
    elsewhere = []
    for held in contents if chosen not in (None, ALL) else ():
        out = {path: member.name for path, member in held.pictures.items() if split_of(member.name) != chosen}
        elsewhere += out.values()
        held.leave_out(list(out))
    texts, numeric, class_names, more = _find_labels(contents, chosen, columns) if labels else ([], False, (), None)
    if labels and tars:
        manifest = find_manifest(base)   # tars of `imago pack` have one, which names the classes
        class_names = manifest.class_names if manifest else ()
    pictures = [member for held in contents for member in held.pictures.values()]
    texts = texts or [None] * len(pictures)
    order = sorted(range(len(pictures)), key=lambda i: pictures[i].name)
    ignored = sum((held.ignored for held in contents), Counter())
    notes = [text for text in (*notes, note, more) if text]
    listing = Listing([pictures[i] for i in order], [texts[i] for i in order], dict(sorted(ignored.items())),
                      sum(held.members for held in contents), notes, numeric, class_names, elsewhere)
    assert listing.members == len(listing.pictures) + sum(listing.ignored.values()), 'a member is in no list'
    return listing


def locate(source: str) -> list[Path]:
    """Return the folder, the zip or the other files that SOURCE names. ValueError if it names none."""
    path = Path(source)
    if path.is_dir():
        return _tars_in(path) or [path]
    known = path.suffix.lower() in ('.zip', '.tar', '.parquet') or is_archive(path) or IMAGES.fullmatch(path.name)
    if known and path.is_file():
        return [path]
    if '{' in source and source.lower().endswith(('.tar', '.parquet')):
        return [Path(name) for name in expand_braces(source)]
    raise ValueError(f'{source} {"cannot be read as it is" if path.exists() else "does not exist"}; {HOW}')


def _open(paths: Sequence[Path], base: Path, labels: bool, columns: str | None) -> Contents:
    """List a folder, a zip, or files of many pictures that are no tars."""
    if paths[0].is_dir():
        contents = _sort_out(members_of_folder(paths[0]))
    elif paths[0].suffix.lower() == '.zip':
        contents = _sort_out(members_of_zip(paths[0]))
    elif is_archive(paths[0]):
        return read_archive(paths[0])
    else:
        names = (str(path.relative_to(base)) for path in paths)
        contents = _sort_out((name, Member(name, str(base)), '') for name in names)
    if not contents.pictures:
        read_parquet(contents, labels=labels, columns=columns) or read_idx(contents) or read_cifar(contents)
    return contents


def _tars_in(folder: Path) -> list[Path]:
    """List the tars in a folder. ValueError if there are both tars and pictures."""
    tars = sorted(path for path in folder.iterdir() if path.suffix.lower() == '.tar' and not path.is_dir())
    if tars and (pictures := _sort_out(members_of_folder(folder)).pictures):
        raise ValueError(f'{folder} holds both tars ({tars[0].name}) and pictures ({min(pictures)!r}); '
                         f'name the tars ({tars[0]} or a brace pattern), or move them away')
    return tars


def _sort_out(members: Iterable[tuple[str, Member, str]]) -> Contents:
    contents = Contents()
    for path, member, why_not in members:
        contents.add(path, member, why_not)
    return contents


def _find_labels(contents: Sequence[Contents], split: str | None, columns: str | None
                 ) -> tuple[list[str | None], bool, tuple[str, ...], str]:
    """Return the label of each picture, whether labels that are numbers are class numbers, their names, and a note or ''."""
    if contents[0].labels is not None:
        return [contents[0].labels[path] for path in contents[0].pictures], True, contents[0].class_names, ''
    paths = [[tidy(path) for path in held.pictures] for held in contents]
    beside = [labels_beside(inside, held.texts, columns, held.elsewhere) for inside, held in zip(paths, contents)]
    if any(found is not None for found in beside):
        return [label for inside, found in zip(paths, beside) for label in found or [None] * len(inside)], True, (), ''
    found, note = labels_from_folders([without_split(path) if split else path for inside in paths for path in inside])
    return found, False, (), note


def _has_columns(contents: Contents) -> bool:
    return any(isinstance(member, ParquetMember) for member in contents.pictures.values()) or any(
        last(path).lower() in METADATA for path in contents.texts)


def _notes_on_tars(tars: Sequence[Path], contents: Sequence[Contents]) -> list[str]:
    notes = []
    cut = [tar.name for tar in tars if not has_end_mark(tar)]
    if cut:
        notes.append(f'no end mark, so that the last pictures may have been cut off: {listed(cut)}')
    several = [key for _, held in zip(tars, contents) for key, count in Counter(map(_sample_key, held.pictures)).items()
               if count > 1]
    if several:
        notes.append(f'each picture of a WebDataset sample is packed as one of its own; several are in: {listed(several)}')
    return notes


def _sample_key(path: str) -> str:
    """Return WebDataset's key of a path, which ends at the first dot of the name."""
    folder, slash, name = path.rpartition('/')
    return folder + slash + name.partition('.')[0]
