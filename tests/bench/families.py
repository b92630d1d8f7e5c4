"""Train every family and recipe on the emoji at 32 px for the same number of images; show pictures, and whether a loss blew up.

python tests/bench/families.py OUT [--only NAME ...] [--kimg K]     about 3 minutes each on one core
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path

from imago.trainer.config.load import load_config
from imago.trainer.ranks import dist
from imago.trainer.start import prepare
from imago.trainer.train import train

DATA = Path(__file__).parents[1] / 'data' / 'fluent-emoji'
COMMON = [f'data.path={DATA}', 'data.resolution=32', 'data.lanes=16', 'data.workers=0', 'data.flip=false', 'batch=16', 'micro_batch=16',
          'device=cpu', 'ema.half_life_kimg=0.5', 'ema.rampup=null', 'checkpoint.interval_kimg=1000', 'log.interval_kimg=0.32']
CLASSES = ['data.conditional=true']
EQUALISED = ['network.z_dim=128', 'network.channel_base=1024', 'network.channel_max=64']
BIGGAN = ['optim.g_lr=0.0002', 'optim.d_lr=0.0002', 'ema.start_kimg=0', 'network.attention=16', 'loss.d_steps=1',
          'network.shared_dim=32', 'log.singular_values=true', *CLASSES]
GROW = ['growth.start_resolution=8', 'growth.stage_kimg=STAGE', 'growth.fade_kimg=STAGE',
        'growth.batch={8: 16, 16: 16, 32: 16}', 'growth.micro_batch={8: 16, 16: 16, 32: 16}']
RUNS = {  # name: configuration and overrides
    'stylegan2': ('stylegan2-256', [*EQUALISED, *CLASSES, 'network.w_dim=128', 'network.mapping_layers=2', 'regularizers.r1=0.2',
                                    'network.low_precision=none', 'regularizers.path_length=0']),
    'stylegan1': ('stylegan1-512', [*EQUALISED, *CLASSES, *GROW, 'network.w_dim=128', 'network.mapping_layers=2',
                                    'network.low_precision=none', 'regularizers.r1=1']),
    'pggan': ('pggan-1024', [*EQUALISED, *CLASSES, *GROW, 'network.low_precision=none']),
    'biggan': ('biggan-128', [*BIGGAN, 'network.channels=24', 'network.z_dim=80']),
    'biggan-deep': ('biggan-deep-512', [*BIGGAN, 'network.channels=24', 'network.z_dim=64']),
    'dcgan': ('dcgan-64', [*CLASSES, 'network.channels=32']),
    'sngan': ('sngan-64', [*CLASSES, 'network.channels=32', 'loss.d_steps=2']),
    'r3gan': ('r3gan-256', [*CLASSES, 'network.channel_base=1024', 'network.channel_max=64', 'network.group_size=8',
                            'network.low_precision=none', 'regularizers.r1=0.5', 'regularizers.r2=0.5', 'augment.name=none',
                            'optim.g_lr=0.0005', 'optim.d_lr=0.0005', 'optim.beta2_ramp=null']),
    'began': ('dcgan-64', [*CLASSES, 'network={name: began, z_dim: 64, channels: 24}', 'game={name: began, rate: 0.05}',
                           'optim.g_lr=0.0005', 'optim.d_lr=0.0005', 'ema.start_kimg=0']),
    'sd-gan': ('dcgan-64', ['network.channels=32', 'game={name: sd_gan, identity_dim: 50}', 'data.lanes=8']),
    'mad-gan': ('dcgan-64', ['network.channels=32', 'game={name: mad_gan, generators: 4}']),
    'ada': ('stylegan2-256', [*EQUALISED, *CLASSES, 'network.w_dim=128', 'network.mapping_layers=2', 'regularizers.r1=0.2',
                              'network.low_precision=none', 'regularizers.path_length=0', 'augment={name: ada, speed_kimg: 5}']),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--only', nargs='+', default=list(RUNS), choices=RUNS)
    parser.add_argument('--kimg', type=float, default=8.0)
    arguments = parser.parse_args()
    dist.init('cpu')
    rows = []
    for name in arguments.only:
        source, overrides = RUNS[name]
        folder = arguments.out / name
        overrides = [text.replace('STAGE', str(arguments.kimg / 5)) for text in overrides]
        config = load_config(source, [*COMMON, f'total_kimg={arguments.kimg}', f'log.grid_kimg={arguments.kimg / 2}',
                                      *overrides, f'run_dir={folder}'])
        began = time.perf_counter()
        train(prepare(config))
        rows.append((name, time.perf_counter() - began, *summary(folder)))
    print(f'{"":12}{"minutes":>8}{"loss D: first, most, last":>34}{"loss G: first, most, last":>34}{"steepest":>10}')
    for name, seconds, d, g, steepest in rows:
        print(f'{name:12}{seconds / 60:8.1f}{d:>34}{g:>34}{steepest:10.2f}')


def summary(folder: Path) -> tuple[str, str, float]:
    """D's and G's losses, and the largest change of D's loss from one report to the next, over its spread."""
    reports = [json.loads(line) for line in (folder / 'stats.jsonl').read_text().splitlines()]
    told, steepest = [], 0.0
    for key in ('loss/D', 'loss/G'):
        values = [report[key] for report in reports if key in report]
        assert all(map(math.isfinite, values))
        told.append(f'{values[0]:.2f}, {max(values, key=abs):.2f}, {values[-1]:.2f}')
        changes = [abs(after - before) for before, after in itertools.pairwise(values)]
        spread = max(values) - min(values)
        steepest = steepest or max(changes, default=0.0) / max(spread, 1e-9)
    return *told, steepest


if __name__ == '__main__':
    main()
