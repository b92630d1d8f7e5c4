"""This file says who may use the folder of a run, and to which configuration it belongs."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from imago.trainer.config.load import (
    Config,
    changed_keys,
    is_fixed,
    parse_kept,
    read_yaml,
    to_yaml,
)
from imago.trainer.data.durable import write_text
from imago.trainer.data.locations import could_hold_secrets
from imago.trainer.runs.checkpoint_names import TIME_OVER
from imago.trainer.wording import listed, shown

CONFIG_FILE = 'config.yaml'


class RunFolder:
    """Rank 0 alone makes and holds the folder. The lock goes with the process, however that ends."""

    def __init__(self, config: Config, wait_seconds: float = 10.0):
        self.path = Path(config.run_dir)
        check_same_run(self.path, config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # a rank of a run that was killed a moment ago may still be dying
            self._lock = FileLock(self.path / '.lock', timeout=wait_seconds)    # it follows no link
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(f'run_dir={self.path} is in use by another process; '
                             'stop that one first or choose another run_dir') from error
        except OSError as error:
            raise ValueError(f'run_dir={self.path} cannot be written ({error}); choose another run_dir') from error

    def record(self, config: Config) -> None:
        """Write `config` down, once it is certain that the run goes on under it."""
        (self.path / TIME_OVER).unlink(missing_ok=True)
        text = to_yaml(config)
        write_text(self.path / CONFIG_FILE, text, private=could_hold_secrets(text))

    def mark_time_over(self) -> None:
        """Tell launchers that the run has ended by `stop_after`, and is not to be started again by them."""
        write_text(self.path / TIME_OVER, 'The last start has trained for stop_after; the same command goes on.\n')


def read_config(folder: Path) -> Config:
    """Read the configuration with which a run folder was last used. Raises ValueError if it is not a run folder."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f'{folder} is not a run folder: it has no {CONFIG_FILE}')
    return parse_kept(read_yaml(path), str(path))


def check_same_run(folder: Path, config: Config) -> None:
    """Raise ValueError if `folder` holds a run that cannot go on under `config`, with the keys that differ, or cannot be made."""
    if (folder / CONFIG_FILE).is_file():
        refuse_changes(read_config(folder), config, str(folder))
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f'run_dir={folder} is a file; choose another run_dir')
    elif not (there := nearest(folder)).is_dir() or not os.access(there, os.W_OK):
        why = 'no folder' if not there.is_dir() else 'a folder where you may not write'
        raise ValueError(f'run_dir={folder} cannot be made, as {there} is {why}; choose another run_dir')


def nearest(path: Path) -> Path:
    """Return `path`, or the first folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def refuse_changes(old: Config, new: Config, where: str) -> str:
    """Raise ValueError unless a run under `old` may go on under `new`. Returns the allowed changes, as a text for people."""
    # Names come first, as other changes follow from them.
    changed = sorted(changed_keys(old, new).items(), key=lambda change: not change[0].endswith('.name'))
    changes = {key: f'{key}: {shown(before)} there, {shown(after)} now' for key, (before, after) in changed}
    fixed = [text for key, text in changes.items() if is_fixed(key)]
    if fixed:
        raise ValueError(f'{where} belongs to another configuration ({listed(fixed)}); '
                         'set these back to resume it, or choose another run_dir')
    return listed(changes.values())


def told_of_micro_batches(old: Config, new: Config, ranks: tuple[int, int], batch_norm: bool) -> str:
    """Say in a sentence what another size of micro-batches changes in a run that goes on; '' if nothing. ranks: (before, now)."""
    seen = [config.micro_batch * count for config, count in zip((old, new), ranks, strict=True)]
    if batch_norm and seen[0] != seen[1]:
        return f'batch norm takes its statistics over {seen[1]} pictures (micro_batch x ranks) from here on, {seen[0]} before'
    sizes = [[micro_batch for *_, micro_batch in config.batches()] for config in (old, new)]
    if sizes[0] != sizes[1]:
        return ('with micro-batches of another size the run may take other steps: noise, augmentation and points of penalties '
                'are drawn for each, and the minibatch deviation compares the pictures of one')
    return ''
