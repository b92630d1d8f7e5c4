"""Class labels: from a file, and numbered."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

HEADER = ['path', 'label']
MAX_CLASSES = 1 << 16  # a larger number is no class


def read_labels(path: Path, names: Sequence[str]) -> list[str]:
    """The label of each of `names`, from CSV `path,label` or, in a `.json`, an object path -> label.

    ValueError if the file is malformed, lacks one of `names`, or has an entry that is none of them.
    """
    if not path.is_file():
        raise ValueError(f'--labels {path} does not exist')
    try:
        labels = _read_json(path) if path.suffix.lower() == '.json' else _read_csv(path)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f'{path} is no labels file ({error}); write lines path,label or a .json object path -> label'
                         ) from error
    unlabelled = [name for name in names if name not in labels]
    if unlabelled:
        raise ValueError(f'{path} has no label for {unlabelled[0]!r} ({len(unlabelled)} such pictures); '
                         'give each picture of SOURCE one, or pack without labels (--no-labels)')
    unknown = sorted(labels.keys() - set(names))
    if unknown:
        raise ValueError(f'{path} names {unknown[0]!r} ({len(unknown)} such entries), which is no picture in SOURCE; '
                         f'paths are relative to SOURCE, like {names[0]!r}')
    return [labels[name] for name in names]


def number_classes(labels: Sequence[str | None], names: Sequence[str], *, numeric: bool,
                   class_names: tuple[str, ...] = ()) -> tuple[tuple[str, ...], list[int | None]]:
    """(class names, a class number for each label); () and Nones if there is no label at all.

    Classes are the distinct labels, sorted. But if `numeric`, and all labels are whole numbers, these are the class
    numbers, called by `class_names` where given. ValueError names a picture without a label among labelled ones.
    """
    if all(label is None for label in labels):
        return (), list(labels)
    if None in labels:
        bare, other = names[labels.index(None)], next(n for n, label in zip(names, labels) if label is not None)
        raise ValueError(f'{bare!r} has no label, {other!r} has one; label all (--labels FILE) or none (--no-labels)')
    if not numeric or not all(re.fullmatch(r'-?[0-9]+', label) for label in labels):
        classes = {name: number for number, name in enumerate(sorted(set(labels)))}
        return tuple(classes), [classes[label] for label in labels]
    numbers = [int(label) for label in labels]
    limit = len(class_names) or MAX_CLASSES
    for number, name in zip(numbers, names, strict=True):
        if not 0 <= number < limit:
            raise ValueError(f'the label {number} of {name!r} is outside 0 to {limit - 1}; number classes from 0, or '
                             'name them')
    return class_names or tuple(str(number) for number in range(max(numbers) + 1)), numbers


def label_of_json(text: str, where: str) -> str | None:
    """The `label` of a sample's JSON object, None if it has none. ValueError if it is neither text nor whole number."""
    fields = json.loads(text)
    return _as_text(fields['label'], where) if isinstance(fields, dict) and fields.get('label') is not None else None


def _as_text(label: object, where: str) -> str:
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise ValueError(f'the label {label!r} of {where!r} is neither a class name nor a whole number')
    return str(label)


def _read_json(path: Path) -> dict[str, str]:
    entries = json.loads(path.read_text(encoding='utf-8-sig'))
    if not isinstance(entries, dict):
        raise ValueError(f'{path} is no JSON object path -> label')
    return {_tidy(name): _as_text(label, name) for name, label in entries.items()}


def _read_csv(path: Path) -> dict[str, str]:
    labels = {}
    # surrogateescape: names of files need not be UTF-8; utf-8-sig: spreadsheets write a byte order mark
    with open(path, newline='', encoding='utf-8-sig', errors='surrogateescape') as file:
        rows = csv.reader(file)
        for row in rows:
            if not row or (rows.line_num == 1 and [cell.strip().lower() for cell in row] == HEADER):
                continue
            if len(row) != 2:
                raise ValueError(f'{path} line {rows.line_num} has {len(row)} columns: {row}; write path,label')
            name, label = _tidy(row[0]), row[1].strip()
            if labels.setdefault(name, label) != label:
                raise ValueError(f'{path} line {rows.line_num} labels {name!r} {label!r}, after {labels[name]!r}')
    return labels


def _tidy(name: str) -> str:
    return str(PurePosixPath(name))
