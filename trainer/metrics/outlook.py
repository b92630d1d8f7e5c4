"""Before it begins, an evaluation says what it will do, and how long that takes, measured on a few pictures."""

import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from imago.trainer.config.sections import EvaluateConfig
from imago.trainer.metrics.extractors import Extractor
from imago.trainer.metrics.features import resizing_threads
from imago.trainer.metrics.pictures import Damaged, Fakes, Pictures
from imago.trainer.metrics.protocol import ALONE
from imago.trainer.metrics.reference import is_kept
from imago.trainer.metrics.settings import PUBLISHED
from imago.trainer.wording import duration

PROBE = 16      # pictures on which time is measured
FEW = 500       # pictures that take no time worth telling
LONG = 5.0      # seconds: a trial that takes longer is the last one
TRIALS = 3      # the first ones are also spent on warming up


def outlook(source: Pictures | Fakes, reference: Pictures, extractor: Extractor, config: EvaluateConfig, ranks: int) -> str:
    """Say in a line what an evaluation on so many ranks is about to do. One rank calls it, before all compute features."""
    made, wanted = isinstance(source, Fakes), set(config.metrics)
    counts = [f'{source.count} {"fakes" if made else "pictures"}']
    if made and source.count < PUBLISHED:
        counts[0] += f' (--images {PUBLISHED} for as many as published scores take)'
    kept = bool(wanted - ALONE) and is_kept(reference, extractor)
    if wanted - ALONE:
        counts.append(f'{reference.count} real ones' + (', whose features are kept' if kept else ''))
    passes = source.count * (bool(wanted - {'ppl'}) + 2 * ('ppl' in wanted))
    new = reference.count if wanted - ALONE and not kept else 0
    about = f'{" against ".join(counts)}; features of {extractor.name}, on {extractor.device.type}'
    if passes + new <= FEW:
        return about
    with resizing_threads() as pool:
        def features_of(pictures: list[np.ndarray]) -> object:
            return pictures and extractor(list(pool.map(extractor.resize, pictures)), 'is' in wanted)

        spent = passes * seconds(lambda: features_of(first(source)))
        spent += new * seconds(lambda: features_of(first(reference))) if new else 0
    return f'{about}, which take about {duration(spent / PROBE / ranks)}'


def first(pictures: Pictures | Fakes) -> list[np.ndarray]:
    """Return the pictures [HWC] that can be read among the first `PROBE`."""
    if isinstance(pictures, Fakes):
        return list(pictures.make(range(min(PROBE, pictures.count)))[0])
    found = []
    for index in range(min(PROBE, pictures.count)):
        with suppress(Damaged):    # it is told when its turn comes
            found.append(pictures.read(index)[0])
    return found


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes once it is warm: the least time of a few trials."""
    times: list[float] = []
    while len(times) < TRIALS and (not times or times[-1] < LONG):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
