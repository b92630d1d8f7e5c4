"""This module matches two sources of pictures by name, to make samples of two pictures."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from imago.trainer.pack.members import Member, tidy
from imago.trainer.pack.sources import list_source
from imago.trainer.wording import listed


def partners_of(pictures: Sequence[Member], source: str, other: str, split: str | None = None) -> list[Member]:
    """Return, for each of `pictures` of `source`, the picture of `other` that has the same path, whatever the suffixes.

    ValueError names pictures that have no partner, in either source, and those whose names only differ in their suffixes.
    """
    there = _by_stem(list_source(other, labels=False, split=split).pictures, other)
    here = _by_stem(pictures, source)
    lonely = [f'{len(names)} pictures of {one} have no partner of the same name in {another}: {listed(names)}'
              for one, another, names in ((source, other, sorted(here.keys() - there.keys())),
                                          (other, source, sorted(there.keys() - here.keys()))) if names]
    if lonely:
        raise ValueError(f'{"; ".join(lonely)}; name both pictures of a pair alike, and move the others away')
    return [there[_stem(picture)] for picture in pictures]


def _by_stem(pictures: Sequence[Member], source: str) -> dict[str, Member]:
    found, twice = {}, []
    for picture in pictures:
        if found.setdefault(_stem(picture), picture) is not picture:
            twice.append(picture.name)
    if twice:
        raise ValueError(f'{len(twice)} pictures of {source} have the name of another one but for the suffix: {listed(twice)}; '
                         'rename them, or move them away')
    return found


def _stem(picture: Member) -> str:
    """Return the picture's path without its suffix."""
    return str(PurePosixPath(tidy(picture.name)).with_suffix(''))
