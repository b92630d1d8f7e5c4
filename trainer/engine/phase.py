"""A phase takes one optimizer step of the networks that it trains."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from imago.trainer.engine.graphs import Graphs
from imago.trainer.engine.parallel import Strategy
from imago.trainer.engine.randomness import seed_micro_batch
from imago.trainer.engine.results import Clock, PhaseResult, check_finite
from imago.trainer.engine.state import TrainState
from imago.trainer.ranks import dist

Means = dict[str, Tensor]
MicroBatch = TypeVar('MicroBatch')   # one forward pass sees this, on the device; only the game looks into it


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


def run_phase(phase: Phase[MicroBatch], micro_batches: list[MicroBatch], state: TrainState, seed: int,
              strategy: Strategy, graphs: Graphs | None = None) -> PhaseResult:
    """Run forward and backward over this rank's micro-batches, and one optimizer step.

    A step whose gradient is not finite changes nothing. A CPU raises NonFiniteGradient then, which names phase, images shown
    and rank. On a GPU, which nobody waits for, whoever reads the result raises it.
    """
    clock, nimg = Clock(), state.nimg
    dist.moved(f'{nimg} images (phase {phase.name})')
    trained = [state.networks[name] for name in phase.trains]
    with strategy.whole(*(state.networks[name] for name in phase.uses)):
        phase.prepare()
        strategy.zero_gradients(*trained)
        means = accumulate(phase, micro_batches, state, seed, graphs, lambda: strategy.last_backward(*trained))
        dist.moved()
        norm, own_norm = strategy.sync_gradients(*trained)
    if reads_at_once(norm):
        check_finite(phase.name, nimg, norm.item(), own_norm.item())
    for name in phase.trains:
        skip = getattr(state.optimizers[name], 'skip_unless', None)
        if skip is not None:
            skip(norm.isfinite())
        state.optimizers[name].step()
    means = strategy.mean(means)
    phase.finish(means)
    return PhaseResult(phase.name, nimg, means, norm, own_norm, clock.stop())


def reads_at_once(tensor: Tensor) -> bool:
    """Return whether its value is known without waiting."""
    return tensor.device.type == 'cpu'


def accumulate(phase: Phase[MicroBatch], micro_batches: list[MicroBatch], state: TrainState, seed: int,
               graphs: Graphs | None = None, around_last: Callable[[], AbstractContextManager] = nullcontext) -> Means:
    """Run forward and backward over this rank's micro-batches. Returns the means of the values.

    around_last: makes what the last one runs in, unless it may be a graph.
    """
    count, means = len(micro_batches), {}

    def forward_and_backward(micro_batch: MicroBatch) -> Means:
        loss, values = phase.loss(micro_batch)
        (loss / count).backward()
        return {name: value.detach() for name, value in values.items()}

    run = forward_and_backward if graphs is None else graphs.of(phase.name, forward_and_backward)
    with only_trained(phase, state):
        for index, micro_batch in enumerate(micro_batches):
            seed_micro_batch(seed, state.nimg, phase.name, dist.rank() * count + index)
            with around_last() if graphs is None and index == count - 1 else nullcontext():
                values = run(micro_batch)
            for name, value in values.items():
                means[name] = means.get(name, 0) + value / count
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
