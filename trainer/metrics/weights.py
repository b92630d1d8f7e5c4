"""This file keeps the files of feature networks, and checks that they are what they should be."""

import hashlib
import os
import shutil
import sys
import urllib.request
from pathlib import Path

from filelock import FileLock

from imago.trainer.data.durable import write_text
from imago.trainer.data.reading import open_regular

INCEPTION_FILE = 'inception-2015-12-05.pt'   # clean-fid's wrapper looks for this name
TIMEOUT = 60   # seconds without a byte


def cache_folder() -> Path:
    """Return IMAGO_METRICS_CACHE, or imago/metrics in the user's cache."""
    named = os.environ.get('IMAGO_METRICS_CACHE')
    return Path(named) if named else Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'imago' / 'metrics'


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file. Raises ValueError if it is no regular file, and OSError as `open` does."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def fetch_inception(folder: Path) -> Path:
    """Return the path of Inception's weights in `folder`. If they are missing, one process fetches them while others wait.

    Their SHA-256 is kept beside them and checked at each use. Raises ValueError if they cannot be had, or have changed since.
    """
    path = folder / INCEPTION_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix('.lock')):
            if not path.is_file():
                _fetch(path)
    except OSError as error:
        raise ValueError(f'--extractor inception: its weights are not in {folder} and cannot be fetched ({error}); copy '
                         f'{INCEPTION_FILE} there, give its path, or take --extractor effnet_lite0') from error
    check_inception(path)
    return path


def check_inception(path: Path) -> None:
    """Raise ValueError unless weights in the cache are those that were fetched or first used."""
    record, found = _record_of(path), sha256_of(path)
    if not record.is_file():
        write_text(record, found + '\n')
    elif record.read_text().strip() != found:
        raise ValueError(f'{path} has SHA-256 {found}, {record} says {record.read_text().strip()}: it is damaged; '
                         'remove both')


def _fetch(path: Path) -> None:
    from cleanfid.downloads_helper import inception_url
    aside = path.with_suffix('.part')
    print(f'fetching {inception_url} to {path.parent}', file=sys.stderr, flush=True)
    with urllib.request.urlopen(inception_url, timeout=TIMEOUT) as body, open(aside, 'wb') as out:
        shutil.copyfileobj(body, out)
        length = body.headers.get('Content-Length')
        if length is not None and out.tell() != int(length):
            raise OSError(f'{out.tell()} of {length} bytes came')
        out.flush()
        os.fsync(out.fileno())
    write_text(_record_of(path), sha256_of(aside) + '\n')
    os.replace(aside, path)


def _record_of(path: Path) -> Path:
    return path.with_suffix('.sha256')
