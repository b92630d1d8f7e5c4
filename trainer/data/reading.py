"""Files that may come from strangers are read with limits: only regular files, of limited size, and JSON of limited depth."""

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

MOST_TEXT = 1 << 26   # bytes of a text file; the manifest of a million shards has a fifth of that


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading. Raises ValueError where a pipe would hang or a device never end; OSError like `open`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f'{path} is not a regular file, nor a link to one; put the file itself there')
    return os.fdopen(descriptor, 'rb')


def read_text(path: str | Path, most_bytes: int = MOST_TEXT) -> str:
    """Return the UTF-8 text of a file. Raises ValueError if it is no regular file, no UTF-8 or too large; OSError like `open`."""
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f'{path} has more than {most_bytes} bytes, the most that such a file may have')
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is no UTF-8 text ({error})') from error


def parse_json(text: str) -> Any:
    """Parse like `json.loads`, but make every failure a ValueError, even for brackets too deep and numbers too long."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError('its brackets are nested too deeply') from error
