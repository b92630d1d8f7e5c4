"""The speeds of one GPU and of its links, and how long these make operations and messages take."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imago.trainer.plan.traffic import Collective
    from imago.trainer.plan.work import Operation


@dataclass(frozen=True)
class Machine:
    """One GPU (or core), and the links that reach it. All speeds are sustained ones."""

    flops_low: float            # FLOP/s in bf16 or fp16
    flops: float                # FLOP/s in float32
    flops_tf32: float           # the same of convolutions that may take TF32, see precision.tf32
    bandwidth: float            # bytes/s of its memory
    launch: float               # s that the host takes to give out an operation
    replay: float               # s that an operation of a CUDA graph takes at least
    inside: float               # bytes/s that a GPU sends to other GPUs of its node
    between: float              # bytes/s that a node sends to other nodes
    latency_inside: float       # s a message
    latency_between: float

    def compute(self, operations: Iterable['Operation'], captured: bool = False, tf32: bool = False) -> dict[str, float]:
        """Return seconds by cause: operations wait for arithmetic or memory (Williams et al. 2009), or all for the host.

        The host gives out work while the GPU does other work, so the longer of the two counts. captured: as a CUDA graph.
        """
        flops, launch = self.flops_tf32 if tf32 else self.flops, self.replay if captured else self.launch
        seconds, count = {'arithmetic': 0.0, 'bandwidth': 0.0}, 0
        for operation in operations:
            arithmetic = operation.flops / (self.flops_low if operation.low else flops)
            moving = operation.bytes / self.bandwidth
            seconds['arithmetic' if arithmetic > moving else 'bandwidth'] += max(arithmetic, moving)
            count += 1
        if count * launch > sum(seconds.values()):
            return {'launches': count * launch}
        return seconds

    def send(self, collective: 'Collective', gpus: int) -> dict[str, float]:
        """Return seconds by cause. The `gpus` of a node share its link to other nodes."""
        inside, between = collective.rounds()
        return {'inside': collective.sent_inside() / self.inside,
                'between': collective.sent_between() * gpus / self.between,
                'latency': inside * self.latency_inside + between * self.latency_between}


# Peaks are from the vendors' data sheets (bf16 and TF32 without sparsity, NVLink in one direction). docs/scaling.md says which
# shares of them were measured on an H200; nothing was on the others.
PEAKS: dict[str, dict[str, float]] = {
    'h200': {'tflops': 989, 'tf32_tflops': 494, 'tflops32': 67, 'memory_gbytes': 4800, 'node_link_gbytes': 450, 'memory_gb': 141},
    'h100': {'tflops': 989, 'tf32_tflops': 494, 'tflops32': 67, 'memory_gbytes': 3350, 'node_link_gbytes': 450, 'memory_gb': 80},
    'a100': {'tflops': 312, 'tf32_tflops': 156, 'tflops32': 19.5, 'memory_gbytes': 2039, 'node_link_gbytes': 300,
             'memory_gb': 80}}
