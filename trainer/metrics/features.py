"""All ranks together compute the features of many pictures, with the same bits on any number of ranks."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from imago.trainer.metrics.extractors import Extractor
from imago.trainer.metrics.pictures import Damaged, Fakes, Pictures
from imago.trainer.ranks import dist
from imago.trainer.ranks.machine import usable_cores
from imago.trainer.ranks.progress import Progress

CHUNK = 32   # so many pictures pass the networks together on any number of ranks, so that rounding is the same
Rows = dict[str, np.ndarray]   # arrays with a row for each picture


class Stopped(Exception):
    """A rank was asked to stop; all ranks raise this."""


def over_ranks(work: Callable[[range], Rows], count: int, title: str, stopped: Callable[[], bool]) -> Rows | None:
    """Gather the rows of `work` for `count` pictures in order, a chunk at a time. Returns them on rank 0, None elsewhere.

    Rank r does chunks r, r + ranks ...; `work` may return fewer rows than it was asked for. Raises Stopped.
    """
    rank, world = dist.rank(), dist.world_size()
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    rows: Rows = {}
    filled = 0
    with Progress(title, count, 'pictures') as progress:
        for first in range(0, len(chunks), world):
            own = work(chunks[first + rank]) if first + rank < len(chunks) else {}
            parts = dist.gather((own, stopped()))
            if any(stop for _, stop in parts):
                raise Stopped
            for part, _ in parts if dist.is_main() else ():
                rows = rows or {name: np.empty((count, *array.shape[1:]), array.dtype) for name, array in part.items()}
                arrived = len(next(iter(part.values()))) if part else 0
                for name, array in part.items():
                    rows[name][filled:filled + arrived] = array
                filled += arrived
            progress.add(sum(map(len, chunks[first:first + world])))
    return {name: array[:filled] for name, array in rows.items()} if dist.is_main() else None


def features_of_pictures(pictures: Pictures, extractor: Extractor, classes: bool, title: str,
                         stopped: Callable[[], bool]) -> Rows | None:
    """Compute `features`, `labels` and perhaps `classes` of all readable pictures; damaged ones are named and left out."""
    def load(index: int) -> tuple[np.ndarray, int] | None:
        try:
            picture, label = pictures.read(index)
        except Damaged as error:
            print(f'warning: skipped damaged picture {error}', file=sys.stderr, flush=True)
            return None
        return extractor.resize(picture), label

    ahead: dict[int, list[Future]] = {}
    with resizing_threads() as pool:
        def submit(start: int) -> None:
            if start < pictures.count and start not in ahead:
                ahead[start] = [pool.submit(load, index) for index in range(start, min(start + CHUNK, pictures.count))]

        def work(indices: range) -> Rows:
            submit(indices.start)
            submit(indices.start + CHUNK * dist.world_size())   # these are read while the network computes
            good = [loaded for future in ahead.pop(indices.start) if (loaded := future.result()) is not None]
            if not good:
                return {}
            resized, labels = zip(*good, strict=True)
            return extractor(list(resized), classes) | {'labels': np.array(labels)}
        return over_ranks(work, pictures.count, title, stopped)


def features_of_fakes(fakes: Fakes, extractor: Extractor, classes: bool, title: str,
                      stopped: Callable[[], bool]) -> Rows | None:
    """Compute the same for a generator's pictures."""
    with resizing_threads() as pool:
        def work(indices: range) -> Rows:
            pictures, labels = fakes.make(indices)
            return extractor(list(pool.map(extractor.resize, pictures)), classes) | {'labels': labels}
        return over_ranks(work, fakes.count, title, stopped)


def resizing_threads() -> ThreadPoolExecutor:
    """Make threads for resizing: Pillow lets other threads run while it decodes and resizes."""
    local_world = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    return ThreadPoolExecutor(max(min(usable_cores() // local_world, 16), 1))
