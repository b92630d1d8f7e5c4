"""Tiny configurations of every family and variant, for runs of a few steps."""

from pathlib import Path

from runs_for_tests import tiny_config

from imago.trainer.config.load import Config

EQUALISED = {'z_dim': 16, 'channel_base': 256, 'channel_max': 16, 'mbstd_group': 3}
STYLES = EQUALISED | {'w_dim': 16, 'mapping_layers': 2}
GROWTH = {'start_resolution': 4, 'stage_kimg': 0.024, 'fade_kimg': 0.048}      # stops at 48 images are in the fade
BIGGAN = {'z_dim': 20, 'channels': 4, 'shared_dim': 8, 'attention': 8}
CLASSES = {'conditional': True}
SMALL = {'z_dim': 8, 'channels': 4}

# name: changes of sections; `data` is merged into the tiny one
FAMILIES = {
    'stylegan2': {'network': {'name': 'stylegan2', **STYLES}, 'data': CLASSES,
                  'regularizers': {'r1': 1.0, 'd_interval': 2, 'path_length': 2.0, 'g_interval': 2}},
    'stylegan1': {'network': {'name': 'stylegan1', **STYLES}, 'growth': GROWTH, 'regularizers': {'r1': 1.0}, 'data': CLASSES},
    'pggan': {'network': {'name': 'pggan', **EQUALISED}, 'growth': GROWTH, 'loss': {'name': 'wgan'},
              'regularizers': {'wgan_gp': 10.0, 'drift': 0.001}},
    'biggan': {'network': {'name': 'biggan', **BIGGAN}, 'loss': {'name': 'hinge', 'd_steps': 2}, 'data': CLASSES,
               'regularizers': {'orthogonal': 1e-4}},
    'biggan-deep': {'network': {'name': 'biggan-deep', **BIGGAN, 'z_dim': 8}, 'loss': {'name': 'hinge', 'd_steps': 2},
                    'data': CLASSES, 'regularizers': {'orthogonal': 1e-4}},
    'dcgan': {'network': {'name': 'dcgan', **SMALL}, 'loss': {'name': 'minimax'}, 'regularizers': {}},
    'sngan': {'network': {'name': 'sngan', **SMALL}, 'loss': {'name': 'hinge'}, 'regularizers': {}, 'data': CLASSES},
    'r3gan': {'network': {'name': 'r3gan', 'z_dim': 8, 'channel_base': 128, 'channel_max': 16, 'group_size': 4, 'label_dim': 4,
                          'blocks': 1},
              'loss': {'name': 'relativistic'}, 'regularizers': {'r1': 1.0, 'r2': 1.0}, 'data': CLASSES},
    'began': {'network': {'name': 'began', **SMALL, 'code_dim': 8}, 'game': {'name': 'began', 'rate': 0.1},
              'regularizers': {}},
}
VARIANTS = {
    'sd-gan': {'game': {'name': 'sd_gan', 'identity_dim': 4}, 'network': {'name': 'dcgan', **SMALL}, 'data': {'lanes': 6}, 'regularizers': {}},
    'mad-gan': {'game': {'name': 'mad_gan', 'generators': 3}, 'network': {'name': 'dcgan', **SMALL}, 'regularizers': {}},
    'ada': {**FAMILIES['stylegan2'], 'optim': {'d_lr': 0.01},
            'augment': {'name': 'ada', 'speed_kimg': 0.05, 'interval': 1, 'target': 0.0}},
    'auxiliary': {**FAMILIES['r3gan'], 'loss': {'name': 'hinge', 'auxiliary': 0.5}, 'regularizers': {'lecam': 0.1}},
    'clipped': {**FAMILIES['r3gan'], 'loss': {'name': 'wgan', 'd_steps': 2}, 'regularizers': {'weight_clip': 0.01}},
    'spectral': {**FAMILIES['pggan'], 'loss': {'name': 'hinge'},
                 'regularizers': {'normalise': 'spectral', 'normalise_g': True, 'dragan': 1.0, 'd_interval': 2}},
    'stable rank': {**FAMILIES['r3gan'], 'loss': {'name': 'least_squares'}, 'regularizers': {'normalise': 'stable_rank'}},
    'ramps': {**FAMILIES['r3gan'], 'augment': {'name': 'diffaugment'},
              'optim': {'g_lr': {'start': 1e-3, 'end': 1e-4, 'kimg': 0.05}, 'beta2_ramp': {'start': 0.9, 'end': 0.99, 'kimg': 0.05}},
              'regularizers': {'r1': {'start': 5.0, 'end': 0.5, 'kimg': 0.05}}},
}
BATCH_NORM = ('biggan', 'biggan-deep', 'dcgan', 'sngan', 'sd-gan', 'mad-gan')


def config_of(name: str, data: Path, run_dir: Path, world: int = 1, /, **changes: object) -> Config:
    """Sizes that give the same sums on 1 and 2 ranks. Batch statistics are those of a micro-batch on all ranks."""
    tree = (FAMILIES | VARIANTS)[name] | changes
    size = 32 if name.startswith('biggan') else 16   # its tables begin at 32 px
    tree['data'] = {'path': str(data), 'lanes': 12, 'workers': 0, 'resolution': size} | tree.get('data', {})
    tree['micro_batch'] = 12 // world if name in BATCH_NORM else 3
    return tiny_config(data, run_dir, **tree)
