"""This module prints what `imago pack` has done, and advises what to do next. The rules of training accept all advice."""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from imago.trainer.config.division import fitting_lanes
from imago.trainer.config.load import load_config
from imago.trainer.config.resolution import base_and_doublings, largest_of_aspect, largest_square, nearest_sizes
from imago.trainer.data.manifest import SINGLE, Manifest
from imago.trainer.pack.pictures import WHITEST, Encoded, Skipped
from imago.trainer.pack.shards import REPORT
from imago.trainer.wording import listed

NAMED = 5              # skipped pictures named on the terminal; the report names all
CONFIG = 'stylegan2-256'
LONGEST_SIDE = 1024    # px; no larger StyleGAN2 is published
LONGEST_CROP = 256     # px, in the command that is printed
LONGEST_BASE = 64      # px of the coarsest maps; D's last layers grow with their area


@dataclass
class Tally:
    """What became of the pictures."""

    class_counts: list[int]
    pictures: int = 0
    enlarged: int = 0
    duplicates: int = 0
    smallest: tuple[int, int] | None = None  # the least height and the least width, in px
    of_16_bits: int = 0
    coarse: int = 0                        # how many of these have colours, of which only the upper 8 bits were read
    values: tuple[int, int] | None = None  # the smallest and the largest in files of 16 bits
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, picture: Encoded) -> None:
        """Count what a packed picture was like."""
        self.enlarged += picture.enlarged
        self.smallest = tuple(map(min, self.smallest or picture.size, picture.size))
        if picture.values:
            self.of_16_bits += 1
            self.coarse += picture.coarse
            least, largest = self.values or picture.values
            self.values = min(least, picture.values[0]), max(largest, picture.values[1])


def summarize(out: str, manifest: Manifest, tally: Tally, ignored: dict[str, int], seconds: float) -> None:
    for skipped in tally.skipped[:NAMED]:
        print(f'imago pack: skipped {skipped.name!r}: {skipped.reason}', file=sys.stderr)
    if len(tally.skipped) > NAMED:
        print(f'imago pack: {len(tally.skipped)} skipped in all, named in {out}/{REPORT}', file=sys.stderr)
    height, width = manifest.resolution or manifest.smallest
    what = 'pictures' if manifest.domains == SINGLE else 'pairs of pictures'
    at_least = '' if manifest.resolution else 'at least '
    classes = f'{len(manifest.class_names)} classes' if manifest.class_names else 'no labels'
    shape = manifest.condition_shape
    conditions = f', conditions of {"x".join(map(str, shape))} values' if shape else ''
    others = sorted(ignored.items(), key=lambda entry: -entry[1])
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    print(f'packed    {tally.pictures} {what} of {at_least}{height}x{width} px, {classes}{conditions}, in {seconds:.1f} s '
          f'({(tally.pictures + len(tally.skipped)) / seconds:.0f} img/s)')
    if manifest.class_names:
        counts = [f'{plain(name)} {count}' for name, count in zip(manifest.class_names, manifest.class_counts) if count]
        empty = len(manifest.class_names) - len(counts)
        print(f'classes   {listed(counts)}' + (f'; {empty} without a picture' if empty else ''))
    print(f'written   {plain(out)}: {len(manifest.shards)} shards, {megabytes:.1f} MB')
    print(f'skipped   {len(tally.skipped)}; enlarged {tally.enlarged}; duplicates (kept) {tally.duplicates}; '
          f'other files: {listed([f"{count} {plain(kind)}" for kind, count in others]) or "none"}')


def advise(out: str, manifest: Manifest, tally: Tally, white_level: int) -> None:
    """Say how bright pictures of 16 bits are, and what to do next."""
    if tally.values:
        least, largest = tally.values
        print(f'16 bits   {tally.of_16_bits} pictures hold values from {least} to {largest}; {white_level} is white')
        if 8 * (largest - least) < white_level:
            scale = full_scale(largest)
            fix = f'pack again with --white-level {scale}' if 0 < scale < white_level and not tally.coarse else \
                'widen it with another program before'
            print(f'imago pack: warning: pictures of 16 bits use less than an eighth of the range from 0 to {white_level}, and '
                  f'will look nearly uniform; {fix}', file=sys.stderr)
    elif white_level != WHITEST:
        print('note      no picture has 16 bits, so that --white-level has no effect')
    try:
        print(f'next      {train_command(out, manifest)}')
    except ValueError as error:
        print(f'note      {error}')


def plain(name: str) -> str:
    """Make a stranger's name safe to print on a terminal."""
    return name if name.isprintable() else repr(name)


def full_scale(value: int) -> int:
    """Return the largest number of as many bits as `value` needs, at least eight bits; 0 for 0."""
    return (1 << max(value.bit_length(), 8)) - 1 if value else 0


def train_command(out: str, manifest: Manifest) -> str:
    """Return an `imago train` command that starts on this dataset as it is. ValueError says why there is none."""
    size = largest_of_aspect(manifest.resolution, LONGEST_SIDE) if manifest.resolution else _crop_for(manifest.smallest)
    if size is None or not _is_moderate(size):
        height, width = manifest.resolution
        near = ' or '.join(f'{h}x{w}' for h, w in nearest_sizes(manifest.resolution) if _is_moderate((h, w))) or '256'
        raise ValueError(f'no network of moderate size makes {height}x{width}, nor smaller ones of this aspect; '
                         f'pack again with --resolution {near}')
    if manifest.domains != SINGLE:
        raise ValueError('pairs are for games of two domains, which take data.path=' + out)
    published = load_config(CONFIG)
    path = str(Path(out).absolute()) if ':' in out or out.startswith('~') else out  # else it reads as a URL or a home folder
    overrides = [f'data.path={_as_yaml(path)}']
    overrides += [f'data.resolution={size[0]}x{size[1]}'] if size != published.data.resolution else []
    overrides += [] if manifest.resolution else [f'data.crop={size[0]}x{size[1]}']
    config = load_config(CONFIG, overrides)
    config.check_world(1)
    fitting_lanes(config, 1, manifest.num_samples)
    if config.data.path != path:
        raise ValueError(f'{out!r} is a name that no command line can give; rename it')
    return f'imago train {CONFIG} {shlex.join(overrides)}'


def _crop_for(smallest: tuple[int, int]) -> tuple[int, int]:
    """Return the largest usual square that can be cropped from every picture."""
    side = min(largest_square(min(smallest)), LONGEST_CROP)
    return side, side


def _is_moderate(size: tuple[int, int]) -> bool:
    return max(size) <= LONGEST_SIDE and max(base_and_doublings(size)[0]) <= LONGEST_BASE


def _as_yaml(text: str) -> str:
    """Return `text`, quoted if YAML would read it as a number, a date or another type."""
    try:
        return text if yaml.safe_load(text) == text else json.dumps(text)
    except yaml.YAMLError:
        return json.dumps(text)
