"""Each rule of trainer/combinations.py refuses an example, on one line; the families and recipes pass them all."""

import contextlib
from pathlib import Path

import pytest
import yaml
from families_for_tests import FAMILIES, RECIPES, config_of

from trainer.combinations import _rules
from trainer.config import load_config

MAD_GAN = ['network.name=dcgan', 'loss.name=mad_gan', 'network.generators=2']
PAIRS = ['network.name=dcgan', 'data.pairs=true', 'network.identity_dim=10', 'batch=128']

EXAMPLES = [  # overrides, a piece of the message
    (['network.name=began'], '; use loss.name=began network.name=began'),
    (['loss.name=began'], 'loss.name=began with network.name=stylegan2'),
    (['network.name=began', 'loss.name=began', 'regularizers.lecam=0.1'], 'returns reconstruction errors, no logits'),
    (['network.name=dcgan', 'loss.name=mad_gan'], 'loss.name=mad_gan with network.generators=1'),
    (['network.name=dcgan', 'network.generators=2'], 'loss.name=nonsaturating with network.generators=2'),
    (['loss.name=mad_gan', 'network.generators=2'], 'use network.name=dcgan, or loss.name=nonsaturating network.generators=1'),
    ([*MAD_GAN, 'data.conditional=true'], 'names the generator in place of the class; use data.conditional=false'),
    ([*MAD_GAN, 'micro_batch=7'], 'network.generators=2, which make equal shares of it; use micro_batch=8'),
    ([*MAD_GAN, 'data.pairs=true', 'network.identity_dim=10', 'batch=128'], 'would come from two generators'),
    (['loss.auxiliary=1'], 'there are no classes to tell; use data.conditional=true'),
    (['loss.auxiliary=1', 'loss.name=wgan', 'regularizers.weight_clip=0.01', 'data.conditional=true'],
     'cannot classify; use regularizers.weight_clip=0 regularizers.wgan_gp=10, or regularizers.weight_clip=0 reg'),
    (['loss.name=wgan'],
     'critic; use regularizers.weight_clip=0.01, or regularizers.wgan_gp=10, or regularizers.normalise=spectral'),
    (['loss.name=wgan', 'network.name=dcgan', 'loss.auxiliary=1', 'data.conditional=true'],
     'needs a Lipschitz critic; use regularizers.normalise=spectral'),    # others do not go with dcgan, or with a classifier
    (['regularizers.weight_clip=0.01'], 'regularizers.weight_clip with loss.name=nonsaturating'),
    (['loss.name=wgan', 'regularizers.weight_clip=0.01', 'regularizers.wgan_gp=10'], 'two ways to the same end'),
    (['regularizers.wgan_gp=10', 'regularizers.dragan=1'], "both draw the gradient's norm to 1"),
    (['regularizers.wgan_gp=10', 'regularizers.r1=1'], "draws the gradient's norm to 1 and regularizers.r1 to 0"),
    (['network.name=dcgan', 'regularizers.r2=1'], 'regularizers.r2 with network.name=dcgan: batch norm in D'),
    (['network.name=sngan', 'regularizers.normalise=spectral'], 'which is spectrally normalised itself'),
    (['loss.name=wgan', 'regularizers.normalise=spectral', 'regularizers.weight_clip=0.01'], "both bound D's weights"),
    (['regularizers.normalise_g=true'], 'without a kind; use regularizers.normalise=spectral, or regularizers.normalise_g=false'),
    (['network.name=pggan', 'regularizers.path_length=2'], 'measured in w, which this network lacks'),
    (['network.name=stylegan1', 'growth.fade_kimg=1', 'regularizers.path_length=2'], 'regularizers.path_length with growth'),
    (['regularizers.path_length=2', 'loss.d_steps=3'],
     'regularizers.g_interval=4 is not a multiple of loss.d_steps=3; use regularizers.g_interval=6'),
    (['growth.fade_kimg=1'], 'growth with network.name=stylegan2, which does not grow'),
    (['network.name=pggan', 'growth.fade_kimg=1', 'compile=true'], 'compile=true with growth'),
    ([*MAD_GAN, 'regularizers.lecam=0.1'], 'mad_gan has a softmax over outputs, no logit'),
    ([*PAIRS, 'regularizers.wgan_gp=10'], 'regularizers.wgan_gp with data.pairs'),
    (['data.pairs=true'], 'data.pairs=true with network.identity_dim=0'),
    (['network.identity_dim=8'], 'data.pairs=false with network.identity_dim=8'),
    ([*PAIRS, 'network.identity_dim=100'], 'leaves no latents of network.z_dim=100 to observations'),
    ([*PAIRS, 'data.conditional=true'], 'the class is the identity, which z carries'),
    ([*PAIRS, 'batch=64'], 'each batch must be a multiple of 2 x lanes, and each micro-batch even; use batch=128'),
    ([*PAIRS, 'micro_batch=7', 'data.lanes=10'], 'and each micro-batch even; use micro_batch=8 batch=160'),
    (['network.name=began', 'loss.name=began', 'augment.name=ada'], 'means nothing with loss.name=began'),
    (['parallel.replicas=2'], 'with parallel.strategy=data: there networks are whole on every rank'),
    (['parallel.stage=2'], 'with parallel.strategy=data: it is of ZeRO; use parallel.stage=1'),
    (['parallel.strategy=zero', 'parallel.stage=2'],
     'could not be named; use parallel.stage=1, or parallel.strategy=fsdp parallel.stage=1'),
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


def test_every_rule_has_an_example(minimal):
    first = {refusing(minimal, overrides)[0] for overrides, _ in EXAMPLES}
    assert first == set(range(len(_rules(load_config(minimal)))))


@pytest.mark.parametrize('overrides, message', EXAMPLES, ids=[message for _, message in EXAMPLES])
def test_advice_is_accepted(minimal, overrides, message):
    """Each way out that a message tells; of two things that are wrong it mends the first."""
    with pytest.raises(ValueError) as caught:
        load_config(minimal, overrides)
    first = str(caught.value)
    ways = first.rpartition('; use ')[2].split(', or ')
    assert '; use ' in first and ways
    for way in ways:
        with contextlib.suppress(ValueError):
            assert load_config(minimal, [*overrides, *way.split()])
            continue
        with pytest.raises(ValueError) as caught:
            load_config(minimal, [*overrides, *way.split()])
        assert len(refusing(minimal, overrides)) > 1 and first.partition('; use ')[0] not in str(caught.value)


def refusing(path, overrides):
    config = load_config(path).changed(overrides)
    return [number for number, (forbidden, *_) in enumerate(_rules(config)) if forbidden]


@pytest.mark.parametrize('name', [*FAMILIES, *RECIPES])
def test_families_and_recipes_are_accepted(name):
    config_of(name, Path('d'), Path('r'))
