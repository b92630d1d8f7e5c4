"""This file names the folders of checkpoints, and what says how a run has ended. It does not need torch, as launchers look at
them too."""

import re
from pathlib import Path

NAME = r'[0-9]{12,}'    # images shown, in ASCII digits
TIME_OVER = 'time-over'   # a file in a run's folder: the last start has trained for `stop_after`


def name_of(nimg: int) -> str:
    return f'{nimg:012d}'


def is_name(name: str) -> bool:
    """Tell whether `name_of` can give this name."""
    return re.fullmatch(NAME, name) is not None and name == name_of(int(name))


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, oldest first. Each got its name when it was complete; other names are ignored."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if is_name(path.name) and path.is_dir()), key=lambda path: int(path.name))
