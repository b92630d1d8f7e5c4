"""Alarms keep, from report to report, which indicators are bad and which sound."""

import torch
from torch import Tensor

from imago.trainer.watch.indicators import INDICATORS


def new_alarms() -> dict[str, Tensor]:
    """Return four tensors [indicators]: bad and good reports in a row, whether it sounds, and the images shown when last good."""
    return {name: torch.zeros(len(INDICATORS), dtype=torch.int64) for name in ('bad', 'calm', 'sounding', 'last_good')}


def update_alarms(alarms: dict[str, Tensor], values: dict[str, float], nimg: int, *, patience: int,
                  thresholds: dict[str, float]) -> list[str]:
    """Take in a report's `values`, and return the names of the indicators that begin to sound.

    An indicator sounds after `patience` bad reports in a row, and falls silent after as many good ones. An indicator without a
    value, or whose value is NaN, counts as good. `alarms`, which `new_alarms` makes, are [indicators] each and change in place.
    """
    begin = []
    for index, (name, indicator) in enumerate(INDICATORS.items()):
        bad = name in values and indicator.is_bad(values[name], thresholds.get(name, indicator.threshold))
        alarms['bad'][index] = alarms['bad'][index] + 1 if bad else 0
        alarms['calm'][index] = 0 if bad else alarms['calm'][index] + 1
        if not bad:
            alarms['last_good'][index] = nimg
        if alarms['sounding'][index]:
            alarms['sounding'][index] = int(alarms['calm'][index] < patience)
        elif bad and (indicator.at_once or alarms['bad'][index] >= patience):
            alarms['sounding'][index] = 1
            begin.append(name)
    return begin


def sounding(alarms: dict[str, Tensor]) -> dict[str, int]:
    """Return {indicator that sounds: images shown when it was last good}. `alarms` are [indicators] each."""
    return {name: int(alarms['last_good'][index]) for index, name in enumerate(INDICATORS) if alarms['sounding'][index]}
