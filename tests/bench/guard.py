"""Run trainings that fail on purpose, and healthy ones: which of the guard's indicators sound, when, and at what values.

python tests/bench/guard.py OUT [--only NAME ...] [--kimg K]     2 to 5 minutes each on one core
"""

import argparse
import json
import time
from pathlib import Path

from PIL import Image

from imago.trainer.config.load import load_config
from imago.trainer.data.shards import SampleReader, open_dataset
from imago.trainer.pack.command import main as pack
from imago.trainer.ranks import dist
from imago.trainer.start import prepare
from imago.trainer.train import train
from imago.trainer.watch.indicators import INDICATORS

EMOJI = Path(__file__).parents[1] / 'data' / 'fluent-emoji'
SIZE = 16   # px
COMMON = [f'data.resolution={SIZE}', 'data.lanes=16', 'data.workers=0', 'batch=16', 'micro_batch=16', 'device=cpu',
          'ema.half_life_kimg=0.25', 'ema.rampup=null', 'log.interval_kimg=0.16', 'checkpoint.interval_kimg=1000']
CLASSES = 'data.conditional=true'
SMALL = Path(__file__).with_name('stylegan2-32.yaml')
DEMO = (SMALL, ['network.channel_base=512', 'network.channel_max=64'])
RUNS = {  # name: pictures, configuration, overrides
    'healthy demo': ('emoji', *DEMO),
    'healthy biggan': ('emoji', 'biggan-128', [CLASSES, 'data.resolution=32', 'network.channels=12', 'network.z_dim=80',
                                               'network.shared_dim=32', 'network.attention=16', 'loss.d_steps=1',
                                               'ema.start_kimg=0']),
    'healthy r3gan': ('emoji', 'r3gan-256', [CLASSES, 'network.channel_base=512', 'network.channel_max=64',
                                             'network.group_size=8', 'network.low_precision=none', 'regularizers.r1=0.5',
                                             'regularizers.r2=0.5', 'augment.name=none', 'optim.g_lr=0.0005',
                                             'optim.d_lr=0.0005', 'optim.beta2_ramp=null', 'network.blocks=1']),
    'D rate x20': ('emoji', DEMO[0], [*DEMO[1], 'optim.d_lr=0.05']),
    'one picture': ('one', DEMO[0], [*DEMO[1], 'data.lanes=1', 'data.conditional=false']),
    'class of 4': ('four', DEMO[0], [*DEMO[1], 'data.lanes=4']),
    'no R1': ('few', DEMO[0], [*DEMO[1], 'regularizers.r1=0', 'guard.data=OUT/data/held-out']),
    'same with R1': ('few', DEMO[0], [*DEMO[1], 'guard.data=OUT/data/held-out']),
    'rollback': ('emoji', DEMO[0], [*DEMO[1], 'optim.d_lr=0.05', 'guard.action=rollback', 'guard.lr_factor=0.2',
                                    'checkpoint.interval_kimg=0.32']),
}
SUBSETS = {  # name: which pictures of each class
    'one': {'flags': slice(1)},
    'four': {'flags': slice(12), 'animals-nature': slice(4)},
    'few': {'flags': slice(48), 'people-body': slice(48)},
    'held-out': {'flags': slice(48, 96), 'people-body': slice(48, 96)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--only', nargs='+', default=list(RUNS), choices=RUNS)
    parser.add_argument('--kimg', type=float, default=10.0)
    arguments = parser.parse_args()
    data = {'emoji': EMOJI} | {name: subset(arguments.out / 'data' / name, parts) for name, parts in SUBSETS.items()}
    dist.init('cpu')
    rows = []
    for name in arguments.only:
        pictures, source, overrides = RUNS[name]
        folder = arguments.out / name.replace(' ', '-')
        overrides = [text.replace('OUT', str(arguments.out)) for text in overrides]
        config = load_config(source, [*COMMON, f'data.path={data[pictures]}', f'total_kimg={arguments.kimg}',
                                      f'log.grid_kimg={arguments.kimg / 2}', *overrides, f'run_dir={folder}'])
        began = time.perf_counter()
        ending = train(prepare(config))
        rows += summary(name, ending, time.perf_counter() - began, folder)
    print(f'{"run":16}{"indicator":18}{"limit":>8}{"worst":>9}{"last":>9}  first sounded, at kimg')
    print('\n'.join(rows))


def subset(folder: Path, parts: dict[str, slice]) -> Path:
    """Return shards with a part of some classes of the emoji; make them unless they are there."""
    if not folder.exists():
        dataset = open_dataset(EMOJI)
        reader, names = SampleReader(dataset, (SIZE, SIZE), max_open=1), dataset.manifest.class_names
        pictures = folder.with_name(folder.name + '-pictures')
        for name, part in parts.items():
            (pictures / name).mkdir(parents=True)
            samples = []
            for shard in range(len(dataset.manifest.shards)):
                samples += reader.read_class(shard, names.index(name), part.stop - len(samples))
            for sample in samples[part]:
                Image.fromarray(sample.image).save(pictures / name / f'{sample.key}.png')
        assert pack([str(pictures), str(folder), '--resolution', str(SIZE)]) == 0
    return folder


def summary(name: str, ending: str, seconds: float, folder: Path) -> list[str]:
    """Write a line for each indicator with values: the worst since alarms became possible, the last, when it first sounded."""
    reports = [json.loads(line) for line in (folder / 'stats.jsonl').read_text().splitlines()]
    lines = [f'{name}: {ending} at {reports[-1]["nimg"] / 1000:g} kimg after {seconds:.0f} s, '
             f'{max(report.get("guard/rollbacks", 0) for report in reports):g} rollbacks']
    for indicator, about in INDICATORS.items():
        values = [report[f'guard/{indicator}'] for report in reports if f'guard/{indicator}' in report and report['nimg'] >= 1000]
        warned = [report for report in reports if f'guard/warning/{indicator}' in report]
        if values:
            worst = max(values) if about.above else min(values)
            when = ', '.join(f'{report["nimg"] / 1000:g} ({report[f"guard/{indicator}"]:.3g})' for report in warned)
            lines.append(f'{"":16}{indicator:18}{about.threshold:8g}{worst:9.3g}{values[-1]:9.3g}  {when or "-"}')
    return lines


if __name__ == '__main__':
    main()
