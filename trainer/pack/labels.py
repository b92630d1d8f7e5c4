"""This module finds class labels, in a labels file, in small files beside the pictures or in folders, and numbers them."""

import os
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from reprlib import Repr
from typing import Any

from imago.trainer.data.manifest import FILE_NAME
from imago.trainer.data.reading import open_regular, parse_json
from imago.trainer.pack.contents import METADATA, SIDECARS
from imago.trainer.pack.members import Member, tidy
from imago.trainer.pack.tables import FORMS, Table, last
from imago.trainer.wording import listed

MAX_CLASSES = 1 << 16    # a label with a larger number is no class
MOST_LABELS = 1 << 28    # bytes of a labels file; five million lines of 50 bytes
FRACTION = re.compile(r'[-+]?(\d+\.\d*|\.?\d+)(e[-+]?\d+)?', re.IGNORECASE)
HOW = 'write lines path,label, or a .json object path -> label, or {"labels": [[path, class], ...]}'
OTHERWISE = 'give labels by --labels FILE, or pack without (--no-labels)'

_repr = Repr()
_repr.maxstring = _repr.maxother = 200
shown = _repr.repr       # it shortens a stranger's value, which may be long


def read_labels(path: Path, names: Sequence[str], columns: str | None = None, elsewhere: Sequence[str] = ()
                ) -> tuple[list[str | None], str]:
    """Return the label of each of `names`, and a note on the columns that were read, or ''.

    The file is a table (`.csv` or the like, `.jsonl`), two of whose `columns` hold paths and labels, or a `.json`: an object
    path -> label, or StyleGAN's form. All are None where StyleGAN's form says that there are none. ValueError if the file is
    malformed, lacks one of `names`, or has an entry that is neither one of them nor one of those `elsewhere`.
    """
    where = str(path)
    try:
        with open_regular(path) as file:
            data = file.read(MOST_LABELS + 1)
    except FileNotFoundError as error:
        raise ValueError(f'--labels {path} does not exist') from error
    if len(data) > MOST_LABELS:
        raise ValueError(f'--labels {path} has more than {MOST_LABELS} bytes, the most that such a file may have')
    if path.suffix.lower() != '.json':
        table = Table(data, where, names, columns)
        return _match(_from_table(table), names, where, elsewhere), table.note
    if columns:
        raise ValueError(f'--columns {columns} is for tables, and {path} is none; leave it out')
    return _match(_parse_json(data, where), names, where, elsewhere), ''


def labels_beside(paths: Sequence[str], texts: Mapping[str, Member], columns: str | None = None,
                  elsewhere: Sequence[str] = ()) -> list[str | None] | None:
    """Return the label of each picture if its folder, zip or tar holds labels itself, else None.

    `paths` and the keys of `texts` are seen from there; pictures that are `elsewhere` may have labels too. Labels are in
    StyleGAN's `dataset.json`, in Hugging Face's `metadata.csv` or `metadata.jsonl`, or in `KEY.cls` (text) or `KEY.json`
    (its field `label`) beside `KEY.png`, in any order. ValueError if one of them cannot be read or makes no sense.
    """
    if not paths:
        return None
    for prefix in accumulate(_common_folders(paths), '{}{}/'.format, initial=''):
        entries = _stylegan(texts.get(prefix + FILE_NAME))
        if entries is not None:
            where = texts[prefix + FILE_NAME].name
            return _match(_as_labels(entries, where), [path.removeprefix(prefix) for path in paths], where,
                          [path.removeprefix(prefix) for path in elsewhere])
    tables = [path for path in texts if last(path).lower() in METADATA]
    labels: dict[str, str] = {}
    for path in tables:
        folder, name = path.removesuffix(last(path)), texts[path].name
        try:
            data = _content(texts[path], MOST_LABELS)
        except ValueError as error:
            raise ValueError(f'{name} cannot be read ({error}); mend it, or {OTHERWISE}') from error
        table = Table(data, name, paths, columns, strict=True)
        if table.label is not None:
            labels |= {tidy(folder + inside): label for inside, label in _from_table(table).items()}
    if labels:
        return _match(labels, paths, listed([texts[path].name for path in tables]), elsewhere)
    beside = [_label_beside(path, texts) for path in paths]
    return None if all(label is None for label in beside) else beside


