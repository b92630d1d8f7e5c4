"""Each rule of trainer/combinations.py refuses an example, on one line; the families and recipes pass them all."""

from pathlib import Path

import pytest
import yaml
from families_for_tests import FAMILIES, RECIPES, config_of

from trainer import config as config_module
from trainer.combinations import _rules
from trainer.config import load_config

MAD_GAN = ['network.name=dcgan', 'loss.name=mad_gan', 'network.generators=2']
PAIRS = ['network.name=dcgan', 'data.pairs=true', 'network.identity_dim=10', 'batch=128']

EXAMPLES = [  # overrides, a piece of the message
    (['network.name=began'], 'use loss.name=began together with network.name=began'),
    (['loss.name=began'], 'loss.name=began with network.name=stylegan2'),
    (['network.name=began', 'loss.name=began', 'regularizers.lecam=0.1'], 'returns reconstruction errors, no logits'),
    (['network.name=dcgan', 'loss.name=mad_gan'], 'loss.name=mad_gan with network.generators=1'),
    (['network.name=dcgan', 'network.generators=2'], 'loss.name=nonsaturating with network.generators=2'),
    (['loss.name=mad_gan', 'network.generators=2'], 'take a network without styles'),
    ([*MAD_GAN, 'data.conditional=true'], 'names the generator in place of the class; set data.conditional=false'),
    ([*MAD_GAN, 'micro_batch=7'], 'micro_batch=7 is not a multiple of network.generators=2, which'),
    ([*MAD_GAN, 'data.pairs=true', 'network.identity_dim=10', 'batch=128'], 'would come from two generators'),
    (['loss.auxiliary=1'], 'there are no classes to tell; set data.conditional=true'),
    (['loss.auxiliary=1', 'loss.name=wgan', 'regularizers.weight_clip=0.01', 'data.conditional=true'],
     'clipped weights cannot classify'),
    (['loss.name=wgan'], 'loss.name=wgan needs a Lipschitz critic'),
    (['regularizers.weight_clip=0.01'], 'regularizers.weight_clip with loss.name=nonsaturating'),
    (['loss.name=wgan', 'regularizers.weight_clip=0.01', 'regularizers.wgan_gp=10'], 'two ways to the same end'),
    (['regularizers.wgan_gp=10', 'regularizers.dragan=1'], "both draw the gradient's norm to 1"),
    (['regularizers.wgan_gp=10', 'regularizers.r1=1'], "draws the gradient's norm to 1 and regularizers.r1 to 0"),
    (['network.name=dcgan', 'regularizers.r2=1'], 'regularizers.r2 with network.name=dcgan: batch norm in D'),
    (['network.name=sngan', 'regularizers.normalise=spectral'], 'which is spectrally normalised itself'),
    (['loss.name=wgan', 'regularizers.normalise=spectral', 'regularizers.weight_clip=0.01'], "both bound D's weights"),
    (['regularizers.normalise_g=true'], 'without a kind; set regularizers.normalise=spectral'),
    (['network.name=pggan', 'regularizers.path_length=2'], 'measured in w, which this network lacks'),
    (['network.name=stylegan1', 'growth.fade_kimg=1', 'regularizers.path_length=2'], 'regularizers.path_length with growth'),
    (['regularizers.path_length=2', 'loss.d_steps=3'], 'regularizers.g_interval=4 is not a multiple of loss.d_steps=3'),
    (['growth.fade_kimg=1'], 'growth with network.name=stylegan2, which does not grow'),
    (['network.name=pggan', 'growth.fade_kimg=1', 'compile=true'], 'compile=true with growth'),
    ([*MAD_GAN, 'regularizers.lecam=0.1'], 'mad_gan has a softmax over outputs, no logit'),
    ([*PAIRS, 'regularizers.wgan_gp=10'], 'regularizers.wgan_gp with data.pairs'),
    (['data.pairs=true'], 'data.pairs=true with network.identity_dim=0'),
    (['network.identity_dim=8'], 'data.pairs=false with network.identity_dim=8'),
    ([*PAIRS, 'network.identity_dim=100'], 'leaves no latents of network.z_dim=100 to observations'),
    ([*PAIRS, 'data.conditional=true'], 'the class is the identity, which z carries'),
    ([*PAIRS, 'batch=64'], 'batch must be a multiple of 2 x lanes and micro_batch even'),
    (['network.name=began', 'loss.name=began', 'augment.name=ada'], 'means nothing with loss.name=began'),
    (['parallel.replicas=2'], 'with parallel.strategy=data: there networks are whole on every rank'),
    (['parallel.stage=2'], 'with parallel.strategy=data: it is of ZeRO; use parallel.stage=1'),
    (['parallel.strategy=zero', 'parallel.stage=2'], 'could not be named; use parallel.stage=1, or parallel.strategy=fsdp'),
    (['parallel.strategy=zero', 'parallel.stage=3'], 'that the second backward of R1 and path length still needs'),
    ([*MAD_GAN, 'augment.name=ada'], 'means nothing with loss.name=mad_gan'),
    (['checkpoint.best=fid'], 'not among what is measured while training'),
    ([*PAIRS, 'guard.data=d'], 'held-out pictures are judged one by one'),
    (['regularizers.orthogonal=1e-4'], 'demodulation cancels the scale'),
]


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text(yaml.safe_dump({'run_dir': 'r', 'data': {'path': 'd'}}))
    return path


@pytest.mark.parametrize('overrides, message', EXAMPLES, ids=[message for _, message in EXAMPLES])
def test_an_example_is_refused(minimal, overrides, message):
    with pytest.raises(ValueError) as caught:
        load_config(minimal, overrides)
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_every_rule_has_an_example(minimal, monkeypatch):
    monkeypatch.setattr(config_module, 'check_combinations', lambda config: None)
    first = set()
    for overrides, _ in EXAMPLES:
        rules = _rules(load_config(minimal, overrides))
        first.add(next(number for number, (forbidden, _) in enumerate(rules) if forbidden))
    assert first == set(range(len(rules)))


@pytest.mark.parametrize('name', [*FAMILIES, *RECIPES])
def test_families_and_recipes_are_accepted(name):
    config_of(name, Path('d'), Path('r'))
