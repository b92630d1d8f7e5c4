"""Sharded checkpoints: written aside in the background, checksummed, then renamed. A final name means complete.

    checkpoints/000000012000/   __0_0.distcp ... .metadata   torch.distributed.checkpoint
                                complete.json                what it is, and size and CRC-32 of each file
"""

import json
import math
import shutil
import threading
import warnings
import zlib
from concurrent.futures import Future
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from trainer import dist
from trainer.checkpoint_reader import first_cause, is_plain_name, load_tensors
from trainer.data.locations import could_hold_secrets
from trainer.durable import sync_folder, write_text
from trainer.state import TrainState

SEAL = 'complete.json'
_ASIDE = '.writing-'
_CHUNK = 1 << 24
# said at each save and load of a single process
warnings.filterwarnings('ignore', message='torch.distributed is disabled, unavailable or uninitialized')


class CheckpointError(ValueError):
    """A checkpoint could not be written. The ones before it are untouched."""


class Checkpoints:
    """The checkpoints of one run. All ranks call each method together."""

    def __init__(self, folder: Path, keep: int, about: dict):
        """`about`: JSON facts to keep with each checkpoint, e.g. the configuration."""
        self.folder, self.keep, self.about = folder, keep, about
        self._group = dist.new_group()
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self.last_saved: int | None = None
        self.best: int | None = None        # images shown at the checkpoint that is kept for its score
        if dist.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(_ASIDE + '*'):
                leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover)
        dist.barrier()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def newest(self, most: float = math.inf) -> tuple[Path, dict] | None:
        """The newest checkpoint that is whole, of at most `most` images, and what it says of itself; None if there are none.

        Warns of each damaged one it passes over and renames it, as it must not count as one of the last k.
        ValueError if all are damaged.
        """
        damaged = []
        for path in reversed([path for path in list_checkpoints(self.folder) if int(path.name) <= most]):
            damage = [text for text in dist.gather(find_damage(path, dist.rank(), dist.world_size())) if text]
            if not damage:
                if dist.is_main():
                    for other in damaged:
                        _move_aside(other, 'damaged-')
                dist.barrier()
                return path, read_seal(path)
            dist.print0(f'warning: checkpoint {path} is damaged ({damage[0]})')
            damaged.append(path)
        if damaged:
            raise ValueError(f'all {len(damaged)} checkpoints in {self.folder} are damaged; restore one, '
                             'or choose another run_dir to start anew')
        return None

    def abandon(self, nimg: int, prefix: str) -> None:
        """Set aside, under `prefix` and their names, the checkpoints of more than `nimg` images."""
        forget_best = self.best is not None and self.best > nimg
        if dist.is_main():
            if forget_best:
                (self.folder / 'best').unlink(missing_ok=True)
            for path in list_checkpoints(self.folder):
                if int(path.name) > nimg:
                    _move_aside(path, prefix)
        self.best = None if forget_best else self.best
        dist.barrier()

    def load(self, path: Path, state: TrainState) -> None:
        """Fill `state` in place from one written on any number of ranks. ValueError if it does not fit or is forged."""
        tree = state.tree()
        load_tensors(tree, path, process_group=self._group, no_dist=self._group is None)
        state.take(tree)
        self.last_saved = state.nimg

    def save(self, state: TrainState, best: bool = False) -> None:
        """Copy the state now, write it in the background. Waits for the save before, if that still runs."""
        self.wait()
        if best:
            self.best = state.nimg
        if self.last_saved == state.nimg:
            return
        name = f'{state.nimg:012d}'
        aside = self.folder / (_ASIDE + name)
        seal = {'nimg': state.nimg, 'step': state.step, 'world_size': dist.world_size(), **self.about}
        written = dcp.async_save(state.tree(), checkpoint_id=aside, process_group=self._group, no_dist=self._group is None)
        self._thread = threading.Thread(target=self._commit, args=(written, aside, self.folder / name, seal), daemon=True)
        self._thread.start()
        self.last_saved = state.nimg

    def wait(self) -> None:
        """Until the save under way is complete. CheckpointError, on all ranks, if it failed."""
        if self._thread is not None:
            with dist.patience('saving a checkpoint'):
                self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise CheckpointError(error)

    def _commit(self, written: Future, aside: Path, final: Path, seal: dict) -> None:
        """In the background."""
        try:
            self._seal(written, aside, final, seal)
        except Exception as error:  # in a thread it would otherwise pass for success
            self._error = f'checkpoint {final} could not be written: {error!r}'

    def _seal(self, written: Future, aside: Path, final: Path, seal: dict) -> None:
        """Wait for the bytes, then seal, rename, prune. All ranks learn of a failure on one."""
        try:
            written.result()
            failure, sums = None, _checksums(aside, dist.rank(), dist.world_size())
        except (Exception, CheckpointException) as error:  # whatever it is, all ranks must hear of it
            failure, sums = first_cause(error), {}
        outcomes = dist.gather((failure, sums), self._group)
        failures = [failure for failure, _ in outcomes if failure]
        if dist.is_main() and not failures:
            seal['files'] = {name: entry for _, part in outcomes for name, entry in part.items()}
            try:
                _seal_and_rename(aside, final, seal)
                prune(self.folder, self.keep, self.best)
            except OSError as error:
                failures.append(str(error))
        failures += [text for text in dist.gather(failures[0] if failures else None, self._group) if text]
        if failures:
            free = shutil.disk_usage(self.folder).free / 1e9
            if dist.is_main():
                shutil.rmtree(aside, ignore_errors=True)
            good = list_checkpoints(self.folder)
            self._error = (f'checkpoint {final} could not be written: {failures[0]} ({free:.3f} GB were free); '
                           f'the last good one is {good[-1].name if good else "none"}: make room and run the same command again')


