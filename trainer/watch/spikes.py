"""The guard remembers values of the steps since the last report, and by what factor norms grew over the earlier reports.

All of it is in tensors of fixed shape, which are a part of the run's state, so that a resumed run knows what was usual.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from imago.trainer.models.spectral import weight_matrices

WINDOW, ENOUGH = 16, 4      # the most and the fewest reports that a median is taken over
MEANS = ('logits/real_sign', 'loss/D', 'loss/G')


def new_memory(phases: tuple[str, ...], networks: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Return an empty memory. The history has a column for each phase's gradient norm and for each layer of `networks`.

    `sums`, `counts` and `peaks` are [values], as `seen_values` names them; `history` is [WINDOW, columns].
    """
    layers, seen = sum(1 for network in networks for _ in weight_matrices(network)), len(seen_values(phases))
    return {'sums': torch.zeros(seen, dtype=torch.float64), 'counts': torch.zeros(seen, dtype=torch.float64),
            'peaks': torch.zeros(seen, dtype=torch.float64),
            'history': torch.zeros(WINDOW, len(phases) + layers, dtype=torch.float64)}   # newest first; 0: none


def seen_values(phases: tuple[str, ...]) -> tuple[str, ...]:
    """Name the values of a step that are remembered, in the order of the memory's columns."""
    return *MEANS, *(f'gradient_norm/{phase}' for phase in phases)


def see_step(memory: dict[str, Tensor], phases: tuple[str, ...], values: dict[str, float]) -> None:
    """Add those values of a step that are remembered to `sums`, `counts` and `peaks` [values]."""
    for index, name in enumerate(seen_values(phases)):
        if name in values:
            memory['sums'][index] += values[name]
            memory['counts'][index] += 1
            memory['peaks'][index] = memory['peaks'][index].clamp(min=values[name])


def end_report(memory: dict[str, Tensor], phases: tuple[str, ...],
               layer_norms: list[float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return means over the steps since the last report, and growth: `gradient_norm`, `gradient_peak`, `spectral_growth`.

    A growth is the largest factor, over phases or layers, between a norm and its median in earlier reports. There is none
    until there are ENOUGH reports.
    In `memory` the new norms push the oldest out of `history` [WINDOW, columns]; `sums`, `counts` and `peaks` [values] become 0.
    """
    means = memory['sums'] / memory['counts']                   # [values], NaN where nothing was seen
    norms = torch.cat([means[len(MEANS):], torch.tensor(layer_norms, dtype=torch.float64)])
    past = memory['history']
    known = (past > 0).sum(dim=0) >= ENOUGH
    usual = past.where(past > 0, math.nan).nanmedian(dim=0).values
    growth = {}
    of_phases, of_layers = slice(0, len(phases)), slice(len(phases), None)
    for name, now, columns in (('gradient_norm', norms, of_phases),
                               ('gradient_peak', memory['peaks'][len(MEANS):], of_phases),
                               ('spectral_growth', norms, of_layers)):
        factors = (now[columns] / usual[columns])[known[columns]]
        factors = factors[factors.isfinite()]
        if len(factors):
            growth[name] = factors.max().item()
    past.copy_(torch.cat([norms.where(~norms.isnan(), 0.0)[None], past[:-1]]))    # a phase that did not run has no norm
    seen = {name: mean for name, mean in zip(seen_values(phases), means.tolist(), strict=True) if math.isfinite(mean)}
    for name in ('sums', 'counts', 'peaks'):
        memory[name].zero_()
    return seen, growth
