"""This module checks that lanes, ranks, batches and micro-batches divide one another, and finds values that do."""

import math
from typing import TYPE_CHECKING

from imago.trainer.config.schema import MOST_IMAGES

if TYPE_CHECKING:
    from imago.trainer.config.load import Config
    from imago.trainer.config.sections import ParallelConfig

USUAL_LANES = 64    # divided by most numbers of ranks that a run goes on with


def check_division(config: 'Config', world: int) -> None:
    """Raise ValueError unless lanes, batches and micro-batches divide evenly over `world` ranks."""
    if wrong := _wrong(config, world):
        raise ValueError(f'{wrong}; {advice(config, world)}')


def _wrong(config: 'Config', world: int) -> str | None:
    lanes = config.data.lanes
    if lanes is not None and lanes % world:
        return f'data.lanes={lanes} is not a multiple of the {world} ranks'
    for name, batch, micro_name, micro_batch in config.batches():
        if lanes is not None and batch % lanes:
            return f'{name}={batch} is not a multiple of data.lanes={lanes}'
        if batch % (world * micro_batch):
            return f'{name}={batch} is not a multiple of {world} ranks x {micro_name}={micro_batch}'
    return None


def advice(config: 'Config', world: int) -> str:
    """Return overrides that mend every division on `world` ranks at once: larger values, or smaller micro-batches if they do."""
    larger, smaller = fitting(config, world), _smaller(config, world)
    ways = [' '.join(f'{key}={value}' for key, value in changes.items())
            for changes in (larger, smaller) if changes and max(changes.values()) <= MOST_IMAGES]
    return f'use {", or ".join(ways)}' if ways else 'take a micro_batch that divides the batch'


def fitting(config: 'Config', world: int) -> dict[str, int]:
    """Return the keys of lanes, micro-batches and batches that must grow, with the smallest larger values that fit together."""
    lanes = math.lcm(config.data.lanes or 1, world)
    found, needed = {'data.lanes': (config.data.lanes, lanes)} if config.data.lanes else {}, {}
    for name, batch, micro_name, micro_batch in config.batches():
        micro = _round_up(micro_batch, config.game.shares)
        found[micro_name] = micro_batch, micro
        needed[name] = math.lcm(needed.get(name, config.game.together * lanes), world * micro)
        found[name] = batch, _round_up(batch, needed[name])
    return {key: after for key, (before, after) in found.items() if before != after}


def fitting_lanes(config: 'Config', world: int, samples: int) -> int:
    """Return the most lanes, up to USUAL_LANES or one a rank, that divide the batches and deal `samples` pictures to all ranks.

    Raises ValueError if there are none.
    """
    shared = math.gcd(*(batch // config.game.together for _, batch, *_ in config.batches()))
    most = min(samples, shared, max(USUAL_LANES, world))
    fit = max((lanes for lanes in range(world, most + 1, world) if shared % lanes == 0), default=None)
    if fit is None:
        raise ValueError(f'{samples} pictures are too few for {world} ranks; pack more, or use fewer ranks')
    return fit


def _smaller(config: 'Config', world: int) -> dict[str, int]:
    """Return keys of micro-batches with the largest smaller values that divide the batches; {} where these are not enough."""
    lanes = config.data.lanes or world
    if lanes % world or any(batch % (config.game.together * lanes) for _, batch, *_ in config.batches()):
        return {}
    found, unit = {}, config.game.shares
    for _, _, micro_name, micro_batch in config.batches():
        shared = math.gcd(*(batch // world for _, batch, name, _ in config.batches() if name == micro_name))
        fit = max((micro for micro in range(unit, micro_batch + 1, unit) if shared % micro == 0), default=None)
        if fit is None:
            return {}
        found |= {micro_name: fit} if fit != micro_batch else {}
    return found


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def parts_of(config: 'ParallelConfig', world: int) -> int:
    """Return over how many ranks a network is cut."""
    return world // config.replicas if config.strategy == 'fsdp' else 1
