"""Checkpoints are sharded. Each is written aside in the background, gets checksums, and is renamed: a final name means that
it is complete.

    checkpoints/000000012000/   __0_0.distcp ... .metadata   torch.distributed.checkpoint
                                complete.json                facts of `Seal`, size and CRC-32 of each file, and its own checksum
"""

import itertools
import json
import math
import os
import re
import shutil
import threading
import warnings
import zlib
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from imago.trainer.data.durable import sync_folder
from imago.trainer.data.locations import could_hold_secrets
from imago.trainer.data.reading import open_regular
from imago.trainer.data.sealed import write_sealed
from imago.trainer.engine.state import TrainState
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint_names import NAME, list_checkpoints, name_of
from imago.trainer.runs.checkpoint_reader import CheckpointReader, first_cause, is_plain_name, load_tensors
from imago.trainer.runs.seal import SEAL, read_seal

_ASIDE = '.writing-'
_LEFTOVER = re.compile(rf'\.writing-(old-)?{NAME}')
_CHUNK = 1 << 24
# A single process gets this warning at each save and load.
warnings.filterwarnings('ignore', message='torch.distributed is disabled, unavailable or uninitialized')


class CheckpointError(ValueError):
    """A checkpoint could not be written. The ones before it are untouched."""


class Checkpoints:
    """Handles the checkpoints of one run. All ranks call each method together."""

    def __init__(self, folder: Path, keep: int, about: dict):
        """`about` holds JSON facts that are kept with each checkpoint, e.g. the configuration."""
        self.folder, self.keep, self.about = folder, keep, about
        self._group = dist.new_group()
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self.last_saved: int | None = None
        self.best: int | None = None        # images shown at the checkpoint that is kept for its score
        dist.together(lambda: _sweep(folder), main_only=True)

    @property
    def failed(self) -> bool:
        return self._error is not None

    def newest(self, most: float = math.inf) -> tuple[Path, dict] | None:
        """Return the newest whole checkpoint of at most `most` images, and the facts in its seal; None if there is none.

        Warns of each damaged one that it passes over and renames it, as it must not count as one of the last k.
        Raises ValueError if all are damaged.
        """
        damaged, damage = [], []
        paths = dist.from_main(lambda: list_checkpoints(self.folder))
        for path in reversed([path for path in paths if int(path.name) <= most]):
            damage = [text for text in dist.gather(find_damage(path, dist.rank(), dist.world_size())) if text]
            if not damage:
                dist.together(lambda: _move_all_aside(damaged), main_only=True)
                seal = dist.from_main(lambda: read_seal(path))
                if not seal['checksum']:
                    dist.print0(f'warning: {path / SEAL} has no checksum, as it is of an older version: it cannot be checked')
                return path, seal
            dist.print0(f'warning: checkpoint {path} is damaged ({damage[0]})')
            damaged.append(path)
        if damaged:
            raise ValueError(f'all {len(damaged)} checkpoints in {self.folder} are damaged (the oldest: {damage[0]}); '
                             'restore one, or choose another run_dir to start anew')
        return None

    def abandon(self, nimg: int, prefix: str) -> None:
        """Rename the checkpoints of more than `nimg` images to `prefix` and their names."""
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
        """Fill `state` in place from a checkpoint of any number of ranks. Raises ValueError if it does not fit or is forged."""
        tree = state.tree()
        reader = dist.together(lambda: CheckpointReader(path))
        load_tensors(tree, reader, process_group=self._group, no_dist=self._group is None)
        state.take(tree)
        self.last_saved = state.nimg

    def save(self, state: TrainState, best: bool = False) -> None:
        """Copy the state now and write it in the background. Waits for the previous save, if that still runs."""
        self.wait()
        if best:
            self.best = state.nimg
        if self.last_saved == state.nimg:
            return
        name = name_of(state.nimg)
        aside = self.folder / (_ASIDE + name)
        seal = {'nimg': state.nimg, 'step': state.step, 'world_size': dist.world_size(), **self.about}
        written = dcp.async_save(state.tree(), checkpoint_id=aside, process_group=self._group, no_dist=self._group is None)
        self._thread = threading.Thread(target=self._commit, args=(written, aside, self.folder / name, seal), daemon=True)
        self._thread.start()
        self.last_saved = state.nimg

    def wait(self) -> None:
        """Wait until the save under way is complete. Raises CheckpointError, on all ranks, if it failed."""
        if self._thread is not None:
            with dist.patience('saving a checkpoint'):
                self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise CheckpointError(error)

    def _commit(self, written: Future, aside: Path, final: Path, seal: dict) -> None:
        """Seal a checkpoint, in the background."""
        try:
            self._seal(written, aside, final, seal)
        except Exception as error:  # in a thread, an error would otherwise pass for success
            self._error = f'checkpoint {final} could not be written: {error!r}'

    def _seal(self, written: Future, aside: Path, final: Path, seal: dict) -> None:
        """Wait for the bytes, then seal, rename and prune. All ranks learn of a failure on one."""
        try:
            written.result()
            failure, sums = None, _checksums(aside, dist.rank(), dist.world_size())
        except (Exception, CheckpointException) as error:  # all ranks must hear of any error
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


