"""What phases found stays on the device until it is reported or saved, so that no step waits for a GPU."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from imago.trainer.ranks import dist
from imago.trainer.wording import listed

MOST_UNREAD = 4096    # results: a report that is hours away must not fill the memory


class NonFiniteGradient(RuntimeError):
    """A gradient became infinite or NaN; nothing that was learned since has been saved."""


@dataclass(frozen=True)
class PhaseResult:
    """What a phase found, on the device: means over the global batch, and norms []."""

    phase: str
    nimg: int                   # images shown before the step
    means: dict[str, Tensor]
    gradient_norm: Tensor
    own_norm: Tensor            # of this rank's own gradients
    clock: 'Clock'


@dataclass(frozen=True)
class Found:
    """The same, as numbers."""

    phase: str
    means: dict[str, float]     # of scalars alone
    gradient_norm: float
    seconds: float


class Clock:
    """Takes the time from its making to `stop`, on the GPU if the work runs there."""

    def __init__(self) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if dist.on_gpu() else None
        self._seconds = -time.perf_counter()
        if self._events:
            self._events[0].record()

    def stop(self) -> 'Clock':
        self._seconds += time.perf_counter()
        if self._events:
            self._events[1].record()
        return self

    @property
    def seconds(self) -> float:
        """The GPU must have done the work: reading a result waits for it."""
        return self._events[0].elapsed_time(self._events[1]) / 1000 if self._events else self._seconds


@dataclass
class Unread:
    """Collects results; all ranks add and read together."""

    _results: list[PhaseResult] = field(default_factory=list)

    def add(self, result: PhaseResult) -> None:
        self._results.append(result)

    @property
    def is_full(self) -> bool:
        return len(self._results) >= MOST_UNREAD

    def read(self) -> list[Found]:
        """Return all results, in order, and forget them, by one transfer. Raises NonFiniteGradient for the first bad one."""
        results, self._results = self._results, []
        if not results:
            return []
        scalars = [{name: mean for name, mean in result.means.items() if mean.ndim == 0} for result in results]
        flat = [each for result, means in zip(results, scalars)
                for each in (result.gradient_norm, result.own_norm, *means.values())]
        numbers = iter(torch.stack(flat).tolist())
        found = []
        for result, means in zip(results, scalars):
            norm, own = next(numbers), next(numbers)
            check_finite(result.phase, result.nimg, norm, own)
            found.append(Found(result.phase, {name: next(numbers) for name in means}, norm, result.clock.seconds))
        return found


def check_finite(phase: str, nimg: int, norm: float, own_norm: float) -> None:
    """Raise NonFiniteGradient if the norm of a step's gradient is not finite. It names phase, images shown and ranks."""
    if math.isfinite(norm):
        return
    bad = [rank for rank, own in enumerate(dist.gather(own_norm)) if not math.isfinite(own)]
    where = f'rank {listed(bad)}' if bad else 'the sum over ranks'
    raise NonFiniteGradient(f'phase {phase} at {nimg} images: the gradient is not finite on {where}; {_what_then(nimg)}')


def _what_then(nimg: int) -> str:
    if nimg == 0:
        return ('nothing is learned and no checkpoint is there: lower the learning rates (optim) or the weights of penalties '
                '(regularizers), or set network.low_precision=none, and start with another run_dir')
    return ('the same command with lower learning rates (optim.g_lr, optim.d_lr) goes on from the last checkpoint, or from the '
            'beginning where there is none; network.low_precision=none needs another run_dir')
