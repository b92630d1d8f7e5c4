"""What the folders of checkpoints are called. Torch-free, as launchers look at them too."""

import re
from pathlib import Path

NAME = r'[0-9]{12,}'    # images shown, in ASCII digits


def name_of(nimg: int) -> str:
    return f'{nimg:012d}'


def is_name(name: str) -> bool:
    """Whether `name_of` gives it."""
    return re.fullmatch(NAME, name) is not None and name == name_of(int(name))


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first. Each has its name only since it was complete; of others' names nothing is read."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if is_name(path.name) and path.is_dir()), key=lambda path: int(path.name))
