"""Words for people: a message names a few of many, the likeliest first."""

import difflib
from collections.abc import Collection

MOST_NAMED = 10


def listed(names: Collection[object], wanted: str | None = None) -> str:
    """`a, b, c` of at most ten `names`, and how many there are; with `wanted`, those that are spelled most like it first."""
    words = [str(name) for name in names]
    if len(words) <= MOST_NAMED:
        return ', '.join(words)
    if wanted is not None:
        words = list(dict.fromkeys([*difflib.get_close_matches(wanted, words, MOST_NAMED, cutoff=0.3), *words]))
    return f'{", ".join(words[:MOST_NAMED])} ... ({len(names)} in all)'
