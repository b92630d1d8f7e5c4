"""This module lists the collectives of trainer/engine/parallel.py, and counts what each sends and how much leaves a node.

NCCL lays rings inside a node and rings between nodes. A rank sends as much in these as in one ring over all ranks.
"""

from dataclasses import dataclass
from math import ceil, log2

from torch import nn

from imago.trainer.config.load import ParallelConfig
from imago.trainer.engine.parallel import ALIGN, aligned, part_lengths
from imago.trainer.plan.layouts import Group, mesh
from imago.trainer.plan.work import PhaseWork

PASSES = {'all_reduce': 2, 'all_gather': 1, 'reduce_scatter': 1}   # times that the whole data goes around a ring


@dataclass(frozen=True)
class Collective:
    kind: str           # a key of PASSES
    bytes: int          # of the whole data: an all-reduce's buffer, what all-gather puts together or reduce-scatter cuts
    group: Group

    def sent_inside(self) -> float:
        """Return the bytes that a rank sends to other ranks of its node."""
        return PASSES[self.kind] * self.bytes * (self.group.inside - 1) / self.group.inside

    def sent_between(self) -> float:
        """Return the bytes that a rank sends to other nodes.

        A rank sends only its part of the data there: its node has summed that part up before, or gathers the parts after.
        """
        return PASSES[self.kind] * self.bytes * (self.group.nodes - 1) / self.group.nodes / self.group.inside

    def rounds(self) -> tuple[int, int]:
        """Count the messages that wait for one another, inside and between nodes.

        It counts those of trees, which NCCL uses where latency counts.
        """
        return PASSES[self.kind] * ceil(log2(self.group.inside)), PASSES[self.kind] * ceil(log2(self.group.nodes))


def phase_traffic(parallel: ParallelConfig, phase: PhaseWork, networks: dict[str, nn.Module], micro_batches: int,
                  nodes: int, gpus: int) -> list[Collective]:
    """List the collectives of one phase, in order."""
    world = Group(gpus, nodes)
    trained = [4 * sum(aligned(p.numel(), ALIGN if parallel.strategy == 'data' else 1) for p in networks[name].parameters())
               for name in phase.trains]
    statistics = [Collective('all_reduce', size, world) for size in phase.statistics] * micro_batches
    if parallel.strategy == 'data':
        before, after = [], [Collective('all_reduce', whole, world) for whole in trained]
    elif parallel.strategy == 'zero':
        # the owners of the moments send the new parameters round; DeepSpeed fills each rank's part up to a multiple of 8 bytes
        before, after = [], [Collective('all_reduce', whole, world) for whole in trained]
        after += [Collective('all_gather', -(-whole // (8 * world.size)) * 8 * world.size, world) for whole in trained]
    else:
        parts, replicas = mesh(parallel, nodes, gpus)
        sizes = {name: 4 * parts.size * sum(part_lengths(list(networks[name].parameters()), parts.size))
                 for name in phase.uses}
        before = [Collective('all_gather', size, parts) for size in sizes.values()]
        after = [collective for name in phase.trains for collective in (
            Collective('reduce_scatter', sizes[name], parts), Collective('all_reduce', sizes[name] // parts.size, replicas),
            Collective('all_reduce', 8, parts))]
    return [*before, *statistics, *after, Collective('all_reduce', phase.means, world)]