def _sweep(folder: Path) -> None:
    """Make the folder, and delete what killed saves and prunings have left in it. Files with other names are not ours."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.iterdir():
        if _LEFTOVER.fullmatch(leftover.name):
            _delete(leftover)


def _delete(path: Path) -> None:
    """Delete a folder or a link. Files are not ours, and stay."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def _move_all_aside(damaged: list[Path]) -> None:
    for path in damaged:
        _move_aside(path, 'damaged-')


def _move_aside(path: Path, prefix: str) -> None:
    kept = path.with_name(prefix + path.name)
    for number in itertools.count(2):
        if not os.path.lexists(kept):
            break
        kept = path.with_name(f'{prefix}{path.name}-{number}')
    path.rename(kept)


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` and the best, which gets the link `best`."""
    for path in list_checkpoints(folder):
        if int(path.name) == best:
            link = folder / (_ASIDE + 'best')
            if link.is_symlink():       # a killed process has left it
                link.unlink()
            link.symlink_to(path.name)
            link.rename(folder / 'best')
    for path in list_checkpoints(folder)[:-keep]:
        if int(path.name) == best:
            continue
        # Under its old name, a half-deleted folder would look complete.
        aside = path.with_name(_ASIDE + 'old-' + path.name)
        path.rename(aside)
        _delete(aside)


def find_damage(path: Path, part: int = 0, parts: int = 1) -> str | None:
    """Say what is wrong with a checkpoint, or return None. Only every `parts`-th file is read, from number `part` on."""
    try:
        seal = read_seal(path)
        files = seal['files']
        if '.metadata' not in files:
            return 'its seal lists no .metadata'
        for name in sorted(files)[part::parts]:
            if not is_plain_name(name):
                return f'its seal lists {name[:80]!r}, which is no file in it'
            found = _checksum(path / name)
            if found != files[name]:
                return f'{name} has (bytes, CRC-32) {found}, not {files[name]}'
        nimg = torch.tensor(-1)
        load_tensors({'nimg': nimg}, CheckpointReader(path), no_dist=True)
        if nimg.item() != seal['nimg']:
            return f'its tensors are of {nimg.item()} images, its seal says {seal["nimg"]}'
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _checksums(folder: Path, part: int, parts: int) -> dict[str, list[int]]:
    return {path.name: _checksum(path) for path in sorted(folder.iterdir())[part::parts]}


def _checksum(path: Path) -> list[int]:
    size = crc = 0
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _seal_and_rename(aside: Path, final: Path, seal: dict) -> None:
    write_sealed(aside / SEAL, seal, private=could_hold_secrets(json.dumps(seal)))
    sync_folder(aside)
    if os.path.lexists(final):      # it is no whole checkpoint, or the run would have resumed from it
        _move_aside(final, 'damaged-')
    aside.rename(final)
    sync_folder(final.parent)
