"""This module tells the splits of a dataset, for training, validation and test, by the names of its folders and files."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from imago.trainer.wording import shown

NAMES = {'train': ('train', 'training'), 'validation': ('validation', 'valid', 'val', 'dev'),
         'test': ('test', 'testing', 'eval', 'evaluation')}
SPLITS = {name: split for split, names in NAMES.items() for name in names}
ALL = 'all'
SHARD = re.compile(rf'(?:.*[-._ ])?({"|".join(SPLITS)})(?:[-._ 0-9].*)?\.(?:parquet|tar)', re.IGNORECASE)


def split_of(path: str) -> str | None:
    """Return the split that the outermost folder or shard with such a name tells: train/, or train-00000-of-00002.parquet."""
    *folders, name = PurePosixPath(path).parts
    for part in folders:
        found = SHARD.fullmatch(part)
        if split := SPLITS.get(found[1].lower() if found else part.lower()):
            return split
    return None


def without_split(path: str) -> str:
    """Return `path` without the folder that tells its split."""
    parts = PurePosixPath(path).parts
    place = next((i for i, part in enumerate(parts[:-1]) if part.lower() in SPLITS), None)
    return path if place is None else str(PurePosixPath(*parts[:place], *parts[place + 1:]))


def choose_split(names: Sequence[str], wanted: str | None, source: str) -> tuple[str | None, str]:
    """Return the split to pack, ALL for all, or None where there are none, and a note where there are several splits.

    There are splits where each of `names` tells one. The split is train unless `wanted`. ValueError if there is no such split.
    """
    found = [split_of(name) for name in names]
    counts = Counter(found) if None not in found else Counter()
    told = ', '.join(f'{split} {counts[split]}' for split in NAMES if split in counts)
    if wanted == ALL or wanted is None and len(counts) < 2:
        return (ALL if wanted and counts else None), ''
    split = SPLITS.get((wanted or 'train').lower())
    if split not in counts:
        example = next((name for name, own in zip(names, found) if own is None), names[0])
        there = f'its splits are: {told}' if counts else f'it has none, as no folder tells one of {shown(example)}'
        mend = f'choose one by --split, such as {told.partition(" ")[0]}, or all' if counts else 'leave --split out'
        raise ValueError(f'{source} has no split {wanted or "train"} ({there}); {mend}')
    note = f'the split {split} is packed, of {told}; --split chooses another, or all' if len(counts) > 1 else ''
    return split, note
