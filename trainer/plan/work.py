"""To count what a training step computes, the recipe's own phases run forward and backward on tensors without content."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from imago.trainer.config.load import Config
from imago.trainer.config.plan import Plan
from imago.trainer.data.manifest import Manifest
from imago.trainer.engine.phase import accumulate, only_trained
from imago.trainer.engine.state import make_networks
from imago.trainer.models.batch_norm import synchronise
from imago.trainer.plan.preflight import saved_bytes, without_content


@dataclass(frozen=True)
class Operation:
    """What an operation that was dispatched to the device computes and moves. It launches a kernel, or a few."""

    flops: int          # of convolutions and matrix products; a multiplication and an addition count 2
    low: bool           # whether it is in bf16 or fp16
    bytes: int          # read and written


@dataclass(frozen=True)
class PhaseWork:
    """What a rank does in a phase: for each micro-batch, and once a phase."""

    name: str
    trains: tuple[str, ...]         # names of networks
    uses: tuple[str, ...]
    interval: int                   # steps
    micro: list[Operation]
    once: list[Operation]           # before its first micro-batch
    statistics: list[int]           # bytes of each sum over the ranks inside a micro-batch, which batch norm takes
    means: int                      # bytes of the values that are averaged in the end
    activations: int                # bytes kept for the backward pass


@dataclass(frozen=True)
class Work:
    """Networks without content, and what each phase does."""

    plan: Plan
    networks: dict[str, nn.Module]
    phases: list[PhaseWork]


# These neither are views in their schemas nor launch anything: they allocate, or give a tensor another shape.
FREE = {'aten::_unsafe_view', 'aten::empty', 'aten::empty_like', 'aten::empty_strided', 'aten::empty_permuted', 'aten::new_empty',
        'aten::new_empty_strided', 'aten::lift', 'aten::resize_', 'aten::set_', 'aten::_efficientzerotensor'}


class Operations(TorchDispatchMode):
    """This mode records each operation that launches work on a device.

    Views, allocations and questions (`prim::device` asks a tensor without content where it is) launch nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = op(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if not launches(op, tensors):
            return out
        formula = flop_registry.get(op.overloadpacket)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        low = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors)
        self.found.append(Operation(flops, low, sum(map(touched, tensors))))
        return out


def launches(op: OpOverload, tensors: list[Tensor]) -> bool:
    """Return whether `op` gives the device something to do; `tensors`, each [...], go into it or come out."""
    return not (op.namespace == 'prim' or op.is_view or op._schema.name in FREE) and any(tensor.numel() for tensor in tensors)


def touched(tensor: Tensor) -> int:
    """Return the bytes of the elements of a tensor [...]; of an expanded tensor, only those that exist in memory."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _Noted(torch.autograd.Function):
    """This function stands for a sum over ranks, [...] -> [...], forward and backward, and notes its bytes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, note: Callable[[int], None]) -> Tensor:
        ctx.note = note
        note(touched(tensor))
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Noted.apply(gradient, ctx.note), None


def count_work(config: Config, manifest: Manifest, micro_batch: int) -> Work:
    """Count the work for `micro_batch` images on a rank. Networks that grow are at their full size."""
    plan = config.game.plan(config, manifest)
    with torch.device('meta'):
        networks = make_networks(plan)
    phases, statistics = [], []
    for network in networks.values():
        synchronise(network, lambda tensor: _Noted.apply(tensor, statistics.append), 1)
    with without_content(config, plan, networks, micro_batch) as (game, batch):
        for phase in game.phases():
            micro_batches = game.micro_batches(batch, phase)
            with only_trained(phase, game.state):
                activations = saved_bytes(lambda: phase.loss(micro_batches[0]))
            statistics.clear()
            with Operations() as once:
                phase.prepare()
            with Operations() as work:
                means = accumulate(phase, micro_batches, game.state, 0)
            phases.append(PhaseWork(phase.name, phase.trains, phase.uses, phase.interval, work.found, once.found,
                                    statistics.copy(), sum(map(touched, means.values())), activations))
    return Work(plan, networks, phases)
