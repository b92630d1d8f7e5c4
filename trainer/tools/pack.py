"""`imago pack`: a folder, a zip or tars of pictures -> shards to train from, their manifest, and a report."""

import argparse
import hashlib
import json
import random
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from PIL import ImageColor
from tqdm import tqdm

from trainer.data.manifest import Manifest
from trainer.machine import usable_cores
from trainer.resolution import base_and_doublings, parse_resolution
from trainer.tools import verify
from trainer.tools.pack_images import (
    SUFFIXES,
    Encoded,
    Limits,
    Recipe,
    Skipped,
    prepare,
    size_mismatch,
    start_worker,
    upright_size,
)
from trainer.tools.pack_labels import number_classes, read_labels
from trainer.tools.pack_shards import ShardWriter, check_target, folder_in_the_making
from trainer.tools.pack_sources import Picture, list_source

T, R = TypeVar('T'), TypeVar('R')
CHUNK = 8             # pictures a task: enough to hide the cost of a task, few enough to stay small in memory
MAX_SIDE = 16383      # pixels, WebP's limit
LOSSY_QUALITY, LOSSLESS_EFFORT = 95, 75
NAMED = 5             # skipped pictures named on the terminal; the report names all
TRAINED_AT = (256, 256)  # data.resolution of the configuration that the summary suggests


@dataclass
class Tally:
    """What became of the pictures."""

    class_counts: list[int]
    pictures: int = 0
    enlarged: int = 0
    duplicates: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def pack(options: argparse.Namespace) -> None:
    """Write OUT. ValueError and OSError for what the user can mend."""
    start = time.perf_counter()
    out = Path(options.out).resolve()
    size = check_options(options)
    check_target(out, options.overwrite)
    pictures, labels, class_names, ignored = find_pictures(options)
    with worker_pool(options.workers) as pool:
        limits = Limits(options.max_pixels)
        size = size or common_size(pool, pictures, limits, options.workers)
        fit = options.fit or 'crop' if options.resolution else None
        quality = options.quality or (LOSSLESS_EFFORT if options.lossless else LOSSY_QUALITY)
        recipe = Recipe(size, fit, options.background, options.channels, options.encoding, quality, options.lossless,
                        limits)
        work = partial(prepare, recipe=recipe)
        with (folder_in_the_making(out, options.overwrite) as (folder, report),
              closing(in_order(pool, work, pictures, options.workers, 'packing')) as results):
            with ShardWriter(folder, SUFFIXES[options.encoding], int(options.shard_mb * 1e6)) as writer:
                tally = write_samples(writer, results, labels, len(class_names), options.strict)
            manifest = Manifest(size, options.channels, options.encoding, class_names, tuple(tally.class_counts),
                                tuple(writer.shards))
            about = {'recipe': asdict(recipe), 'seed': options.seed, 'ignored': ignored, **asdict(tally)}
            report.write(json.dumps(about, indent=1) + '\n')
            manifest.write(folder)
    summarize(options, manifest, tally, ignored, time.perf_counter() - start)


def check_options(options: argparse.Namespace) -> tuple[int, int] | None:
    """--resolution as (height, width) in pixels, if given. ValueError for options out of range or without effect."""
    if not 0 < options.shard_mb < 1e6:
        raise ValueError(f'--shard-mb {options.shard_mb:g} is outside 0 to 1e6; give megabytes, e.g. 256')
    for name in ('workers', 'max_pixels'):
        if getattr(options, name) < 1:
            raise ValueError(f'--{name.replace("_", "-")} {getattr(options, name)} is below 1')
    if options.lossless and options.encoding != 'webp':
        raise ValueError(f'--lossless is for --encoding webp, not {options.encoding} (png is always lossless)')
    if options.quality is not None and (options.lossless or options.encoding == 'png'):
        raise ValueError(f'--quality {options.quality} has no effect on lossless pictures; leave it out')
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise ValueError(f'--quality {options.quality} is outside 1 to 100')
    if options.fit and not options.resolution:
        raise ValueError(f'--fit {options.fit} needs a size to fit to: add --resolution')
    try:
        ImageColor.getrgb(options.background)
    except ValueError as error:
        raise ValueError(f'--background {options.background}: no such colour; write e.g. white or #ffffff') from error
    return target_size(options.resolution) if options.resolution else None


