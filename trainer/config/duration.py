"""Durations are written as people say them: 90s, 4m, 2h or 1h30m."""

import re

from imago.trainer.wording import shown

UNITS = {'d': 86400, 'h': 3600, 'm': 60, 's': 1}    # seconds
_TEXT = re.compile(''.join(f'(?:([0-9]{{1,9}}){unit})?' for unit in UNITS))


def to_seconds(value: object) -> int:
    """Turn `90s`, `4m` or `1h30m` into seconds. Raises ValueError for any other value, a number without a unit among them."""
    found = _TEXT.fullmatch(value) if isinstance(value, str) else None
    if not found or not value:
        raise ValueError(f'{shown(value)} is no duration; give one with its unit, such as 90s, 4m, 2h or 1h30m')
    return sum(int(count or 0) * seconds for count, seconds in zip(found.groups(), UNITS.values(), strict=True))


def in_words(seconds: int) -> str:
    """Return the text that `to_seconds` turns into `seconds`."""
    parts = []
    for unit, each in UNITS.items():
        count, seconds = divmod(seconds, each)
        parts += [f'{count}{unit}'] if count else []
    return ''.join(parts) or '0s'
