"""One optimizer step of one network."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer import dist
from trainer.parallel import Strategy
from trainer.randomness import Draws, seed_micro_batch
from trainer.wording import listed
from trainer.zero import ZeroAdam


class NonFiniteGradient(RuntimeError):
    """A gradient became infinite or NaN; the networks are as they were before the step."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass sees, on the device."""

    images: Tensor     # [NCHW] uint8 reals
    labels: Tensor     # [N, classes] one-hot, of the reals
    draws: Draws       # latents for the fakes
    fake_labels: Tensor  # [N, classes] one-hot; where the loss pairs them, those of the reals


@dataclass(frozen=True)
class Phase:
    """`loss` maps a micro-batch to its loss and to values worth averaging over the global batch.

    `finish` receives these averages after the optimizer step, e.g. to move a running mean. `prepare` comes before all.
    """

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer | ZeroAdam
    interval: int      # steps
    loss: Callable[[MicroBatch], tuple[Tensor, dict[str, Tensor]]]
    finish: Callable[[dict[str, Tensor]], None] = lambda means: None
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class PhaseResult:
    means: dict[str, Tensor]
    gradient_norm: float
    seconds: float


def run_phase(phase: Phase, micro_batches: list[MicroBatch], seed: int, nimg: int, strategy: Strategy) -> PhaseResult:
    """Forward, backward and one optimizer step over this rank's micro-batches.

    NonFiniteGradient names phase, images shown and rank, before anything was changed.
    """
    started = time.perf_counter()
    dist.moved(f'{nimg} images (phase {phase.name})')
    with strategy.whole():
        phase.prepare()
        strategy.zero_gradients(phase.network)
        means = accumulate(phase, micro_batches, seed, nimg)
        dist.moved()
        norm, bad_ranks = strategy.sync_gradients(phase.network)
    if not math.isfinite(norm):
        where = f'rank {listed(bad_ranks)}' if bad_ranks else 'the sum over ranks'
        raise NonFiniteGradient(f'phase {phase.name} at {nimg} images: the gradient is not finite on {where}; {_what_then(nimg)}')
    phase.optimizer.step()
    means = strategy.mean(means)
    phase.finish(means)
    return PhaseResult(means, norm, time.perf_counter() - started)


def _what_then(nimg: int) -> str:
    if nimg == 0:
        return ('nothing is learned and no checkpoint is there: lower the learning rates (optim) or the weights of penalties '
                '(regularizers), or set network.low_precision=none, and start with another run_dir')
    return ('the same command with lower learning rates (optim.g_lr, optim.d_lr) goes on from the last checkpoint, or from the '
            'beginning where there is none; network.low_precision=none needs another run_dir')


def accumulate(phase: Phase, micro_batches: list[MicroBatch], seed: int, nimg: int) -> dict[str, Tensor]:
    """Forward and backward over this rank's micro-batches. Returns the means of the values."""
    count, means = len(micro_batches), {}
    phase.network.requires_grad_(True)
    for index, micro_batch in enumerate(micro_batches):
        seed_micro_batch(seed, nimg, phase.name, dist.rank() * count + index)
        loss, values = phase.loss(micro_batch)
        (loss / count).backward()
        for name, value in values.items():
            means[name] = means.get(name, 0) + value.detach() / count
    phase.network.requires_grad_(False)
    return means
