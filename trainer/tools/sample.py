"""`imago sample` makes pictures with a trained generator. The same seeds give the same pictures."""

import argparse
import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imago.trainer.command import Parser, tell_errors
from imago.trainer.data.durable import Written, write_beside
from imago.trainer.runs.generator_folder import check_source
from imago.trainer.tools import names
from imago.trainer.tools.choices import add_choices, class_of, read_condition
from imago.trainer.tools.export import check_batches

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MOST_SEEDS = 10_000   # all pictures are in memory before the first is written
COLUMNS, MOST_SCALE = 8, 64


def parse_seeds(text: str) -> list[int]:
    """Read numbers and ranges: `0-3,10` becomes [0, 1, 2, 3, 10]. ValueError names what it cannot read."""
    seeds: dict[int, None] = {}
    for part in text.split(','):
        match = re.fullmatch(r'([0-9]{1,18})(?:-([0-9]{1,18}))?', part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f'--seeds: {part[:80]!r} is not a number or a rising range, of up to 18 digits; '
                             'write e.g. 0-15 or 3,7,100-103')
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= MOST_SEEDS:
            raise ValueError(f'--seeds: {last - first + 1} pictures in {part}; ask for at most {MOST_SEEDS} at a time')
        seeds |= dict.fromkeys(range(first, last + 1))
        if len(seeds) > MOST_SEEDS:
            raise ValueError(f'--seeds: more than {MOST_SEEDS} pictures; ask for at most {MOST_SEEDS} at a time')
    return list(seeds)


def check(options: argparse.Namespace, count: int) -> None:
    """Raise ValueError for options that make no sense with any generator. `count` is the number of pictures."""
    check_batches(options.standing_batches)
    if options.columns < 1:
        raise ValueError(f'--columns {options.columns} is below 1')
    if options.columns > max(count, COLUMNS):
        raise ValueError(f'--columns {options.columns} is more than the pictures, {count}; use --columns {count}')
    if options.scale is not None and not 1 <= options.scale <= MOST_SCALE:
        raise ValueError(f'--scale {options.scale} is not between 1 and {MOST_SCALE}')
    if options.out == '':
        raise ValueError('--out is empty; give the name of a folder')
    if options.out and Path(options.out).exists() and not Path(options.out).is_dir():
        raise ValueError(f'--out {options.out} is a file; give a folder')


def sample(options: argparse.Namespace) -> list[Written]:
    """Write the pictures and return where they are. ValueError for what the user can mend."""
    seeds, source = parse_seeds(options.seeds), Path(options.source)
    check(options, len(seeds))
    check_source(source)
    return write(options, seeds, Path(options.out) if options.out else names.folder_of(source))


def write(options: argparse.Namespace, seeds: list[int], out: Path) -> list[Written]:
    """Do the work of `sample`, with torch."""
    import torch

    from imago.trainer.games.makers import Sampling, generate
    from imago.trainer.ranks.precision import set_precision
    from imago.trainer.runs.export import open_maker
    from imago.trainer.watch.grids import check_size

    conditions = None if options.condition is None else read_condition(options.condition, len(seeds))
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    set_precision(device.type)
    maker, about = open_maker(options.source, device)
    label = None if options.label is None else class_of(options.label, maker, about['class_names'])
    maker.check_conditions(conditions)
    sampling = Sampling(options.psi, options.psi_cutoff, options.truncation)
    maker.check(sampling)
    together, columns = (len(seeds), options.columns) if options.grid else (1, 1)
    check_size(together, columns, *maker.resolution, options.scale)
    if options.standing_batches:
        maker.take_standing_statistics(options.standing_batches)
    inputs = maker.inputs(seeds, label, options.truncation, conditions)
    pictures = generate(maker, inputs, sampling, title='sampling')
    out.mkdir(parents=True, exist_ok=True)
    write_all = write_sheet if options.grid else write_each
    return write_all(options, out, about, seeds, pictures, inputs.labels.tolist(), conditions)


