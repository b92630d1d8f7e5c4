"""What the steps since the last report have shown, and by what factor norms have grown over the reports before it.

All of it is in tensors of fixed shape, which are a part of the run's state: a resumed run knows what was usual.
"""

import math

import torch
from torch import Tensor, nn

from trainer.models.spectral import weight_matrices

WINDOW, ENOUGH = 16, 4      # reports that a median is taken over, at most and at least
PHASES = ('D_main', 'D_reg', 'G_main', 'G_reg')
MEANS = ('logits/real_sign', 'loss/D', 'loss/G')
SEEN = (*MEANS, *(f'gradient_norm/{phase}' for phase in PHASES))


def new_memory(*networks: nn.Module) -> dict[str, Tensor]:
    """Empty. The history has a column for each phase's gradient norm and for each layer of `networks`."""
    layers = sum(1 for network in networks for _ in weight_matrices(network))
    return {'sums': torch.zeros(len(SEEN), dtype=torch.float64), 'counts': torch.zeros(len(SEEN), dtype=torch.float64),
            'peaks': torch.zeros(len(SEEN), dtype=torch.float64),
            'history': torch.zeros(WINDOW, len(PHASES) + layers, dtype=torch.float64)}   # newest first; 0: none


def see_step(memory: dict[str, Tensor], values: dict[str, float]) -> None:
    """Count in those values of a step that are in SEEN."""
    for index, name in enumerate(SEEN):
        if name in values:
            memory['sums'][index] += values[name]
            memory['counts'][index] += 1
            memory['peaks'][index] = memory['peaks'][index].clamp(min=values[name])


def end_report(memory: dict[str, Tensor], layer_norms: list[float]) -> tuple[dict[str, float], dict[str, float]]:
    """Means over the steps since the last report, and growth: `gradient_norm`, `gradient_peak`, `spectral_growth`.

    Each is the largest factor over a median, of phases or layers; growth is empty until there are ENOUGH reports.
    """
    means = memory['sums'] / memory['counts']                   # [SEEN], NaN where nothing was seen
    norms = torch.cat([means[len(MEANS):], torch.tensor(layer_norms, dtype=torch.float64)])
    past = memory['history']
    known = (past > 0).sum(dim=0) >= ENOUGH
    usual = past.where(past > 0, math.nan).nanmedian(dim=0).values
    growth = {}
    phases = slice(0, len(PHASES))
    for name, now, columns in (('gradient_norm', norms, phases), ('gradient_peak', memory['peaks'][len(MEANS):], phases),
                               ('spectral_growth', norms, slice(len(PHASES), None))):
        factors = (now[columns] / usual[columns])[known[columns]]
        factors = factors[factors.isfinite()]
        if len(factors):
            growth[name] = factors.max().item()
    past.copy_(torch.cat([norms.where(~norms.isnan(), 0.0)[None], past[:-1]]))    # a phase that did not come has no norm
    seen = {name: mean for name, mean in zip(SEEN, means.tolist(), strict=True) if math.isfinite(mean)}
    for name in ('sums', 'counts', 'peaks'):
        memory[name].zero_()
    return seen, growth
