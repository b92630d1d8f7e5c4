"""Which parts of a configuration make sense together. Each rule says why, and what to set instead."""

from typing import TYPE_CHECKING

from trainer.config.division import advice

if TYPE_CHECKING:
    from trainer.config.load import Config

SIGNED = ('minimax', 'nonsaturating', 'hinge')     # losses that draw D's logits to two sides of 0
GRADIENT_PENALTIES = ('r1', 'r2', 'wgan_gp', 'dragan')
Rule = tuple   # (whether it is so, what is wrong, *ways to mend it, each as overrides)


def check_combinations(config: 'Config') -> None:
    """ValueError for the first combination that makes no sense; it tells those ways out of it that no rule refuses."""
    for number, (forbidden, message, *ways) in enumerate(_rules(config)):
        if forbidden:
            mends = [way for way in ways if _mends(config, number, way)]
            raise ValueError(message + (f'; use {", or ".join(mends)}' if mends else ''))


def _mends(config: 'Config', number: int, way: str) -> bool:
    """Whether the overrides of `way` satisfy that rule, and break no other."""
    try:
        changed = config.changed(way.split())
    except ValueError:
        return False
    return _refusing(changed) <= _refusing(config) - {number}


def _refusing(config: 'Config') -> set[int]:
    return {number for number, (forbidden, *_) in enumerate(_rules(config)) if forbidden}


def _rules(config: 'Config') -> list[Rule]:
    return [*_of_parallel(config), *_of_losses(config), *_of_penalties(config), *_of_the_rest(config)]


def _on_gradient(config: 'Config') -> list[str]:
    return [key for key in GRADIENT_PENALTIES if getattr(config.regularizers, key)]


def _without(*keys: str) -> str:
    return ' '.join(f'regularizers.{key}=0' for key in keys)


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
    name, on_gradient = network.name, _on_gradient(config)
    uneven = [f'{key}={micro}' for *_, key, micro in config.batches() if micro % network.generators]
    one_generator = 'loss.name=nonsaturating' + (' network.generators=1' if network.generators > 1 else '')
    return [
        ((loss.name == 'began') != network.energy,
         f'loss.name={loss.name} with network.name={name}: BEGAN balances reconstruction errors, which only its '
         'autoencoder returns', 'loss.name=began network.name=began', 'loss.name=nonsaturating'),
        (network.energy and (loss.auxiliary or penalties.lecam or penalties.drift),
         f'network.name={name} returns reconstruction errors, no logits', f'loss.auxiliary=0 {_without("lecam", "drift")}'),
        ((loss.name == 'mad_gan') != (network.generators > 1),
         f'loss.name={loss.name} with network.generators={network.generators}: mad_gan tells several generators apart',
         'loss.name=mad_gan', 'network.generators=2', one_generator),
        (network.generators > 1 and network.styles,
         f'network.generators={network.generators} with network.name={name}: several generators would need a mapping each, '
         'where a network without styles, as dcgan, needs none', 'network.name=dcgan', one_generator),
        (network.generators > 1 and data.conditional,
         'network.generators above 1 with data.conditional=true: mad_gan\'s discriminator names the generator in place '
         'of the class', 'data.conditional=false', one_generator),
        (uneven,
         f'{uneven and uneven[0]} is not a multiple of network.generators={network.generators}, which make equal shares of '
         f'it; {uneven and advice(config, 1)}'),
        (network.generators > 1 and data.pairs,
         'network.generators above 1 with data.pairs=true: the two pictures of a pair would come from two generators',
         one_generator, 'data.pairs=false network.identity_dim=0'),
        (loss.name == 'mad_gan' and (on_gradient or penalties.lecam or penalties.drift),
         'loss.name=mad_gan has a softmax over outputs, no logit', _without(*GRADIENT_PENALTIES, 'lecam', 'drift')),
        (data.pairs and penalties.wgan_gp,
         'regularizers.wgan_gp with data.pairs: points between would mix each picture of a pair by a share of its own',
         *(f'{_without("wgan_gp")} {other}' for other in ('regularizers.r1=1', 'regularizers.dragan=10')), _without('wgan_gp')),
        (loss.auxiliary and not data.conditional,
         f'loss.auxiliary={loss.auxiliary} with data.conditional=false: there are no classes to tell',
         'data.conditional=true', 'loss.auxiliary=0'),
        (loss.auxiliary and loss.name == 'wgan' and penalties.weight_clip,
         'loss.auxiliary with regularizers.weight_clip: clipped weights cannot classify',
         *(f'{_without("weight_clip")} {other}' for other in ('regularizers.wgan_gp=10', 'regularizers.normalise=spectral')),
         'loss.auxiliary=0'),
        (loss.name == 'wgan' and not (penalties.weight_clip or on_gradient or penalties.normalise != 'none'
                                      or network.normalised),
         'loss.name=wgan needs a Lipschitz critic',
         'regularizers.weight_clip=0.01', 'regularizers.wgan_gp=10', 'regularizers.normalise=spectral'),
    ]


