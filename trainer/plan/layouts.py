"""How a run could be laid out over GPUs and nodes: which ranks share what. Torch-free, so that a refusal comes at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from imago.trainer.config.division import parts_of
from imago.trainer.config.load import Config
from imago.trainer.config.schedule import stage_at
from imago.trainer.config.sections import ParallelConfig

STRATEGIES = get_args(ParallelConfig.model_fields['strategy'].annotation)


@dataclass(frozen=True)
class Group:
    """Ranks that work together: `inside` of them on each of `nodes`."""

    inside: int
    nodes: int = 1

    @property
    def size(self) -> int:
        return self.inside * self.nodes


def mesh(parallel: ParallelConfig, nodes: int, gpus: int) -> tuple[Group, Group]:
    """Return the ranks that share one set of parts, and those that hold the same part. ValueError where the cut is uneven."""
    parts = parts_of(parallel, nodes * gpus)
    if parts <= gpus and gpus % parts == 0:
        return Group(parts), Group(gpus // parts, nodes)
    if parts % gpus == 0:
        return Group(gpus, parts // gpus), Group(1, nodes * gpus // parts)
    raise ValueError(f'parallel.replicas={parallel.replicas} on {nodes} nodes of {gpus} GPUs: sets of {parts} parts neither '
                     f'fill nodes nor divide one; use a divisor of {nodes}, or {nodes} times one of {gpus}')


def at_full_size(config: Config, world: int) -> Config:
    """Return `config` as the run ends, with a micro_batch that is no larger than a rank's share of the batch.

    ValueError where the batch cannot be divided.
    """
    if config.data.size(None) is None:
        raise ValueError('data.resolution is not set, and the pictures are not looked at; give data.resolution=512, say')
    stage = stage_at(config, config.data.size(None), config.total_nimg)
    micro_batch = min(stage.micro_batch, max(stage.batch // world, 1))
    config = config.model_copy(update={'growth': None, 'batch': stage.batch, 'micro_batch': micro_batch})
    config.check_world(world)
    return config


def layouts(config: Config, node_counts: list[int], gpus: int) -> Iterator[tuple[Config, int, int]]:
    """Yield (configuration, nodes, GPUs a node): one GPU, then each number of nodes under each strategy that makes sense."""
    yield at_full_size(spread(config, 'data'), 1), 1, 1
    for nodes in node_counts:
        if nodes * gpus > 1:
            ways = [*((strategy, 1) for strategy in STRATEGIES), ('fsdp', nodes),
                    (config.parallel.strategy, config.parallel.replicas)]
            for strategy, replicas in dict.fromkeys(ways):
                planned = at_full_size(spread(config, strategy, replicas), nodes * gpus)
                mesh(planned.parallel, nodes, gpus)
                yield planned, nodes, gpus


def spread(config: Config, strategy: str, replicas: int = 1) -> Config:
    return config.model_copy(update={'parallel': ParallelConfig(strategy=strategy, replicas=replicas)})