def labels_from_folders(paths: Sequence[str]) -> tuple[list[str | None], str]:
    """Return the folder that is each picture's label, and a note where only some pictures have one.

    It is the outermost folder below those that hold all pictures. If one picture has none there, all labels are None.
    """
    depth = len(_common_folders(paths))
    parts = [PurePosixPath(path).parts for path in paths]
    loose = [path for path, inside in zip(paths, parts) if len(inside) < depth + 2]
    if not loose:
        return [inside[depth] for inside in parts], ''
    mixed = len(loose) < len(paths)
    note = f'no labels: {len(loose)} pictures, e.g. {loose[0]!r}, are in no class folder (--labels FILE gives labels)'
    return [None] * len(paths), note if mixed else ''


def number_classes(labels: Sequence[str | None], names: Sequence[str], *, numeric: bool,
                   class_names: tuple[str, ...] = ()) -> tuple[tuple[str, ...], list[int | None]]:
    """Return (class names, a class number for each label); they are () and Nones if there is no label at all.

    Classes are the distinct labels, sorted. But if `numeric` is set and all labels are whole numbers, these are the class
    numbers, and `class_names` are their names where given. ValueError names a picture without a label among labelled ones,
    and labels that are no classes.
    """
    if all(label is None for label in labels):
        return (), [None] * len(labels)
    if None in labels:
        bare, other = names[labels.index(None)], next(n for n, label in zip(names, labels) if label is not None)
        raise ValueError(f'{bare!r} has no label, {other!r} has one; label all (--labels FILE) or none (--no-labels)')
    if numeric:
        _check_classes(labels, names)
    if not numeric or not all(re.fullmatch(r'-?[0-9]+', label) for label in labels):
        classes = {name: number for number, name in enumerate(sorted(set(labels)))}
        return tuple(classes), [classes[label] for label in labels]
    limit = len(class_names) or MAX_CLASSES
    for label, name in zip(labels, names, strict=True):
        if len(label) > 20 or not 0 <= int(label) < limit:
            raise ValueError(f'the label {shown(label)} of {name!r} is outside 0 to {limit - 1}; number classes from 0, or '
                             'name them')
    numbers = [int(label) for label in labels]
    return class_names or tuple(str(number) for number in range(max(numbers) + 1)), numbers


