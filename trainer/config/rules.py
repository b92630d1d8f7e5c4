"""These rules refuse parts of a configuration that make no sense together. Each says why, and what to set instead."""

from typing import TYPE_CHECKING

from imago.trainer.config.games import Rule, without
from imago.trainer.config.games import on_gradient as on_gradient_of
from imago.trainer.config.sections import CONTINUOUS

if TYPE_CHECKING:
    from imago.trainer.config.load import Config

Key = int | tuple[str, int]    # a rule's number; a game's own rule also has the game's name


def check_combinations(config: 'Config') -> None:
    """Raise ValueError for the first combination that makes no sense. Its message offers those fixes that break no other rule."""
    for key, (forbidden, message, *ways) in _rules(config).items():
        if forbidden:
            mends = [way for way in ways if _mends(config, key, way)]
            raise ValueError(message + (f'; use {", or ".join(mends)}' if mends else ''))


def _mends(config: 'Config', key: Key, way: str) -> bool:
    """Return whether the overrides of `way` satisfy that rule and break no other."""
    try:
        changed = config.changed(way.split())
    except ValueError:
        return False
    return _refusing(changed) <= _refusing(config) - {key}


def _refusing(config: 'Config') -> set[Key]:
    return {key for key, (forbidden, *_) in _rules(config).items() if forbidden}


def _rules(config: 'Config') -> dict[Key, Rule]:
    """A game's own rules come last."""
    of_all = [*_of_parallel(config), *_of_losses(config), *_of_penalties(config), *_of_the_rest(config), *_of_games(config)]
    own = config.game.rules(config)
    return dict(enumerate(of_all)) | {(config.game.name, number): rule for number, rule in enumerate(own)}


def _of_games(config: 'Config') -> list[Rule]:
    game, network, default = config.game, config.network, type(config.loss)().name
    return [
        (network.made_for and network.made_for != game.name,
         f'network.name={network.name} with game.name={game.name}: this network is made for another game',
         f'game.name={network.made_for}', 'network.name=stylegan2'),
        (game.own_loss and config.loss.name != default,
         f'loss.name={config.loss.name} with game.name={game.name}, which has a loss of its own', f'loss.name={default}',
         'game.name=latent'),
    ]


def _of_parallel(config: 'Config') -> list[Rule]:
    strategy, replicas, stage = config.parallel.strategy, config.parallel.replicas, config.parallel.stage
    fsdp = 'parallel.strategy=fsdp' + (' parallel.stage=1' if stage > 1 else '')
    return [
        (replicas > 1 and strategy != 'fsdp',
         f'parallel.replicas={replicas} with parallel.strategy={strategy}: there networks are whole on every rank',
         fsdp, 'parallel.replicas=1'),
        (stage > 1 and strategy != 'zero',
         f'parallel.stage={stage} with parallel.strategy={strategy}: it is of ZeRO', 'parallel.stage=1'),
        (stage == 2,
         'parallel.stage=2: ZeRO-2 sends gradients away while backward still runs, so that the rank of one that is not '
         'finite could not be named', 'parallel.stage=1', fsdp),
        (stage == 3,
         'parallel.stage=3: ZeRO-3 frees parameters that the second backward of R1 and path length still needs, which '
         'parallel.strategy=fsdp keeps while a phase runs', fsdp, 'parallel.stage=1'),
    ]


def _of_losses(config: 'Config') -> list[Rule]:
    network, loss, data, penalties = config.network, config.loss, config.data, config.regularizers
    on_gradient = on_gradient_of(config)
    return [
        (loss.auxiliary and data.conditional is not True,
         f'loss.auxiliary={loss.auxiliary} with data.conditional={str(data.conditional).lower()}: there are no classes to tell',
         'data.conditional=true', 'loss.auxiliary=0'),
        (loss.auxiliary and loss.name == 'wgan' and penalties.weight_clip,
         'loss.auxiliary with regularizers.weight_clip: clipped weights cannot classify',
         *(f'{without("weight_clip")} {other}' for other in ('regularizers.wgan_gp=10', 'regularizers.normalise=spectral')),
         'loss.auxiliary=0'),
        (loss.reuse_fakes and loss.d_steps > 1,
         f'loss.reuse_fakes=true with loss.d_steps={loss.d_steps}: G would go on from the fakes of one of several steps',
         'loss.d_steps=1', 'loss.reuse_fakes=false'),
        (loss.reuse_fakes and config.compile,
         'loss.reuse_fakes=true with compile=true: what compiled code keeps for its gradient is not made to outlive other phases',
         'compile=false', 'loss.reuse_fakes=false'),
        (loss.reuse_fakes and config.parallel.strategy == 'fsdp',
         'loss.reuse_fakes=true with parallel.strategy=fsdp: G is whole within a phase only, and the gradient of its fakes '
         'needs it in two', 'loss.reuse_fakes=false', 'parallel.strategy=data parallel.replicas=1'),
        (loss.name == 'wgan' and not (penalties.weight_clip or on_gradient or penalties.normalise != 'none'
                                      or network.normalised),
         'loss.name=wgan needs a Lipschitz critic',
         'regularizers.weight_clip=0.01', 'regularizers.wgan_gp=10', 'regularizers.normalise=spectral'),
    ]


