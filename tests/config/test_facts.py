"""A fact that two places tell is the same in both."""

import inspect

import pytest
import torch
from families_for_tests import FAMILIES, VARIANTS, config_of

from imago.trainer.config import games
from imago.trainer.config.load import Config, _known_keys, flatten, is_fixed, load_config
from imago.trainer.config.losses import GRADIENT_PENALTY_NAMES, LOSS_FACTS
from imago.trainer.config.networks import SECTIONS
from imago.trainer.config.sections import RegularizerConfig
from imago.trainer.data.shards import open_dataset
from imago.trainer.engine.parallel import make_strategy
from imago.trainer.engine.state import make_networks, make_state
from imago.trainer.games import GAMES, make_game
from imago.trainer.models import NETWORKS
from imago.trainer.objectives.losses import LOSSES
from imago.trainer.objectives.regularizers import GRADIENT_PENALTIES

FIXED_KEYS = ('seed', 'network', 'data.resolution', 'data.crop', 'data.conditional', 'game.name', 'game.generators',
              'game.identity_dim',
              'data.lanes', 'data.flip', 'growth.start_resolution', 'growth.fade_kimg', 'growth.stage_kimg', 'growth.batch',
              'growth.penalty_at', 'growth.restart', 'loss.auxiliary', 'regularizers.normalise', 'regularizers.normalise_g')


def test_constructors_have_the_defaults_of_the_configuration():
    compared = 0
    for name, section in SECTIONS.items():
        for role in ('generator', 'discriminator'):
            for key, parameter in inspect.signature(NETWORKS[role][name]).parameters.items():
                if key in section.model_fields and parameter.default is not parameter.empty:
                    compared += 1
                    assert parameter.default == section.model_fields[key].default, (section, role, key)
    assert compared > 60


def test_what_sections_say_of_networks_is_so(wide_shards, tmp_path):
    manifest = open_dataset(wide_shards).manifest
    assert FAMILIES.keys() == SECTIONS.keys()
    for name, section in SECTIONS.items():
        config = config_of(name, wide_shards, tmp_path)
        networks = make_networks(config.game.plan(config, manifest))
        buffers = {key.rpartition('.')[2] for network in networks.values() for key, _ in network.named_buffers()}
        assert section.styles == bool(networks['G'].num_ws), name
        assert section.grows == ('lod' in buffers), name


@pytest.mark.parametrize('name', FAMILIES | VARIANTS)
def test_phases_are_those_of_the_plan(wide_shards, tmp_path, name):
    config = config_of(name, wide_shards, tmp_path)
    plan = config.game.plan(config, open_dataset(wide_shards).manifest)
    game = make_game(config, plan, make_state(config, plan, torch.device('cpu'), make_strategy(config.parallel)))
    phases = [phase.name for phase in game.phases()]
    assert phases == [known for known in plan.phases if known in phases] and {'D_main', 'G_main'} <= set(phases)


def test_names_of_losses_and_penalties():
    assert LOSSES.keys() == LOSS_FACTS.keys()
    assert tuple(GRADIENT_PENALTIES) == GRADIENT_PENALTY_NAMES
    assert set(GRADIENT_PENALTY_NAMES) <= RegularizerConfig.model_fields.keys()
    assert GAMES.keys() == games.SECTIONS.keys()


@pytest.mark.parametrize('name', LOSSES)
def test_facts_of_losses_are_so(name):
    loss, facts = LOSSES[name], LOSS_FACTS[name]
    real, fake = 3 * torch.randn(2, 500, 1, generator=torch.Generator().manual_seed(0))
    each = torch.stack([torch.stack([loss.d_loss(a, b), loss.g_loss(b, a)]) for a, b in zip(real, fake, strict=True)])
    assert facts.positive == bool((each >= 0).all())
    # a signed loss is least where reals and fakes are equally far from 0
    shifts = torch.linspace(-2, 2, 17)
    losses = torch.stack([loss.d_loss(0.5 + shift[None, None], -0.5 + shift[None, None]) for shift in shifts])
    best = shifts[losses < losses.min() + 1e-5]
    assert facts.signed == (len(best) < len(shifts) and abs(best.mean().item()) < 1e-6)


def test_nothing_is_known_of_a_loss_that_is_a_games_own():
    """BEGAN's reconstruction errors are never negative: their sign says nothing."""
    began = ['game.name=began', 'network.name=began']
    config = load_config('dcgan-64', began)
    assert not config.game.loss_facts(config).signed and load_config('dcgan-64').game.loss_facts(load_config('dcgan-64')).signed
    with pytest.raises(ValueError, match='means nothing with game.name=began; use augment.p=0.2'):
        load_config('dcgan-64', [*began, 'augment.name=ada'])


def test_marked_keys_are_those_that_make_a_run_what_it_is():
    keys = _known_keys(Config)
    assert len(keys) > 150 and set(FIXED_KEYS) <= set(keys)
    for key in keys:
        assert is_fixed(key) == any(key == fixed or key.startswith(f'{fixed}.') for fixed in FIXED_KEYS), key
    assert is_fixed('growth.batch.8') and not is_fixed('optim.g_lr.start') and not is_fixed('growth') and not is_fixed('no.key')


@pytest.mark.parametrize('section', games.SECTIONS.values())
def test_numbers_of_games_have_bounds(section):
    for key, schema in section.model_json_schema()['properties'].items():
        if schema.get('type') in ('number', 'integer'):
            assert {'minimum', 'ge'} & schema.keys() and {'maximum', 'le'} & schema.keys(), key


def test_a_game_survives_its_file_and_keeps_to_its_own_keys():
    config = load_config('dcgan-64', ['game.name=mad_gan', 'game.generators=4'])
    again = Config.model_validate(config.model_dump(mode='json'))
    assert again.game == config.game == games.MADGAN(name='mad_gan', generators=4)
    assert flatten(again.model_dump())['game.generators'] == 4
    for override, message in (('game.name=foo', 'game.name=foo: take one of latent, began, mad_gan, sd_gan'),
                              ('game.generators=4', 'unknown key game.generators: games of another name have it'),
                              ('game.gama=4', 'did you mean game.gamma'), ('game=4', 'game=4: ')):
        with pytest.raises(ValueError, match=message):
            load_config('dcgan-64', [override])
