"""Messages to people are short: they name a few of many things, the likeliest first."""

import difflib
import re
from collections.abc import Collection

MOST_NAMED = 10
MOST_SHOWN = 200      # characters of a value in a message
MOST_TOLD = 1500      # of a message
_CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def listed(names: Collection[object], wanted: str | None = None) -> str:
    """Return `a, b, c` of at most ten `names`, and how many there are; those spelled most like `wanted` come first."""
    words = [str(name) for name in names]
    if len(words) <= MOST_NAMED:
        return ', '.join(words)
    if wanted is not None:
        words = list(dict.fromkeys([*difflib.get_close_matches(wanted, words, MOST_NAMED, cutoff=0.3), *words]))
    return f'{", ".join(words[:MOST_NAMED])} ... ({len(names)} in all)'


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """Return a value as people type it, in one line of about `most` characters."""
    if value is None or isinstance(value, bool):
        return 'null' if value is None else str(value).lower()
    return one_line(str(value), most) or "''"


def one_line(text: str, most: int = MOST_TOLD) -> str:
    """Return `text` with line ends and other control characters escaped; a longer text is cut, and its length is told."""
    kept = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text[:most])
    return kept if len(text) <= most else f'{kept} ... ({len(text)} characters)'


def duration(seconds: float) -> str:
    """Return a time as `2d03h`, `1h05m` or `0m20s`."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f'{days}d{hours:02}h'
    return f'{hours}h{minutes:02}m' if hours else f'{minutes}m{seconds:02}s'
