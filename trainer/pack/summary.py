"""This module prints what `imago pack` has done, and advises what to do next. The rules of training accept all advice."""

import sys
from dataclasses import dataclass, field

from imago.trainer.data.manifest import SINGLE, Manifest
from imago.trainer.pack.advice import memory_of_gpus, train_command
from imago.trainer.pack.pictures import WHITEST, Encoded, Skipped
from imago.trainer.pack.shards import REPORT
from imago.trainer.wording import listed

NAMED = 5              # skipped pictures named on the terminal; the report names all


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
        height, width = self.smallest or picture.size
        self.smallest = min(height, picture.size[0]), min(width, picture.size[1])
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
        print(f'next      {train_command(out, manifest, memory_of_gpus())}')
    except ValueError as error:
        print(f'note      {error}')


def plain(name: str) -> str:
    """Make a stranger's name safe to print on a terminal."""
    return name if name.isprintable() else repr(name)


def full_scale(value: int) -> int:
    """Return the largest number of as many bits as `value` needs, at least eight bits; 0 for 0."""
    return (1 << max(value.bit_length(), 8)) - 1 if value else 0
