"""This module says what an unknown key may have meant: an older name, another program's name, or a known key much like it."""

import difflib
from collections.abc import Iterable

from imago.trainer.config.former import RENAMED
from imago.trainer.wording import listed

# what StyleGAN's, BigGAN's and other programs call our keys
ELSEWHERE = {
    'lr': ('optim.g_lr', 'optim.d_lr'), 'learning_rate': ('optim.g_lr', 'optim.d_lr'), 'glr': ('optim.g_lr',),
    'dlr': ('optim.d_lr',), 'lr_g': ('optim.g_lr',), 'lr_d': ('optim.d_lr',), 'beta1': ('optim.betas',),
    'beta2': ('optim.betas',), 'batch_size': ('batch',), 'bs': ('batch',), 'batch_gpu': ('micro_batch',),
    'minibatch': ('batch',), 'kimg': ('total_kimg',), 'epochs': ('total_kimg',), 'n_epochs': ('total_kimg',),
    'steps': ('total_kimg',), 'iterations': ('total_kimg',), 'max_steps': ('total_kimg',), 'gamma': ('regularizers.r1',),
    'gp': ('regularizers.wgan_gp',), 'pl_weight': ('regularizers.path_length',), 'mirror': ('data.flip',),
    'aug': ('augment.name',), 'augpipe': ('augment.groups',), 'ada_target': ('augment.target',),
    'cond': ('data.conditional',), 'outdir': ('run_dir',), 'output': ('run_dir',), 'output_dir': ('run_dir',),
    'out': ('run_dir',), 'name': ('run_dir', 'network.name'), 'dataset': ('data.path',), 'dataroot': ('data.path',),
    'data_dir': ('data.path',), 'image_size': ('data.resolution',), 'img_size': ('data.resolution',),
    'imsize': ('data.resolution',), 'size': ('data.resolution',), 'snap': ('checkpoint.interval_kimg', 'log.grid_kimg'),
    'save_every': ('checkpoint.interval_kimg',), 'num_workers': ('data.workers',), 'fp16': ('network.low_precision',),
    'amp': ('network.low_precision',), 'bf16': ('network.low_precision',), 'ema_kimg': ('ema.half_life_kimg',),
    'ema_decay': ('ema.half_life_kimg',), 'arch': ('network.name',), 'model': ('network.name',), 'cfg': ('network.name',),
    'latent_dim': ('network.z_dim',), 'loss_type': ('loss.name',), 'gan_mode': ('loss.name',),
    'patience': ('guard.patience',), 'allow_tf32': ('precision.tf32',), 'benchmark': ('precision.cudnn_benchmark',),
}
OPTIONS = {'gpus': '--gpus N', 'num_gpus': '--gpus N', 'ngpus': '--gpus N', 'dry_run': '--dry-run', 'resume':
           'nothing: the same command goes on where a run was left'}
CLOSE = 0.75      # of a last part; whole keys are compared more loosely


def meant(key: str, known: Iterable[str]) -> str:
    """Return what to say of the unknown `key` after its name; '' if no known one is near."""
    known = list(known)
    if key in RENAMED:
        return f'; it is {RENAMED[key]} now'
    last = key.rpartition('.')[2].lower().replace('-', '_')
    if key in OPTIONS:
        return f'; give {OPTIONS[key]}'
    if last in ELSEWHERE:
        return f'; it is {" or ".join(ELSEWHERE[last])} here'
    leaves: dict[str, list[str]] = {}
    for one in known:
        leaves.setdefault(one.rpartition('.')[2], []).append(one)
    if same := leaves.get(last):
        return f'; did you mean {listed(same, key)}?'
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or [
        whole for leaf in difflib.get_close_matches(last, leaves, n=1, cutoff=CLOSE) for whole in leaves[leaf][:2]
    ] or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f'; did you mean {" or ".join(near)}?' if near else ''
