"""Each rule of trainer/config/rules.py refuses an example, on one line; the families and variants pass them all."""

import contextlib
from pathlib import Path

import pytest
import yaml
from families_for_tests import FAMILIES, VARIANTS, config_of

from imago.trainer.config.games import SECTIONS
from imago.trainer.config.load import load_config
from imago.trainer.config.rules import _mends, _refusing, _rules

BEGAN = ['network.name=began', 'game.name=began']
MAD_GAN = ['network.name=dcgan', 'game.name=mad_gan', 'game.generators=2']
SD_GAN = ['network.name=dcgan', 'game.name=sd_gan', 'game.identity_dim=10', 'batch=128']

EXAMPLES = [  # overrides, a piece of the message
    (['network.name=began'], 'made for another game; use game.name=began, or network.name=stylegan2'),
    ([*SD_GAN, 'network.name=began'], 'network.name=began with game.name=sd_gan: this network is made for another game'),
    (['network.name=began', 'game.name=mad_gan'], 'network.name=began with game.name=mad_gan: this network'),
    ([*BEGAN, 'loss.name=hinge'], 'game.name=began, which has a loss of its own; use loss.name=nonsaturating'),
    (['network.name=dcgan', 'game.name=mad_gan', 'loss.name=hinge'],
     'which has a loss of its own; use loss.name=nonsaturating, or game.name=latent'),
    (['game.name=began'], 'which only its autoencoder returns; use network.name=began, or game.name=latent'),
    ([*BEGAN, 'regularizers.lecam=0.1'], 'has reconstruction errors, no logits'),
    (['game.name=mad_gan', 'game.generators=2'], 'needs none; use network.name=dcgan'),
    ([*MAD_GAN, 'data.conditional=true'], 'names the generator in place of the class; use data.conditional=false'),
    ([*MAD_GAN, 'micro_batch=7'], 'game.generators=2, which make equal shares of it; use micro_batch=8'),
    (['loss.auxiliary=1'], 'there are no classes to tell; use data.conditional=true'),
    (['loss.auxiliary=1', 'loss.name=wgan', 'regularizers.weight_clip=0.01', 'data.conditional=true'],
     'cannot classify; use regularizers.weight_clip=0 regularizers.wgan_gp=10, or regularizers.weight_clip=0 reg'),
    (['loss.reuse_fakes=true', 'loss.d_steps=2'], 'loss.d_steps=2: G would go on from the fakes of one of several steps; use loss.d_steps=1'),
    (['loss.reuse_fakes=true', 'compile=true'], 'is not made to outlive other phases; use compile=false, or loss.reuse_fakes=false'),
    (['loss.reuse_fakes=true', 'parallel.strategy=fsdp', 'parallel.replicas=2'],
     'needs it in two; use loss.reuse_fakes=false, or parallel.strategy=data parallel.replicas=1'),
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
    ([*MAD_GAN, 'regularizers.lecam=0.1'], 'game.name=mad_gan has a softmax over outputs, no logit'),
    ([*SD_GAN, 'network.name=r3gan', 'regularizers.wgan_gp=10'], 'regularizers.wgan_gp with game.name=sd_gan'),
    ([*SD_GAN, 'game.identity_dim=100'], 'leaves no latents of network.z_dim=100 to observations'),
    ([*SD_GAN, 'data.conditional=true'], 'the class is the identity, which z carries'),
    ([*SD_GAN, 'batch=64', 'data.lanes=64'], 'each batch must be a multiple of 128, and each micro-batch even; use batch=128'),
    ([*SD_GAN, 'micro_batch=7', 'data.lanes=10'], 'and each micro-batch even; use micro_batch=8 batch=160'),
    ([*BEGAN, 'augment.name=ada'], 'means nothing with game.name=began'),
    (['parallel.replicas=2'], 'with parallel.strategy=data: there networks are whole on every rank'),
    (['parallel.stage=2'], 'with parallel.strategy=data: it is of ZeRO; use parallel.stage=1'),
    (['parallel.strategy=zero', 'parallel.stage=2'],
     'could not be named; use parallel.stage=1, or parallel.strategy=fsdp parallel.stage=1'),
    (['parallel.strategy=zero', 'parallel.stage=3'], 'that the second backward of R1 and path length still needs'),
    ([*MAD_GAN, 'augment.name=ada'], 'means nothing with game.name=mad_gan'),
    (['loss.name=least_squares', 'augment.name=ada'], 'means nothing with loss.name=least_squares'),
    (['precision.cudnn_benchmark=true'], 'with precision.deterministic=true: timing may choose another way to convolve at each '
     'start, and the bits with it; use precision.deterministic=false, or precision.cudnn_benchmark=false'),
    (['checkpoint.best=fid'], 'not among what is measured while training'),
    (['network.name=pggan', 'growth.fade_kimg=1', 'guard.data=d'], 'held-out pictures are judged at full size'),
    ([*SD_GAN, 'guard.data=d'], 'held-out pictures are judged one by one'),
    (['regularizers.orthogonal=1e-4'], 'demodulation cancels the scale'),
    (['network.name=sngan', 'data.conditional=continuous'], 'which takes classes alone; use network.name=stylegan2'),
    (['data.conditional=continuous', 'guard.data=d'], 'by conditions, which are not kept of held-out ones'),
    (['data.conditional=continuous', 'evaluate.interval_kimg=5', 'evaluate.metrics=[fid,intra_fid]'], 'which is of classes'),
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
    """There is one for each rule of all games, and for each game's own rules."""
    first = {refusing(minimal, overrides)[0] for overrides, _ in EXAMPLES}
    configs = [load_config(minimal).changed([f'game.name={name}']) for name in SECTIONS]
    assert first == {key for config in configs for key in _rules(config)}


def test_advice_breaks_no_rule_of_another_game(minimal):
    """Each game numbers its own rules from 0: a broken rule 0 of this game does not excuse breaking rule 0 of another."""
    config = load_config(minimal).changed(['game.name=mad_gan', 'game.generators=2', 'network.name=stylegan2'])
    assert _refusing(config) == {('mad_gan', 0)} == _refusing(config.changed(['micro_batch=8']))
    other = load_config(minimal).changed(['game.name=began'])
    assert _refusing(other) == {('began', 0)}
    classes = load_config(minimal).changed(['game.name=mad_gan', 'data.conditional=true'])
    assert not _mends(classes, ('mad_gan', 1), 'game.name=began')


@pytest.mark.parametrize('overrides, message', EXAMPLES, ids=[message for _, message in EXAMPLES])
def test_advice_is_accepted(minimal, overrides, message):
    """Each way out that a message names is accepted, or if two things are wrong, mends the first."""
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
    return [key for key, (forbidden, *_) in _rules(config).items() if forbidden]


@pytest.mark.parametrize('name', [*FAMILIES, *VARIANTS])
def test_families_and_variants_are_accepted(name):
    config_of(name, Path('d'), Path('r'))