def target_size(text: str) -> tuple[int, int]:
    """--resolution -> (height, width) in pixels. ValueError if it is no size, or one that no network can make."""
    size = parse_resolution(text)
    if max(size) > MAX_SIDE:
        raise ValueError(f'--resolution {text} is more than {MAX_SIDE} pixels; give a smaller one')
    base_and_doublings(size)
    return size


def find_pictures(
        options: argparse.Namespace) -> tuple[list[Picture], list[int | None], tuple[str, ...], dict[str, int]]:
    """Pictures in the order of the shards, their class numbers, the classes, and the number of other files by suffix.
    """
    listing = list_source(options.source)
    names = [picture.name for picture in listing.pictures]
    if options.no_labels:
        class_names, numbers = (), [None] * len(names)
    elif options.labels:
        class_names, numbers = number_classes(read_labels(Path(options.labels), names), names, numeric=True)
    else:
        labels = [picture.label for picture in listing.pictures]
        class_names, numbers = number_classes(labels, names, numeric=listing.numeric, class_names=listing.class_names)
        if listing.note:
            print(f'imago pack: {listing.note}', file=sys.stderr)
    # Names are sorted by class; shuffled, each shard mixes the classes, and a part of the shards is a fair sample.
    order = list(range(len(names)))
    random.Random(options.seed).shuffle(order)
    return [listing.pictures[i] for i in order], [numbers[i] for i in order], class_names, listing.ignored


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor]:
    """Processes that are not waited for longer than their present task."""
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(pool: Executor, function: Callable[[T], R], items: Sequence[T], workers: int, doing: str) -> Iterator[R]:
    """`map` over `items` by the processes of `pool`, with a bounded number of results waiting, and a progress bar."""
    chunks = (items[first:first + CHUNK] for first in range(0, len(items), CHUNK))
    tasks = deque(pool.submit(_each, function, chunk) for chunk in islice(chunks, 2 * workers))
    # In a log file, a line now and then.
    with tqdm(desc=doing, total=len(items), unit='img', mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
        while tasks:
            results = tasks.popleft().result()
            tasks.extend(pool.submit(_each, function, chunk) for chunk in islice(chunks, 1))
            for result in results:
                yield result
                bar.update()


def _each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [function(item) for item in items]


def common_size(pool: Executor, pictures: Sequence[Picture], limits: Limits, workers: int) -> tuple[int, int]:
    """The (height, width) in pixels that all have. ValueError naming two that differ, or if none can be read."""
    with closing(in_order(pool, partial(upright_size, limits=limits), pictures, workers, 'comparing sizes')) as sizes:
        whole = ((picture, size) for picture, size in zip(pictures, sizes, strict=True) if size)
        first, common = next(whole, (None, None))
        if common is None:
            raise ValueError(f'none of the {len(pictures)} pictures can be read, e.g. {pictures[0].name!r}')
        for picture, size in whole:
            if size != common:
                raise ValueError(size_mismatch(picture.name, size, repr(first.name), common))
    return common


def write_samples(writer: ShardWriter, results: Iterator[Encoded | Skipped], labels: Sequence[int | None], classes: int,
                  strict: bool) -> Tally:
    """Write and count what `results` hold, in order. ValueError if all are skipped, or one is and `strict` is set."""
    tally, seen = Tally([0] * classes), set()
    for result, label in zip(results, labels, strict=True):
        if isinstance(result, Skipped):
            if strict:
                raise ValueError(f'{result.name!r}: {result.reason} (without --strict it would be skipped)')
            tally.skipped.append(result)
            continue
        writer.write(result.data, label)
        if label is not None:
            tally.class_counts[label] += 1
        tally.enlarged += result.enlarged
        seen.add(hashlib.blake2b(result.data, digest_size=16).digest())
    if not writer.samples:
        first = tally.skipped[0]
        raise ValueError(f'none of the {len(tally.skipped)} pictures can be read, e.g. {first.name!r}: {first.reason}')
    tally.pictures = writer.samples
    tally.duplicates = writer.samples - len(seen)
    return tally


def summarize(options: argparse.Namespace, manifest: Manifest, tally: Tally, ignored: dict[str, int],
              seconds: float) -> None:
    for skipped in tally.skipped[:NAMED]:
        print(f'imago pack: skipped {skipped.name!r}: {skipped.reason}', file=sys.stderr)
    if len(tally.skipped) > NAMED:
        print(f'imago pack: {len(tally.skipped)} skipped in all, named in {options.out}/report.json', file=sys.stderr)
    height, width = manifest.resolution
    classes = f'{len(manifest.class_names)} classes' if manifest.class_names else 'no labels'
    others = ', '.join(f'{count} {suffix}' for suffix, count in ignored.items()) or 'none'
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    print(f'packed    {tally.pictures} pictures of {height}x{width} px, {classes}, in {seconds:.1f} s '
          f'({(tally.pictures + len(tally.skipped)) / seconds:.0f} img/s)')
    print(f'written   {options.out}: {len(manifest.shards)} shards, {megabytes:.1f} MB')
    print(f'skipped   {len(tally.skipped)}; enlarged {tally.enlarged}; duplicates (kept) {tally.duplicates}; '
          f'other files: {others}')
    try:
        base_and_doublings(manifest.resolution)
    except ValueError as error:
        print(f'note      no network makes this size, set data.resolution or pack again with --resolution: {error}')
        return
    command = f'imago train configs/stylegan2-256.yaml data.path={shlex.quote(options.out)}'
    print(f'next      {command}' + ('' if (height, width) == TRAINED_AT else f' data.resolution={height}x{width}'))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='imago pack', description=__doc__, epilog='imago pack --verify FOLDER finds damage '
                                     'in what was packed: a line for each bad shard, and status 1 if there is one.')
    parser.add_argument('source', metavar='SOURCE', help='a folder or .zip of pictures, in one sub-folder a class or '
                        'in none; or WebDataset tars: one, a folder of them, or a pattern like x-{000..003}.tar')
    parser.add_argument('out', metavar='OUT', help='the folder to make')
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument('--labels', metavar='FILE',
                        help='class names or numbers: CSV lines path,label, or .json object path -> label')
    labels.add_argument('--no-labels', action='store_true', help='no classes, whatever the folders')
    parser.add_argument('--resolution', metavar='SIZE', help='HEIGHT x WIDTH in pixels, like 768x512, or 512 for a '
                        'square; default: as is, all pictures must have one size')
    parser.add_argument('--fit', choices=('crop', 'pad'),
                        help='at another aspect: crop from the centre (default), or pad')
    parser.add_argument('--background', default='white', metavar='COLOUR',
                        help='under transparency and padding (default: %(default)s)')
    parser.add_argument('--channels', type=int, choices=(3, 1), default=3, help='3 colour (default), 1 grey')
    parser.add_argument('--encoding', choices=tuple(SUFFIXES), default='webp', help='default: %(default)s')
    parser.add_argument('--quality', type=int, help='of webp and jpeg, 1 to 100 (default: 95)')
    parser.add_argument('--lossless', action='store_true', help='webp without loss, about as large as png')
    parser.add_argument('--shard-mb', type=float, default=256,
                        help='the most a shard may have, in 1e6 bytes (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the order of the pictures (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=usable_cores(), help='processes (default: all cores)')
    parser.add_argument('--max-pixels', type=int, default=100_000_000,
                        help='skip larger pictures (default: %(default)s)')
    parser.add_argument('--strict', action='store_true',
                        help='fail at the first picture that cannot be read, skip none')
    parser.add_argument('--overwrite', action='store_true',
                        help='replace OUT, all of it, once the new one is complete; only if it is a packed dataset')
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command's exit status: 0, 2 after an error that the user can mend, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if '--verify' in arguments:
        return verify.main(arguments)
    options = make_parser().parse_args(arguments)
    try:
        pack(options)
    except ValueError as error:
        print(f'imago pack: error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'imago pack: error: {error}; {options.out} is as it was', file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(f'imago pack: error: a worker process died (out of memory?); try fewer than --workers {options.workers}, '
              'or a smaller --max-pixels', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'imago pack: interrupted; {options.out} is as it was', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's SIGTERM cleans up like Ctrl-C
    sys.exit(main())