def write_sheet(options: argparse.Namespace, out: Path, about: dict, seeds: list[int], pictures: 'np.ndarray', labels: list[int],
                conditions: 'np.ndarray | None') -> list[Written]:
    """Write one PNG of all pictures [NHWC]."""
    from imago.trainer.watch.grids import captions_of, grid
    one = about['class_names'][labels[0]] if options.label is not None else ''
    stem = names.name_of(Path(options.source), about['nimg'], label=one, condition=names.of_condition(conditions),
                         seeds=names.of_seeds(seeds), how=names.ways(options))
    sheet = grid(pictures, options.columns, captions_of(labels, about['class_names']), options.scale)
    return [write_picture(out / f'{stem}.png', sheet)]


def write_each(options: argparse.Namespace, out: Path, about: dict, seeds: list[int], pictures: 'np.ndarray', labels: list[int],
               conditions: 'np.ndarray | None') -> list[Written]:
    """Write one PNG of each picture of [NHWC]."""
    from imago.trainer.ranks.progress import Progress
    from imago.trainer.watch.grids import grid
    written = []
    with Progress('writing', len(seeds), 'pictures') as progress:
        for number, (seed, picture) in enumerate(zip(seeds, pictures, strict=True)):
            stem = names.name_of(Path(options.source), about['nimg'],
                                 label=about['class_names'][labels[number]] if about['class_names'] else '',
                                 condition=names.of_condition(None if conditions is None else conditions[number]),
                                 seed=names.of_seeds([seed]), how=names.ways(options))
            written.append(write_picture(out / f'{stem}.png', grid(picture[None], 1, scale=options.scale or 1)))
            progress.add()
    return written


def write_picture(path: Path, image: 'Image.Image') -> Written:
    """Write a PNG, beside a file of that name that holds another picture."""
    content = io.BytesIO()
    image.save(content, 'png')
    return write_beside(path, content.getvalue())


def told(pictures: list[Written]) -> str:
    """Say where the pictures are, and how many of them were there before."""
    paths, old = [picture.path for picture in pictures], sum(not picture.new for picture in pictures)
    if len(paths) == 1:
        return f'{paths[0]} is there already, with just this picture' if old else f'wrote {paths[0]}'
    there = f' ({old} of them are there already)' if old else ''
    return f'wrote {len(paths) - old} pictures: {paths[0]} to {paths[-1].name}{there}'


def parser() -> Parser:
    parser = Parser(prog='imago sample', description=__doc__)
    parser.add_argument('source', help='a run folder (its newest checkpoint), a checkpoint, or an export')
    parser.add_argument('--out', help='folder for the pictures; none there is overwritten (default: RUN/samples; for an export, '
                        'samples here)')
    parser.add_argument('--seeds', default='0-31', help='numbers and ranges, e.g. 0-15,42 (default: %(default)s)')
    parser.add_argument('--psi', type=float, default=1.0,
                        help='truncation psi: 1 all variety, 0 the average (default: %(default)s)')
    parser.add_argument('--psi-cutoff', type=int, metavar='N', help='truncate in the first N layers only, as StyleGAN1 does in 8 '
                        '(default: in all)')
    parser.add_argument('--truncation', type=float, help='draw latents again until |z| is below this, as BigGAN does')
    parser.add_argument('--standing-batches', type=int, default=0, metavar='N',
                        help='take batch-norm statistics anew from N batches of fakes (default: as kept while training)')
    add_choices(parser)
    parser.add_argument('--grid', action='store_true', help='one PNG with all pictures instead of one each')
    parser.add_argument('--columns', type=int, default=COLUMNS, help='of the grid (default: %(default)s)')
    parser.add_argument('--scale', type=int, metavar='N', help='enlarge each pixel to N x N (default: in a grid, small pictures '
                        'to about 128 px; else 1)')
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)

    def work() -> int:
        print(told(sample(options)))
        return 0
    return tell_errors('imago sample', work)


if __name__ == '__main__':
    sys.exit(main())
