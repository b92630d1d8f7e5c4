"""Files and folders that survive a crash: on the disk before their name says so."""

import os
from pathlib import Path


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Put a whole file in place in one step, over the old one if there is one; a private one is for its owner alone."""
    aside = path.with_name(path.name + '.tmp')
    with open(aside, 'w') as file:
        if private:
            os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