def _of_penalties(config: 'Config') -> list[Rule]:
    network, loss, penalties = config.network, config.loss, config.regularizers
    name, on_gradient = network.name, _on_gradient(config)
    return [
        (penalties.weight_clip and loss.name != 'wgan',
         f'regularizers.weight_clip with loss.name={loss.name}: clipping keeps a Wasserstein critic Lipschitz and '
         'only harms others', 'loss.name=wgan', _without('weight_clip')),
        (penalties.weight_clip and penalties.wgan_gp,
         'regularizers.weight_clip and regularizers.wgan_gp are two ways to the same end',
         _without('weight_clip'), _without('wgan_gp')),
        (penalties.wgan_gp and penalties.dragan,
         'regularizers.wgan_gp and regularizers.dragan both draw the gradient\'s norm to 1',
         _without('dragan'), _without('wgan_gp')),
        (penalties.wgan_gp and penalties.r1,
         'regularizers.wgan_gp draws the gradient\'s norm to 1 and regularizers.r1 to 0', _without('r1'), _without('wgan_gp')),
        (on_gradient and network.batch_norm_in_d,
         f'regularizers.{on_gradient and on_gradient[0]} with network.name={name}: batch norm in D makes the gradient at a '
         'picture depend on the others', _without(*on_gradient)),
        (penalties.normalise != 'none' and network.normalised,
         f'regularizers.normalise={penalties.normalise} with network.name={name}, which is spectrally normalised itself',
         'regularizers.normalise=none' + (' regularizers.normalise_g=false' if penalties.normalise_g else '')),
        (penalties.normalise != 'none' and penalties.weight_clip,
         'regularizers.normalise and regularizers.weight_clip both bound D\'s weights',
         _without('weight_clip'), 'regularizers.normalise=none'),
        (penalties.normalise_g and penalties.normalise == 'none',
         'regularizers.normalise_g=true without a kind', 'regularizers.normalise=spectral', 'regularizers.normalise_g=false'),
        (penalties.path_length and not network.styles,
         f'regularizers.path_length with network.name={name}: it is measured in w, which this network lacks',
         _without('path_length')),
        (penalties.path_length and config.growth,
         'regularizers.path_length with growth: the mean path length jumps with the resolution', _without('path_length'),
         'growth=null'),
        (penalties.path_length and penalties.g_interval % loss.d_steps,
         f'regularizers.g_interval={penalties.g_interval} is not a multiple of loss.d_steps={loss.d_steps}',
         f'regularizers.g_interval={-(-penalties.g_interval // loss.d_steps) * loss.d_steps}'),
    ]


def _of_the_rest(config: 'Config') -> list[Rule]:
    network, loss, data, penalties = config.network, config.loss, config.data, config.regularizers
    name, unpaired = network.name, 'data.pairs=false network.identity_dim=0'
    odd = [f'{key}={batch}, {micro_key}={micro}' for key, batch, micro_key, micro in config.batches()
           if data.pairs and (batch % (2 * data.lanes) or micro % 2)]
    return [
        (config.growth and not network.grows,
         f'growth with network.name={name}, which does not grow, as stylegan1 and pggan do', 'growth=null',
         'network.name=stylegan1', 'network.name=pggan'),
        (config.growth and config.compile,
         'compile=true with growth: each step of a fade would be compiled anew', 'compile=false'),
        (data.pairs != bool(network.identity_dim),
         f'data.pairs={str(data.pairs).lower()} with network.identity_dim={network.identity_dim}: pairs of one identity '
         'need latents of their own, and the other way round',
         f'data.pairs=true network.identity_dim={network.identity_dim or network.z_dim // 2}', unpaired),
        (network.identity_dim >= network.z_dim,
         f'network.identity_dim={network.identity_dim} leaves no latents of network.z_dim={network.z_dim} to observations',
         f'network.identity_dim={network.z_dim // 2}'),
        (data.pairs and data.conditional,
         'data.pairs with data.conditional=true: the class is the identity, which z carries', 'data.conditional=false'),
        (odd,
         f'data.pairs with {odd and odd[0]}, data.lanes={data.lanes}: each batch must be a multiple of 2 x lanes, and each '
         f'micro-batch even; {odd and advice(config, 1)}'),
        (config.augment.name == 'ada' and config.augment.p is None and loss.name not in SIGNED,
         f'augment.name=ada adapts to the sign of D(real), which means nothing with loss.name={loss.name}', 'augment.p=0.2',
         'augment.name=diffaugment'),
        (config.checkpoint.best and not (config.evaluate.interval_kimg and config.checkpoint.best in config.evaluate.metrics),
         f'checkpoint.best={config.checkpoint.best} is not among what is measured while training',
         f'evaluate.interval_kimg={config.evaluate.interval_kimg or config.checkpoint.interval_kimg} '
         f'evaluate.metrics=[{",".join(dict.fromkeys([*config.evaluate.metrics, str(config.checkpoint.best)]))}]'),
        (config.guard.data and (data.pairs or config.growth),
         'guard.data with data.pairs or growth: held-out pictures are judged one by one, and at full size', 'guard.data=null'),
        (penalties.orthogonal and network.demodulated,
         f'regularizers.orthogonal with network.name={name}: demodulation cancels the scale of its weights, which the penalty '
         'would fight', _without('orthogonal')),
    ]
