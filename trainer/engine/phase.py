"""A phase takes one optimizer step of the networks that it trains."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from imago.trainer.engine.parallel import Strategy
from imago.trainer.engine.randomness import seed_micro_batch
from imago.trainer.engine.state import TrainState
from imago.trainer.ranks import dist
from imago.trainer.wording import listed

Means = dict[str, Tensor]
MicroBatch = TypeVar('MicroBatch')   # one forward pass sees this, on the device; only the game looks into it


class NonFiniteGradient(RuntimeError):
    """A gradient became infinite or NaN; the networks are as they were before the step."""


@dataclass(frozen=True)
class Phase(Generic[MicroBatch]):
    """Networks go by their names in the state. Those that a phase trains step together; all others are frozen.

    `loss` maps a micro-batch to its loss and to values worth averaging over the global batch.
    `finish` receives these averages after the optimizer step, e.g. to move a running mean. `prepare` is called first.
    """

    name: str
    trains: tuple[str, ...]
    uses: tuple[str, ...]      # these are whole while the phase runs; `trains` are among them
    interval: int              # steps
    loss: Callable[[MicroBatch], tuple[Tensor, Means]]
    finish: Callable[[Means], None] = lambda means: None
    prepare: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        assert set(self.trains) <= set(self.uses), f'phase {self.name} trains what it does not use'


@dataclass(frozen=True)
class PhaseResult:
    means: Means
    gradient_norm: float
    seconds: float


def run_phase(phase: Phase[MicroBatch], micro_batches: list[MicroBatch], state: TrainState, seed: int,
              strategy: Strategy) -> PhaseResult:
    """Run forward and backward over this rank's micro-batches, and one optimizer step.

    Raises NonFiniteGradient, which names phase, images shown and rank, before anything is changed.
    """
    started, nimg = time.perf_counter(), state.nimg
    dist.moved(f'{nimg} images (phase {phase.name})')
    trained = [state.networks[name] for name in phase.trains]
    with strategy.whole(*(state.networks[name] for name in phase.uses)):
        phase.prepare()
        strategy.zero_gradients(*trained)
        means = accumulate(phase, micro_batches, state, seed)
        dist.moved()
        norm, bad_ranks = strategy.sync_gradients(*trained)
    if not math.isfinite(norm):
        where = f'rank {listed(bad_ranks)}' if bad_ranks else 'the sum over ranks'
        raise NonFiniteGradient(f'phase {phase.name} at {nimg} images: the gradient is not finite on {where}; {_what_then(nimg)}')
    for name in phase.trains:
        state.optimizers[name].step()
    means = strategy.mean(means)
    phase.finish(means)
    return PhaseResult(means, norm, time.perf_counter() - started)


def _what_then(nimg: int) -> str:
    if nimg == 0:
        return ('nothing is learned and no checkpoint is there: lower the learning rates (optim) or the weights of penalties '
                '(regularizers), or set network.low_precision=none, and start with another run_dir')
    return ('the same command with lower learning rates (optim.g_lr, optim.d_lr) goes on from the last checkpoint, or from the '
            'beginning where there is none; network.low_precision=none needs another run_dir')


def accumulate(phase: Phase[MicroBatch], micro_batches: list[MicroBatch], state: TrainState, seed: int) -> Means:
    """Run forward and backward over this rank's micro-batches. Returns the means of the values."""
    count, means = len(micro_batches), {}
    with only_trained(phase, state):
        for index, micro_batch in enumerate(micro_batches):
            seed_micro_batch(seed, state.nimg, phase.name, dist.rank() * count + index)
            loss, values = phase.loss(micro_batch)
            (loss / count).backward()
            for name, value in values.items():
                means[name] = means.get(name, 0) + value.detach() / count
    return means


@contextmanager
def only_trained(phase: Phase, state: TrainState) -> Iterator[None]:
    """Inside, the networks that `phase` trains collect gradients; outside, no network does."""
    trained = [state.networks[name] for name in phase.trains]
    for network in trained:
        network.requires_grad_(True)
    try:
        yield
    finally:
        for network in trained:
            network.requires_grad_(False)
