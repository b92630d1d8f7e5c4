"""Pictures come from a folder, a zip, or WebDataset tars. Their members are sorted into pictures, labels and others."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imago.trainer.data.manifest import find_manifest
from imago.trainer.pack.labels import SIDECARS, labels_beside, labels_from_folders
from imago.trainer.pack.members import Member, has_end_mark, members_of_folder, members_of_tar, members_of_zip, tidy
from imago.trainer.wording import listed

# Each suffix has a reader of Pillow. Formats that run programs (EPS) or have no signature (TGA) are left out.
FORMATS = {
    '.avif': 'AVIF', '.bmp': 'BMP', '.gif': 'GIF', '.jp2': 'JPEG2000', '.jfif': 'JPEG', '.jpe': 'JPEG', '.jpeg': 'JPEG',
    '.jpg': 'JPEG', '.pbm': 'PPM', '.pgm': 'PPM', '.png': 'PNG', '.pnm': 'PPM', '.ppm': 'PPM', '.tif': 'TIFF',
    '.tiff': 'TIFF', '.webp': 'WEBP',
}
REPLACED, OUTSIDE = 'of the same name as a later one', 'outside, by a .. in the name'
MOST_TARS = 100_000       # that a pattern may name
MOST_CHARACTERS = 4096    # of a pattern; no path is longer
BRACES = re.compile(r'\{([^{}]*)\}')
NUMBERS = re.compile(r'(-?[0-9]{1,9})\.\.(-?[0-9]{1,9})(?:\.\.-?([0-9]{1,9}))?')
LETTERS = re.compile(r'([a-z])\.\.([a-z])|([A-Z])\.\.([A-Z])')


@dataclass(frozen=True)
class Listing:
    """What a source holds: pictures sorted by name, the label of each if any has one, and the number of others by kind.

    `members` counts pictures and others. `numeric` says that labels that are whole numbers are class numbers, whose names
    are `class_names` if known.
    """

    pictures: list[Member]
    labels: list[str | None]
    ignored: dict[str, int]
    members: int
    notes: list[str]
    numeric: bool
    class_names: tuple[str, ...]


@dataclass
class _Contents:
    """The members of a folder, zip or tar, by their paths inside of it."""

    pictures: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, Member] = field(default_factory=dict)  # files that may hold labels, by path with suffix in lower case
    ignored: Counter = field(default_factory=Counter)
    members: int = 0

    def add(self, path: str, member: Member, why_not: str) -> None:
        self.members += 1
        pure = PurePosixPath(path)
        parts, suffix = pure.parts, pure.suffix.lower()
        if why_not:
            self.ignored[why_not] += 1
        elif '..' in parts:
            self.ignored[OUTSIDE] += 1
        elif any(part.startswith('.') or part == '__MACOSX' for part in parts):
            self.ignored['hidden'] += 1
        elif suffix in FORMATS:
            if path in self.pictures:
                self.ignored[REPLACED] += 1  # the later one wins, as when they are extracted
            self.pictures[path] = member
        else:
            self.ignored[suffix or 'no suffix'] += 1
            if suffix in SIDECARS:
                self.texts[tidy(path)[:-len(suffix)] + suffix] = member


def list_source(source: str, *, labels: bool = True) -> Listing:
    """List a folder, `.zip`, `.tar`, or brace pattern of tars. ValueError if it is none of them or holds no picture.

    Labels are looked for unless `labels` is False; ValueError if one cannot be read.
    """
    paths = locate(source)
    tars = paths if paths[0].suffix.lower() == '.tar' and not paths[0].is_dir() else []
    base = Path(os.path.commonpath([path.parent for path in paths]))
    contents = [_sort_out(members_of_tar(tar, base)) for tar in tars] or [
        _sort_out(members_of_folder(paths[0]) if paths[0].is_dir() else members_of_zip(paths[0]))]
    ignored = sum((held.ignored for held in contents), Counter())
    pictures = [member for held in contents for member in held.pictures.values()]
    if not pictures:
        found = listed([f'{count} {kind}' for kind, count in ignored.most_common()]) or 'nothing'
        raise ValueError(f'{source} holds no picture ({", ".join(FORMATS)}), only: {found}')
    notes = _notes_on_tars(tars, contents)
    found, numeric, class_names = [None] * len(pictures), False, ()
    if labels:
        found, numeric, note = _find_labels(contents)
        notes += [note] if note else []
        manifest = find_manifest(base) if tars else None  # tars of `imago pack` have one, which names the classes
        class_names = manifest.class_names if manifest else ()
    order = sorted(range(len(pictures)), key=lambda i: pictures[i].name)
    listing = Listing([pictures[i] for i in order], [found[i] for i in order], dict(sorted(ignored.items())),
                      sum(held.members for held in contents), notes, numeric, class_names)
    assert listing.members == len(listing.pictures) + sum(listing.ignored.values()), 'a member is in no list'
    return listing


def locate(source: str) -> list[Path]:
    """Return the folder, the zip or the tars that SOURCE names. ValueError if it names none."""
    path = Path(source)
    if path.is_dir():
        return _tars_in(path) or [path]
    if path.suffix.lower() in ('.zip', '.tar') and path.is_file():
        return [path]
    if '{' in source and source.lower().endswith('.tar'):
        return [Path(name) for name in expand_braces(source)]
    problem = 'is no folder, .zip or .tar' if path.exists() else 'does not exist'
    raise ValueError(f'{source} {problem}; give a folder of pictures, a .zip, or .tar files like x-{{000..003}}.tar')


def expand_braces(pattern: str) -> list[str]:
    """Return the names that bash makes of `x-{000..003}.tar` or `{a,b}.tar`. ValueError for other patterns or too many names."""
    if len(pattern) > MOST_CHARACTERS:
        raise ValueError(f'the pattern has {len(pattern)} characters, more than {MOST_CHARACTERS}; give a folder of tars')
    names, waiting = {}, [pattern]
    while waiting:
        text = waiting.pop()
        braces = BRACES.search(text)
        if braces is None:
            names[text] = None
            continue
        choices = _choices(braces[1])
        if len(names) + len(waiting) + len(choices) > MOST_TARS:
            raise ValueError(f'{pattern} names more than {MOST_TARS} tars; give a folder of them, or join small tars')
        waiting += [text[:braces.start()] + choice + text[braces.end():] for choice in reversed(choices)]
    return list(names)


def _choices(text: str) -> Sequence[str]:
    """Read what stands between braces: `000..003`, with a step `000..008..2`, `a..c`, or `this,that`."""
    if found := NUMBERS.fullmatch(text):
        ends, step = found.groups()[:2], int(found[3] or 1) or 1
        first, last = map(int, ends)
        padded = any(end.lstrip('-').startswith('0') and len(end.lstrip('-')) > 1 for end in ends)
        width = max(map(len, ends)) if padded else 0
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        if len(numbers) > MOST_TARS:
            raise ValueError(f'{{{text}}} names more than {MOST_TARS} tars; give a folder of them, or join small tars')
        return [f'{number:0{width}d}' for number in numbers]
    if ends := LETTERS.fullmatch(text):
        first, last = (ord(end) for end in ends.groups() if end)
        return [chr(code) for code in (range(first, last + 1) if first <= last else range(first, last - 1, -1))]
    if ',' in text:
        return text.split(',')
    raise ValueError(f'{{{text}}} is no list of names; write e.g. {{000..003}} or {{a,b}}')


def _tars_in(folder: Path) -> list[Path]:
    """List the tars in a folder. ValueError if there are both tars and pictures."""
    tars = sorted(path for path in folder.iterdir() if path.suffix.lower() == '.tar' and not path.is_dir())
    if tars and (pictures := _sort_out(members_of_folder(folder)).pictures):
        raise ValueError(f'{folder} holds both tars ({tars[0].name}) and pictures ({min(pictures)!r}); '
                         f'name the tars ({tars[0]} or a brace pattern), or move them away')
    return tars


def _sort_out(members: Iterable[tuple[str, Member, str]]) -> _Contents:
    contents = _Contents()
    for path, member, why_not in members:
        contents.add(path, member, why_not)
    return contents


def _find_labels(contents: Sequence[_Contents]) -> tuple[list[str | None], bool, str]:
    """Return the label of each picture, whether labels that are numbers are class numbers, and a note or ''."""
    paths = [[tidy(path) for path in held.pictures] for held in contents]
    beside = [labels_beside(inside, held.texts) for inside, held in zip(paths, contents)]
    if any(found is not None for found in beside):
        return [label for inside, found in zip(paths, beside) for label in found or [None] * len(inside)], True, ''
    found, note = labels_from_folders([path for inside in paths for path in inside])
    return found, False, note


def _notes_on_tars(tars: Sequence[Path], contents: Sequence[_Contents]) -> list[str]:
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
