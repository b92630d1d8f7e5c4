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
    flops: float                # FLOP/s in float32, TF32 where convolutions take it
    bandwidth: float            # bytes/s of its memory
    launch: float               # s to launch an operation
    inside: float               # bytes/s that a GPU sends to other GPUs of its node
    between: float              # bytes/s that a node sends to other nodes
    latency_inside: float       # s a message
    latency_between: float

    def compute(self, operations: Iterable['Operation']) -> dict[str, float]:
        """Return seconds by cause: operations wait for arithmetic or memory (Williams et al. 2009), or all for launches."""
        seconds, count = {'arithmetic': 0.0, 'bandwidth': 0.0}, 0
        for operation in operations:
            arithmetic = operation.flops / (self.flops_low if operation.low else self.flops)
            moving = operation.bytes / self.bandwidth
            seconds['arithmetic' if arithmetic > moving else 'bandwidth'] += max(arithmetic, moving)
            count += 1
        if count * self.launch > sum(seconds.values()):
            return {'launches': count * self.launch}
        return seconds

    def send(self, collective: 'Collective', gpus: int) -> dict[str, float]:
        """Return seconds by cause. The `gpus` of a node share its link to other nodes."""
        inside, between = collective.rounds()
        return {'inside': collective.sent_inside() / self.inside,
                'between': collective.sent_between() * gpus / self.between,
                'latency': inside * self.latency_inside + between * self.latency_between}


# Peaks are from the vendors' data sheets (bf16 and TF32 without sparsity, NVLink in one direction). The shares that are
# sustained (--sustained, --sustained-memory) are assumptions, as nothing was measured on these GPUs.
PEAKS = {'h200': {'tflops': 989, 'tflops32': 494, 'memory_gbytes': 4800, 'node_link_gbytes': 450, 'memory_gb': 141},
         'a100': {'tflops': 312, 'tflops32': 156, 'memory_gbytes': 2039, 'node_link_gbytes': 300, 'memory_gb': 80}}