def _check_classes(labels: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError unless each label, which is not the name of a folder, can be one class."""
    def refuse(label: str, why: str) -> None:
        raise ValueError(f'the label {shown(label)} of {names[labels.index(label)]!r} {why}, or pack without labels '
                         '(--no-labels)')

    distinct = set(labels)
    if '' in distinct:
        refuse('', 'is empty; write a class name or number')
    if all(FRACTION.fullmatch(label) for label in distinct) and not all(re.fullmatch('-?[0-9]+', label) for label in distinct):
        fraction = next(label for label in labels if not re.fullmatch('-?[0-9]+', label))
        refuse(fraction, 'is a value on a scale, no class; write whole numbers from 0, or names')
    several = next((label for label in labels if re.search('[;|]', label)), None)
    if several is not None:
        refuse(several, 'looks like several labels, and a picture has one class; write one, without ; and |')


def _common_folders(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that all paths lie in, outermost first."""
    return tuple(os.path.commonprefix([PurePosixPath(path).parts[:-1] for path in paths]))


def _stylegan(member: Member | None) -> dict | None:
    """Return what a `dataset.json` of StyleGAN's form holds: {"labels": [[path, class], ...]} or {"labels": null}; else None."""
    if member is None:
        return None
    try:
        entries = parse_json(_text(member, MOST_LABELS))
    except ValueError as error:
        raise ValueError(f'{member.name} cannot be read ({error}); mend it, or {OTHERWISE}') from error
    return entries if _has_stylegans_form(entries) else None


def _has_stylegans_form(entries: object) -> bool:
    return isinstance(entries, dict) and isinstance(entries.get('labels', ''), (list, type(None)))


def _label_beside(path: str, texts: Mapping[str, Member]) -> str | None:
    """Return the label of the picture `a/b.c.png` from `a/b.c.cls` or `.json`, or from those of its WebDataset key, `a/b`."""
    folder, slash, base = path.rpartition('/')
    for stem in dict.fromkeys((base.rpartition('.')[0], base.partition('.')[0])):
        for suffix, most_bytes in SIDECARS.items():
            member = texts.get(folder + slash + stem + suffix)
            if member is None:
                continue
            try:
                text = _text(member, most_bytes)
                label = text.strip() if suffix == '.cls' else _label_of_json(text, member.name)
            except ValueError as error:
                raise ValueError(f'the label in {member.name!r} cannot be read ({error}); mend it, or {OTHERWISE}') from error
            if label is not None:
                return label
    return None


def _text(member: Member, most_bytes: int) -> str:
    return _content(member, most_bytes).decode()


def _content(member: Member, most_bytes: int) -> bytes:
    try:
        with member.open(most_bytes) as file:
            return file.read()
    except Exception as error:  # damaged archives raise nearly every kind of error
        raise ValueError(str(error) or type(error).__name__) from error


def _label_of_json(text: str, where: str) -> str | None:
    """Return the `label` of a sample's JSON object, or None. ValueError if it is neither text nor a whole number."""
    fields = parse_json(text)
    return as_text(fields['label'], where) if isinstance(fields, dict) and fields.get('label') is not None else None


def as_text(label: object, where: str) -> str:
    """Return a label as text. ValueError unless it is a class name or a whole number."""
    if isinstance(label, float):
        raise ValueError(f'the label {label} of {where!r} is a value on a scale, no class; write whole numbers from 0, or '
                         'names, or pack without labels (--no-labels)')
    if isinstance(label, list):
        raise ValueError(f'{where!r} has several labels, {shown(label)}, and a picture has one class; write one, or pack '
                         'without labels (--no-labels)')
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise ValueError(f'the label {shown(label)} of {where!r} is neither a class name nor a whole number')
    return str(label)


def _parse_json(data: bytes, where: str) -> dict[str, str] | None:
    try:
        entries = parse_json(data.decode('utf-8-sig'))
    except ValueError as error:
        raise ValueError(f'{where} is no labels file ({error}); {HOW}') from error
    return _as_labels(entries, where)


def _as_labels(entries: Any, where: str) -> dict[str, str] | None:
    """Return {path: label}, or None if StyleGAN's `labels` is null."""
    if _has_stylegans_form(entries):
        entries = entries['labels']
        if entries is None:
            return None
        odd = next((pair for pair in entries if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str))),
                   None)
        if odd is not None:
            raise ValueError(f'{where}: {shown(odd)} in its labels is no pair [path, class]')
        pairs = entries
    elif isinstance(entries, dict):
        pairs = entries.items()
    else:
        raise ValueError(f'{where} is no labels file (no JSON object); {HOW}')
    labels: dict[str, str] = {}
    for name, label in pairs:
        _add(labels, name, as_text(label, name), where)
    return labels


def _from_table(table: Table) -> dict[str, str]:
    """Return {path: label}."""
    labels: dict[str, str] = {}
    for where, name, label in table:
        _add(labels, name, as_text(label, where).strip(), where)
    return labels


def _add(labels: dict[str, str], name: str, label: str, where: str) -> None:
    name = tidy(name)
    if labels.setdefault(name, label) != label:
        raise ValueError(f'{where} labels {shown(name)} {shown(label)}, after {shown(labels[name])}')


def _match(labels: Mapping[str, str] | None, names: Sequence[str], where: str, elsewhere: Sequence[str] = ()) -> list[str | None]:
    """Return the label of each of `names`, all None where `labels` is None. Paths are matched in one of the FORMS.

    ValueError unless both have the same pictures; there may also be labels of pictures that are `elsewhere`.
    """
    if labels is None:
        return [None] * len(names)
    tidied = [tidy(name) for name in names]
    for form in FORMS:
        keyed, keys = {form(name): label for name, label in labels.items()}, [form(name) for name in tidied]
        if len(keyed) == len(labels) and len(set(keys)) == len(keys) and keyed.keys() >= set(keys):
            break
    else:
        keyed, keys = dict(labels), tidied
        form = str
    unlabelled = [name for name, key in zip(tidied, keys) if key not in keyed]
    if unlabelled:
        raise ValueError(f'{where} has no label for {len(unlabelled)} pictures: {listed([shown(name) for name in unlabelled])}; '
                         'give each picture of SOURCE one, or pack without labels (--no-labels)')
    unknown = sorted(keyed.keys() - set(keys) - {form(tidy(name)) for name in elsewhere})
    if unknown:
        raise ValueError(f'{where} labels {len(unknown)} paths that are no picture in SOURCE: '
                         f'{listed([shown(name) for name in unknown])}; paths are as seen from SOURCE, like {tidied[0]!r}')
    return [keyed[key] for key in keys]