def _of_penalties(config: 'Config') -> list[Rule]:
    network, loss, penalties = config.network, config.loss, config.regularizers
    name, on_gradient = network.name, on_gradient_of(config)
    return [
        (penalties.weight_clip and loss.name != 'wgan',
         f'regularizers.weight_clip with loss.name={loss.name}: clipping keeps a Wasserstein critic Lipschitz and '
         'only harms others', 'loss.name=wgan', without('weight_clip')),
        (penalties.weight_clip and penalties.wgan_gp,
         'regularizers.weight_clip and regularizers.wgan_gp are two ways to the same end',
         without('weight_clip'), without('wgan_gp')),
        (penalties.wgan_gp and penalties.dragan,
         'regularizers.wgan_gp and regularizers.dragan both draw the gradient\'s norm to 1',
         without('dragan'), without('wgan_gp')),
        (penalties.wgan_gp and penalties.r1,
         'regularizers.wgan_gp draws the gradient\'s norm to 1 and regularizers.r1 to 0', without('r1'), without('wgan_gp')),
        (on_gradient and network.batch_norm_in_d,
         f'regularizers.{on_gradient and on_gradient[0]} with network.name={name}: batch norm in D makes the gradient at a '
         'picture depend on the others', without(*on_gradient)),
        (penalties.normalise != 'none' and network.normalised,
         f'regularizers.normalise={penalties.normalise} with network.name={name}, which is spectrally normalised itself',
         'regularizers.normalise=none' + (' regularizers.normalise_g=false' if penalties.normalise_g else '')),
        (penalties.normalise != 'none' and penalties.weight_clip,
         'regularizers.normalise and regularizers.weight_clip both bound D\'s weights',
         without('weight_clip'), 'regularizers.normalise=none'),
        (penalties.normalise_g and penalties.normalise == 'none',
         'regularizers.normalise_g=true without a kind', 'regularizers.normalise=spectral', 'regularizers.normalise_g=false'),
        (penalties.path_length and not network.styles,
         f'regularizers.path_length with network.name={name}: it is measured in w, which this network lacks',
         without('path_length')),
        (penalties.path_length and config.growth,
         'regularizers.path_length with growth: the mean path length jumps with the resolution', without('path_length'),
         'growth=null'),
        (penalties.path_length and penalties.g_interval % loss.d_steps,
         f'regularizers.g_interval={penalties.g_interval} is not a multiple of loss.d_steps={loss.d_steps}',
         f'regularizers.g_interval={-(-penalties.g_interval // loss.d_steps) * loss.d_steps}'),
    ]


def _of_the_rest(config: 'Config') -> list[Rule]:
    network, loss, penalties = config.network, config.loss, config.regularizers
    name, game = network.name, config.game
    played = f'game.name={game.name}' if game.own_loss else f'loss.name={loss.name}'
    return [
        (config.growth and not network.grows,
         f'growth with network.name={name}, which does not grow, as stylegan1 and pggan do', 'growth=null',
         'network.name=stylegan1', 'network.name=pggan'),
        (config.data.conditional == CONTINUOUS and not network.continuous,
         f'data.conditional={CONTINUOUS} with network.name={name}, which takes classes alone', 'network.name=stylegan2',
         'data.conditional=false'),
        (config.data.conditional == CONTINUOUS and config.guard.data,
         f'guard.data with data.conditional={CONTINUOUS}: D judges pictures by conditions, which are not kept of held-out ones',
         'guard.data=null'),
        (config.data.conditional == CONTINUOUS and config.evaluate.interval_kimg and 'intra_fid' in config.evaluate.metrics,
         f'evaluate.metrics has intra_fid, which is of classes, with data.conditional={CONTINUOUS}', 'evaluate.metrics=[fid]'),
        (config.growth and config.compile,
         'compile=true with growth: each step of a fade would be compiled anew', 'compile=false'),
        (config.augment.name == 'ada' and config.augment.p is None and not game.loss_facts(config).signed,
         f'augment.name=ada adapts to the sign of D(real), which means nothing with {played}', 'augment.p=0.2',
         'augment.name=diffaugment'),
        (config.checkpoint.best and not (config.evaluate.interval_kimg and config.checkpoint.best in config.evaluate.metrics),
         f'checkpoint.best={config.checkpoint.best} is not among what is measured while training',
         f'evaluate.interval_kimg={config.evaluate.interval_kimg or config.checkpoint.interval_kimg} '
         f'evaluate.metrics=[{",".join(dict.fromkeys([*config.evaluate.metrics, str(config.checkpoint.best)]))}]'),
        (config.precision.cudnn_benchmark and config.precision.deterministic,
         'precision.cudnn_benchmark=true with precision.deterministic=true: timing may choose another way to convolve at each '
         'start, and the bits with it', 'precision.deterministic=false', 'precision.cudnn_benchmark=false'),
        (config.guard.data and config.growth,
         'guard.data with growth: held-out pictures are judged at full size', 'guard.data=null'),
        (penalties.orthogonal and network.demodulated,
         f'regularizers.orthogonal with network.name={name}: demodulation cancels the scale of its weights, which the penalty '
         'would fight', without('orthogonal')),
    ]
