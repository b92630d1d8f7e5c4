"""Every packaged configuration takes two steps of each of its phases, cut down in size by overrides alone."""

from collections import Counter

import pytest
import torch
from runs_for_tests import flat

from imago.trainer.config.load import load_config
from imago.trainer.config.shipped import names
from imago.trainer.engine.phase import run_phase
from imago.trainer.ranks import dist
from imago.trainer.start import prepare
from imago.trainer.train import train

BATCH = 4
EQUALISED = ['z_dim=16', 'channel_base=256', 'channel_max=16']
STYLES = [*EQUALISED, 'w_dim=16', 'mapping_layers=2']
NARROW = {  # options of a family's networks
    'stylegan2': STYLES, 'stylegan1': STYLES, 'pggan': EQUALISED,
    'biggan': ['z_dim=16', 'channels=4', 'shared_dim=8'], 'biggan-deep': ['z_dim=8', 'channels=4', 'shared_dim=8'],
    'dcgan': ['channels=4'], 'sngan': ['channels=4'],
    'r3gan': ['z_dim=8', 'channel_base=256', 'channel_max=16', 'group_size=4', 'label_dim=4'],
    'began': ['channels=4', 'code_dim=8'],
}
# the run grows from its first size to the next but one; sizes above 32 px stay in the maps
GROWTH = ['growth.stage_kimg=0.004', 'growth.fade_kimg=0.008',
          *(f'growth.{key}={{4: {BATCH}, 8: {BATCH}, 16: {BATCH}, 32: {BATCH}}}' for key in ('batch', 'micro_batch'))]


def cut_down(name, data, run_dir):
    published = load_config(name)
    penalties = published.regularizers
    steps = 1 + max(published.loss.d_steps, penalties.d_interval, penalties.g_interval if penalties.path_length else 1,
                    5 if published.growth else 1)
    overrides = [f'run_dir={run_dir}', 'device=cpu', f'total_kimg={steps * BATCH / 1000}', f'batch={BATCH}',
                 f'micro_batch={BATCH}', f'data.path={data}', 'data.resolution=32', f'data.lanes={BATCH}', 'data.workers=0',
                 'log.grid=[2, 2]', *(f'network.{option}' for option in NARROW[published.network.name])]
    return load_config(name, overrides + (GROWTH if published.growth else []))


def weights(state):
    return [parameter for network in state.networks.values() for parameter in network.parameters()]


@pytest.mark.parametrize('name', names())
def test_a_config_trains(wide_shards, tmp_path, monkeypatch, name):
    dist.init('cpu')
    load_config(name).check_world(1)
    taken = Counter()

    def counting(phase, *arguments):
        taken[phase.name] += 1
        return run_phase(phase, *arguments)

    monkeypatch.setattr('imago.trainer.train.run_phase', counting)
    run = prepare(cut_down(name, wide_shards, tmp_path / 'run'))
    before = [parameter.clone() for parameter in weights(run.state)]
    train(run)
    assert {'D_main', 'G_main'} <= taken.keys() and min(taken.values()) >= 2
    assert all(tensor.isfinite().all() for tensor in flat(run.state.tree()).values())
    assert not all(torch.equal(*pair) for pair in zip(before, weights(run.state), strict=True))
