"""Which parts of a configuration make sense together. Each rule says why, and what to set instead."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config import Config

SIGNED = ('minimax', 'nonsaturating', 'hinge')     # losses that draw D's logits to two sides of 0
GRADIENT_PENALTIES = ('r1', 'r2', 'wgan_gp', 'dragan')


def check_combinations(config: 'Config') -> None:
    """ValueError for the first combination that makes no sense."""
    for forbidden, message in _rules(config):
        if forbidden:
            raise ValueError(message)


def _rules(config: 'Config') -> list[tuple[object, str]]:
    """(whether it is so, what is wrong and how to mend it)"""
    return [*_of_parallel(config), *_of_losses(config), *_of_penalties(config), *_of_the_rest(config)]


def _on_gradient(config: 'Config') -> list[str]:
    return [key for key in GRADIENT_PENALTIES if getattr(config.regularizers, key)]


def _of_parallel(config: 'Config') -> list[tuple[object, str]]:
    strategy, replicas, stage = config.parallel.strategy, config.parallel.replicas, config.parallel.stage
    return [
        (replicas > 1 and strategy != 'fsdp',
         f'parallel.replicas={replicas} with parallel.strategy={strategy}: there networks are whole on every rank; '
         'use parallel.strategy=fsdp or parallel.replicas=1'),
        (stage > 1 and strategy != 'zero',
         f'parallel.stage={stage} with parallel.strategy={strategy}: it is of ZeRO; use parallel.stage=1'),
        (stage == 2,
         'parallel.stage=2: ZeRO-2 sends gradients away while backward still runs, so that the rank of one that is not '
         'finite could not be named; use parallel.stage=1, or parallel.strategy=fsdp, which cuts parameters too'),
        (stage == 3,
         'parallel.stage=3: ZeRO-3 frees parameters that the second backward of R1 and path length still needs; '
         'use parallel.strategy=fsdp, which keeps a network whole while a phase runs'),
    ]


def _of_losses(config: 'Config') -> list[tuple[object, str]]:
    network, loss, data, penalties = config.network, config.loss, config.data, config.regularizers
    name, on_gradient = network.name, _on_gradient(config)
    uneven = [f'{key}={micro}' for *_, key, micro in config.batches() if micro % network.generators]
    return [
        ((loss.name == 'began') != network.energy,
         f'loss.name={loss.name} with network.name={name}: BEGAN balances reconstruction errors, which only its '
         'autoencoder returns; use loss.name=began together with network.name=began'),
        (network.energy and (loss.auxiliary or penalties.lecam or penalties.drift),
         f'network.name={name} returns reconstruction errors, no logits: set loss.auxiliary, regularizers.lecam and '
         'regularizers.drift to 0'),
        ((loss.name == 'mad_gan') != (network.generators > 1),
         f'loss.name={loss.name} with network.generators={network.generators}: mad_gan tells several generators apart; '
         'use loss.name=mad_gan together with network.generators=2 or more'),
        (network.generators > 1 and network.styles,
         f'network.generators={network.generators} with network.name={name}: several generators would need a mapping each; '
         'take a network without styles, e.g. dcgan'),
        (network.generators > 1 and data.conditional,
         'network.generators above 1 with data.conditional=true: mad_gan\'s discriminator names the generator in place '
         'of the class; set data.conditional=false'),
        (uneven,
         f'{uneven and uneven[0]} is not a multiple of network.generators={network.generators}, which make equal shares of '
         'it; change one of them'),
        (network.generators > 1 and data.pairs,
         'network.generators above 1 with data.pairs=true: the two pictures of a pair would come from two generators; '
         'set network.generators=1 or data.pairs=false'),
        (loss.name == 'mad_gan' and (on_gradient or penalties.lecam or penalties.drift),
         'loss.name=mad_gan has a softmax over outputs, no logit: set regularizers.r1, r2, wgan_gp, dragan, lecam and drift to 0'),
        (data.pairs and penalties.wgan_gp,
         'regularizers.wgan_gp with data.pairs: points between would mix each picture of a pair by a share of its own; '
         'use regularizers.r1 or dragan'),
        (loss.auxiliary and not data.conditional,
         f'loss.auxiliary={loss.auxiliary} with data.conditional=false: there are no classes to tell; '
         'set data.conditional=true'),
        (loss.auxiliary and loss.name == 'wgan' and penalties.weight_clip,
         'loss.auxiliary with regularizers.weight_clip: clipped weights cannot classify; use regularizers.wgan_gp=10'),
        (loss.name == 'wgan' and not (penalties.weight_clip or on_gradient or penalties.normalise != 'none'
                                      or network.normalised),
         'loss.name=wgan needs a Lipschitz critic: set regularizers.weight_clip=0.01, regularizers.wgan_gp=10 or '
         'regularizers.normalise=spectral'),
    ]


def _of_penalties(config: 'Config') -> list[tuple[object, str]]:
    network, loss, penalties = config.network, config.loss, config.regularizers
    name, on_gradient = network.name, _on_gradient(config)
    return [
        (penalties.weight_clip and loss.name != 'wgan',
         f'regularizers.weight_clip with loss.name={loss.name}: clipping keeps a Wasserstein critic Lipschitz and '
         'only harms others; use loss.name=wgan or regularizers.weight_clip=0'),
        (penalties.weight_clip and penalties.wgan_gp,
         'regularizers.weight_clip and regularizers.wgan_gp are two ways to the same end; set one to 0'),
        (penalties.wgan_gp and penalties.dragan,
         'regularizers.wgan_gp and regularizers.dragan both draw the gradient\'s norm to 1; set one to 0'),
        (penalties.wgan_gp and penalties.r1,
         'regularizers.wgan_gp draws the gradient\'s norm to 1 and regularizers.r1 to 0; set one to 0'),
        (on_gradient and network.batch_norm_in_d,
         f'regularizers.{on_gradient and on_gradient[0]} with network.name={name}: batch norm in D makes the gradient at a '
         'picture depend on the others; set it to 0 or take another network'),
        (penalties.normalise != 'none' and network.normalised,
         f'regularizers.normalise={penalties.normalise} with network.name={name}, which is spectrally normalised itself; '
         'use regularizers.normalise=none'),
        (penalties.normalise != 'none' and penalties.weight_clip,
         'regularizers.normalise and regularizers.weight_clip both bound D\'s weights; use one'),
        (penalties.normalise_g and penalties.normalise == 'none',
         'regularizers.normalise_g=true without a kind; set regularizers.normalise=spectral'),
        (penalties.path_length and not network.styles,
         f'regularizers.path_length with network.name={name}: it is measured in w, which this network lacks; set it to 0'),
        (penalties.path_length and config.growth,
         'regularizers.path_length with growth: the mean path length jumps with the resolution; set one of them aside'),
        (penalties.path_length and penalties.g_interval % loss.d_steps,
         f'regularizers.g_interval={penalties.g_interval} is not a multiple of loss.d_steps={loss.d_steps}'),
    ]


def _of_the_rest(config: 'Config') -> list[tuple[object, str]]:
    network, loss, data, penalties = config.network, config.loss, config.data, config.regularizers
    name = network.name
    return [
        (config.growth and not network.grows,
         f'growth with network.name={name}, which does not grow; leave growth out, or take stylegan1 or pggan'),
        (config.growth and config.compile,
         'compile=true with growth: each step of a fade would be compiled anew; use compile=false'),
        (data.pairs != bool(network.identity_dim),
         f'data.pairs={str(data.pairs).lower()} with network.identity_dim={network.identity_dim}: pairs of one identity '
         'need latents of their own, and the other way round; set both'),
        (network.identity_dim >= network.z_dim,
         f'network.identity_dim={network.identity_dim} leaves no latents of network.z_dim={network.z_dim} to observations'),
        (data.pairs and data.conditional,
         'data.pairs with data.conditional=true: the class is the identity, which z carries; set data.conditional=false'),
        (data.pairs and any(batch % (2 * data.lanes) or micro % 2 for _, batch, _, micro in config.batches()),
         f'data.pairs with batch={config.batch}, micro_batch={config.micro_batch}, data.lanes={data.lanes}: batch must be a '
         'multiple of 2 x lanes and micro_batch even'),
        (config.augment.name == 'ada' and config.augment.p is None and loss.name not in SIGNED,
         f'augment.name=ada adapts to the sign of D(real), which means nothing with loss.name={loss.name}: set augment.p'),
        (config.checkpoint.best and not (config.evaluate.interval_kimg and config.checkpoint.best in config.evaluate.metrics),
         f'checkpoint.best={config.checkpoint.best} is not among what is measured while training; set evaluate.interval_kimg, '
         'and evaluate.metrics to hold it'),
        (config.guard.data and (data.pairs or config.growth),
         'guard.data with data.pairs or growth: held-out pictures are judged one by one, and at full size; leave it out'),
        (penalties.orthogonal and network.demodulated,
         f'regularizers.orthogonal with network.name={name}: demodulation cancels the scale of its weights, which the penalty '
         'would fight; set it to 0'),
    ]
