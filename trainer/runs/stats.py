"""A run is watched by one progress line, TensorBoard scalars and pictures, and `stats.jsonl`."""

import json
import math
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch

from imago.trainer.config.duration import in_words
from imago.trainer.data.durable import open_to_append
from imago.trainer.engine.results import Found
from imago.trainer.runs.events import Events
from imago.trainer.runs.history import REPORTS, drop_torn_line
from imago.trainer.wording import duration

_LINE_SECONDS = 0.5


class Stats:
    """Collects the results of phases; rank 0 reports their means since the last report.

    Scalars are over the global batch. Times are those of rank 0: `seconds/PHASE` is the time of one run of that phase.
    """

    def __init__(self, folder: Path, total_nimg: int, nimg: int, main: bool, stop_after: int | None = None):
        """The run ends at `total_nimg` images, or `stop_after` seconds from now."""
        self.total_nimg, self._stop_after, self._main, self._folder = total_nimg, stop_after, main, folder
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._began = time.perf_counter()
        self._last = (self._began, nimg)
        self._before: dict[str, float] = {}     # the means of the last report
        self._notes: dict[str, str] = {}
        self._shown = 0.0
        self._damaged: set[str] = set()
        if main:
            with self._to_disk():
                drop_torn_line(folder / REPORTS)
                self._jsonl = open_to_append(folder / REPORTS)
                self._events = Events(folder / 'tensorboard', purge_step=nimg + 1)

    def add(self, found: Found) -> None:
        """Take in the result of one run of a phase."""
        self.record({f'gradient_norm/{found.phase}': found.gradient_norm, f'seconds/{found.phase}': found.seconds})
        self.record(found.means)

    def count_damaged(self, names: list[str]) -> None:
        """Name each damaged picture once, on the rank that met it. The count goes into the report of rank 0."""
        for name in set(names) - self._damaged:
            print(f'warning: skipped damaged picture {name}', file=sys.stderr, flush=True)
        self._damaged |= set(names)

    def show(self, nimg: int) -> None:
        """Refresh the live line, if there is a terminal."""
        if self._main and sys.stdout.isatty() and time.perf_counter() - self._shown > _LINE_SECONDS:
            self._shown = time.perf_counter()
            print(f'\r\x1b[K{self._line(nimg)}', end='', flush=True)

    def report(self, nimg: int) -> None:
        """Write the means since the last report, and start anew."""
        if not self._main:
            return
        line = self._line(nimg)
        print(f'\r\x1b[K{line}' if sys.stdout.isatty() else line, end='' if sys.stdout.isatty() else '\n', flush=True)
        values: dict[str, float | str] = {**self._means(), 'speed/img_per_s': self._speed(nimg),
                                          'memory/peak_gb': peak_memory_gb(), 'data/damaged': len(self._damaged), **self._notes}
        with self._to_disk():
            self._jsonl.write(json.dumps({'nimg': nimg, 'time': time.time(), **values}) + '\n')
            self._events.add(values, nimg)
        self._before = self._means()
        self._sums.clear()
        self._counts.clear()
        self._notes.clear()
        self._last = (time.perf_counter(), nimg)

    def add_picture(self, name: str, picture: np.ndarray, nimg: int) -> None:
        """Add a picture [HWC] uint8 to TensorBoard."""
        if self._main:
            with self._to_disk():
                self._events.add_picture(name, picture, nimg)

    def leave_out(self, seconds: float) -> None:
        """Leave `seconds`, which were not spent on training, out of its speed."""
        then, nimg = self._last
        self._last = then + seconds, nimg

    def close(self) -> None:
        if self._main:
            if sys.stdout.isatty():
                print()
            with closing(self._jsonl), closing(self._events):
                pass    # both are closed, even if one fails

    def record(self, values: dict[str, float]) -> None:
        """Take in values whose mean goes into the next report."""
        for name, value in values.items():
            self._sums[name] += value
            self._counts[name] += 1

    def note(self, name: str, text: str) -> None:
        """Take in words that go into the next report."""
        self._notes[name] = text

    @contextmanager
    def _to_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f'{self._folder}: figures cannot be written ({error}); make room there, and run the same command '
                          'again') from error

    def _means(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in sorted(self._sums.items())}

    def _speed(self, nimg: int) -> float:
        then, before = self._last
        return (nimg - before) / max(time.perf_counter() - then, 1e-9)

    def _line(self, nimg: int) -> str:
        means, speed = self._means() or self._before, self._speed(nimg)     # a GPU tells its numbers with a report alone
        elapsed, share, kimg = time.perf_counter() - self._began, nimg / self.total_nimg, f'{nimg / 1000:.1f}'
        left = (self.total_nimg - nimg) / speed if speed else math.inf
        done = f'{kimg}/{self.total_nimg / 1000:.1f} kimg ({share:.0%})'
        if self._stop_after is not None and self._stop_after - elapsed < left:     # time will be over before the images are
            left, share = max(self._stop_after - elapsed, 0), min(elapsed / self._stop_after, 1)
            done = f'{kimg} kimg ({share:.0%} of stop_after={in_words(self._stop_after)})'
        shown = {'D': 'loss/D', 'G': 'loss/G', 'r1': 'penalty/r1', 'pl': 'path_length'}
        losses = '  '.join(f'{label} {means[name]:.3f}' for label, name in shown.items() if name in means)
        return (f'{done}  {speed:.1f} img/s  {duration(elapsed)} elapsed, '
                f'{duration(left) if left < math.inf else "?"} left  {losses}')


def peak_memory_gb() -> float:
    """Return the most memory used so far, in GB: on the GPU if there is one, else by this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == 'darwin' else 1024) / 1e9    # Linux counts in KiB