def _move_aside(path: Path, prefix: str) -> None:
    kept = path.with_name(prefix + path.name)
    if kept.exists():
        shutil.rmtree(kept)
    path.rename(kept)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob('[0-9]*') if path.name.isdigit())


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` and the best, which gets the link `best`."""
    for path in list_checkpoints(folder):
        if int(path.name) == best:
            link = folder / (_ASIDE + 'best')
            link.symlink_to(path.name)
            link.rename(folder / 'best')
    for path in list_checkpoints(folder)[:-keep]:
        if int(path.name) == best:
            continue
        # under its old name a half-deleted folder would look complete
        aside = path.with_name(_ASIDE + 'old-' + path.name)
        path.rename(aside)
        shutil.rmtree(aside)


def read_seal(path: Path) -> dict:
    """What a checkpoint says about itself. ValueError if it is not one."""
    try:
        return json.loads((path / SEAL).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} is not a complete checkpoint ({error})') from None


def find_damage(path: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None. Of its files only every `parts`-th is read, from number `part`."""
    try:
        files = read_seal(path)['files']
        if '.metadata' not in files:
            return 'its seal lists no .metadata'
        for name in sorted(files)[part::parts]:
            if not is_plain_name(name):
                return f'its seal lists {name!r}, which is no file in it'
            found = _checksum(path / name)
            if found != files[name]:
                return f'{name} has (bytes, CRC-32) {found}, not {files[name]}'
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def _checksums(folder: Path, part: int, parts: int) -> dict[str, list[int]]:
    return {path.name: _checksum(path) for path in sorted(folder.iterdir())[part::parts]}


def _checksum(path: Path) -> list[int]:
    size = crc = 0
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _seal_and_rename(aside: Path, final: Path, seal: dict) -> None:
    text = json.dumps(seal, indent=1)
    write_text(aside / SEAL, text, private=could_hold_secrets(text))
    sync_folder(aside)
    aside.rename(final)
    sync_folder(final.parent)
