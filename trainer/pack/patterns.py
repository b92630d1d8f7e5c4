"""This module expands patterns of names like x-{000..003}.tar as bash does."""

import re
from collections.abc import Sequence

MOST_FILES = 100_000      # that a pattern may name
MOST_CHARACTERS = 4096    # of a pattern; no path is longer
BRACES = re.compile(r'\{([^{}]*)\}')
NUMBERS = re.compile(r'(-?[0-9]{1,9})\.\.(-?[0-9]{1,9})(?:\.\.-?([0-9]{1,9}))?')
LETTERS = re.compile(r'([a-z])\.\.([a-z])|([A-Z])\.\.([A-Z])')


def expand_braces(pattern: str) -> list[str]:
    """Return the names that bash makes of `x-{000..003}.tar` or `{a,b}.tar`. ValueError for other patterns or too many names."""
    if len(pattern) > MOST_CHARACTERS:
        raise ValueError(f'the pattern has {len(pattern)} characters, more than {MOST_CHARACTERS}; give a folder of files')
    names, waiting = {}, [pattern]
    while waiting:
        text = waiting.pop()
        braces = BRACES.search(text)
        if braces is None:
            names[text] = None
            continue
        choices = _choices(braces[1])
        if len(names) + len(waiting) + len(choices) > MOST_FILES:
            raise ValueError(f'{pattern} names more than {MOST_FILES} files; give a folder of them, or join small ones')
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
        if len(numbers) > MOST_FILES:
            raise ValueError(f'{{{text}}} names more than {MOST_FILES} files; give a folder of them, or join small ones')
        return [f'{number:0{width}d}' for number in numbers]
    if letters := LETTERS.fullmatch(text):
        first, last = (ord(end) for end in letters.groups() if end)
        return [chr(code) for code in (range(first, last + 1) if first <= last else range(first, last - 1, -1))]
    if ',' in text:
        return text.split(',')
    raise ValueError(f'{{{text}}} is no list of names; write e.g. {{000..003}} or {{a,b}}')
