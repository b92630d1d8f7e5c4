"""`imago pack` makes shards to train from, their manifest and a report, out of a folder, a zip or tars of pictures."""

import argparse
import hashlib
import json
import random
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ImageColor
from tqdm import tqdm

from imago.trainer.command import Parser, tell_error
from imago.trainer.config.resolution import base_and_doublings, parse_resolution
from imago.trainer.data.durable import write_text
from imago.trainer.data.manifest import SINGLE, TWO_DOMAINS, Manifest
from imago.trainer.pack import verify
from imago.trainer.pack.conditions import read_conditions
from imago.trainer.pack.labels import number_classes, read_labels
from imago.trainer.pack.members import Member
from imago.trainer.pack.pairs import partners_of
from imago.trainer.pack.parquet import copied_out
from imago.trainer.pack.pictures import (
    SUFFIXES,
    WHITEST,
    Encoded,
    Limits,
    Recipe,
    Skipped,
    largest_value,
    prepare_all,
    size_mismatch,
    start_worker,
    upright_size,
)
from imago.trainer.pack.shards import REPORT, ShardWriter, check_target, folder_in_the_making
from imago.trainer.pack.sources import Listing, list_source, locate
from imago.trainer.pack.summary import Tally, advise, full_scale, summarize
from imago.trainer.ranks.machine import usable_cores

T = TypeVar('T')
R = TypeVar('R')
CHUNK = 8             # pictures per task: enough to hide the cost of a task, few enough to need little memory
LOSSY_QUALITY, LOSSLESS_EFFORT = 95, 75
MOST_WORKERS = 1024


def pack(options: argparse.Namespace) -> None:
    """Pack SOURCE into OUT. ValueError and OSError for what the user can mend."""
    start = time.perf_counter()
    out = check_paths(options)
    size = check_options(options)
    check_target(out, options.overwrite)
    for source in filter(None, (options.source, options.pair)):
        check_apart(out, source)
    found = find_samples(options)
    domains = TWO_DOMAINS if options.pair else SINGLE
    with (folder_in_the_making(out, options.overwrite) as folder, copied_out(found.samples, folder) as samples,
          worker_pool(min(options.workers, -(-len(samples) // CHUNK))) as pool):
        pictures, limits = list(chain(*samples)), Limits(options.max_pixels)
        size = size if size or options.keep_sizes else common_size(pool, pictures, limits, options.workers)
        white_level = (find_white_level(pool, pictures, limits, options.workers) if options.white_level == 'auto'
                       else int(options.white_level))
        fit = options.fit or 'crop' if options.resolution else None
        quality = options.quality or (LOSSLESS_EFFORT if options.lossless else LOSSY_QUALITY)
        recipe = Recipe(size, fit, options.background, options.channels, options.encoding, quality, options.lossless,
                        limits, white_level)
        work = partial(prepare_all, recipe=recipe)
        with (closing(in_order(pool, work, samples, options.workers, 'packing')) as results,
              ShardWriter(folder, SUFFIXES[options.encoding], int(options.shard_mb * 1e6), domains) as writer):
            tally = write_samples(writer, results, found, options.strict)
        listing = found.listing
        assert listing.members == tally.pictures + len(tally.skipped) + sum(listing.ignored.values()), 'a picture is lost'
        manifest = Manifest(size, options.channels, options.encoding, found.class_names, tuple(tally.class_counts),
                            tuple(writer.shards), None if size else tally.smallest, domains, found.condition_shape)
        about = {'recipe': asdict(recipe), 'seed': options.seed, 'members': listing.members, 'ignored': listing.ignored,
                 **asdict(tally)}
        write_text(folder / REPORT, json.dumps(about, indent=1) + '\n')
        manifest.write(folder)
    summarize(options.out, manifest, tally, listing.ignored, time.perf_counter() - start)
    advise(options.out, manifest, tally, white_level)


def check_paths(options: argparse.Namespace) -> Path:
    """Return OUT as an absolute path. ValueError for paths that nobody can mean."""
    for name, text in (('SOURCE', options.source), ('--pair', options.pair), ('OUT', options.out), ('--labels', options.labels),
                       ('--conditions', options.conditions)):
        if text is not None and not text.strip():
            raise ValueError(f'{name} {text!r} is empty; give a path')
        if text is not None and '~' in Path(text).parts:
            raise ValueError(f'{name} {text} holds a ~ that no shell has put a home folder for; write it out: {Path.home()}')
    try:
        return Path(options.out).resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f'OUT {options.out} is a link that leads nowhere ({error}); give another one') from error


def check_apart(out: Path, source: str) -> None:
    """Raise ValueError if OUT or SOURCE holds the other: pictures would be replaced by their copies, or mixed with them."""
    for path in locate(source):
        place = path.resolve()
        if place == out or out in place.parents:
            raise ValueError(f'SOURCE {path} would be replaced by what is made of it, as OUT is {out}; choose another OUT')
        if place in out.parents:
            raise ValueError(f'OUT {out} is inside SOURCE {path}, among the pictures; choose a folder beside it')


def check_options(options: argparse.Namespace) -> tuple[int, int] | None:
    """Return --resolution as (height, width) in pixels, if given. ValueError for options out of range or without effect."""
    if not 0 < options.shard_mb < 1e6:
        raise ValueError(f'--shard-mb {options.shard_mb:g} is outside 0 to 1e6; give megabytes, e.g. 256')
    if not 1 <= options.workers <= MOST_WORKERS:
        raise ValueError(f'--workers {options.workers} is outside 1 to {MOST_WORKERS}')
    if options.max_pixels < 1:
        raise ValueError(f'--max-pixels {options.max_pixels} is below 1')
    if options.white_level != 'auto' and not (
            re.fullmatch('[0-9]{1,5}', options.white_level) and 1 <= int(options.white_level) <= WHITEST):
        raise ValueError(f'--white-level {options.white_level} is outside 1 to {WHITEST}, and not auto')
    if options.lossless and options.encoding != 'webp':
        raise ValueError(f'--lossless is for --encoding webp, not {options.encoding} (png is always lossless)')
    if options.quality is not None and (options.lossless or options.encoding == 'png'):
        raise ValueError(f'--quality {options.quality} has no effect on lossless pictures; leave it out')
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise ValueError(f'--quality {options.quality} is outside 1 to 100')
    if options.keep_sizes and options.resolution:
        raise ValueError(f'--resolution {options.resolution} brings all to one size, and --keep-sizes does not; leave one out')
    if options.fit and not options.resolution:
        raise ValueError(f'--fit {options.fit} needs a size to fit to: add --resolution')
    try:
        ImageColor.getrgb(options.background)
    except ValueError as error:
        raise ValueError(f'--background {options.background}: no such colour; write e.g. white or #ffffff') from error
    return target_size(options.resolution) if options.resolution else None


def target_size(text: str) -> tuple[int, int]:
    """Read --resolution as (height, width) in pixels. ValueError if it is no size, or one that no network can make."""
    size = parse_resolution(text)
    base_and_doublings(size)
    return size


@dataclass(frozen=True)
class Found:
    """What SOURCE holds, and each sample's pictures, class number and condition, in the order of the shards."""

    listing: Listing
    samples: list[tuple[Member, ...]]
    labels: list[int | None]
    class_names: tuple[str, ...]
    conditions: Sequence[np.ndarray | None]

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        return None if self.conditions[0] is None else self.conditions[0].shape


def find_samples(options: argparse.Namespace) -> Found:
    """Find the samples. ValueError unless the pictures, their labels, partners and conditions fit each other."""
    columns = None if options.labels else options.columns
    listing = list_source(options.source, labels=not (options.labels or options.no_labels), split=options.split, columns=columns)
    names, notes = [picture.name for picture in listing.pictures], listing.notes
    sources = [listing.pictures]
    if options.pair:
        sources.append(partners_of(listing.pictures, options.source, options.pair, options.split))
    if options.labels:
        labels, note = read_labels(Path(options.labels), names, options.columns, listing.elsewhere)
        notes += [note] if note else []
        class_names, numbers = number_classes(labels, names, numeric=True)
    else:
        class_names, numbers = number_classes(listing.labels, names, numeric=listing.numeric,
                                              class_names=listing.class_names)
    for note in notes:
        print(f'imago pack: {note}', file=sys.stderr)
    used = len(set(numbers))
    if class_names and 2 * used > len(numbers):
        print(f'imago pack: warning: {used} classes of {len(numbers)} pictures, about one a picture, teach nothing; '
              'give other labels (--labels FILE) or none (--no-labels)', file=sys.stderr)
    # Names are sorted by class. After shuffling, each shard mixes the classes, and some of the shards are a fair sample.
    order = list(range(len(names)))
    random.Random(options.seed).shuffle(order)
    conditions = read_conditions(Path(options.conditions), names, elsewhere=listing.elsewhere) if options.conditions else None
    return Found(listing, [tuple(pictures[i] for pictures in sources) for i in order], [numbers[i] for i in order], class_names,
                 [None] * len(order) if conditions is None else list(conditions[order]))


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor]:
    """Yield a pool of processes. At its end nothing is waited for but their present tasks."""
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(pool: Executor, function: Callable[[T], R], items: Sequence[T], workers: int, doing: str) -> Generator[R]:
    """Yield `function` of each item, in order, from the processes of `pool`; few results wait at a time. Shows a progress bar."""
    chunks = (items[first:first + CHUNK] for first in range(0, len(items), CHUNK))
    tasks = deque(pool.submit(_each, function, chunk) for chunk in islice(chunks, 2 * workers))
    # A log file gets a line only now and then.
    with tqdm(desc=doing, total=len(items), unit='img', mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
        while tasks:
            results = tasks.popleft().result()
            tasks.extend(pool.submit(_each, function, chunk) for chunk in islice(chunks, 1))
            for result in results:
                yield result
                bar.update()


def _each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [function(item) for item in items]


def common_size(pool: Executor, pictures: Sequence[Member], limits: Limits, workers: int) -> tuple[int, int]:
    """Return the (height, width) in pixels that all have. ValueError names two that differ, or says that none can be read."""
    with closing(in_order(pool, partial(upright_size, limits=limits), pictures, workers, 'comparing sizes')) as sizes:
        whole = ((picture, size) for picture, size in zip(pictures, sizes, strict=True) if size)
        first, common = next(whole, (None, None))
        if common is None:
            raise ValueError(f'none of the {len(pictures)} pictures can be read, e.g. {pictures[0].name!r}')
        for picture, size in whole:
            if size != common:
                raise ValueError(size_mismatch(picture.name, size, repr(first.name), common))
    return common


def find_white_level(pool: Executor, pictures: Sequence[Member], limits: Limits, workers: int) -> int:
    """Return the largest value of as many bits as the 16-bit files use, over all of them: it is 4095 if they use twelve."""
    with closing(in_order(pool, partial(largest_value, limits=limits), pictures, workers, 'looking for white')) as values:
        return full_scale(max(values)) or WHITEST


def write_samples(writer: ShardWriter, results: Iterator[tuple[Encoded, ...] | Skipped], found: Found, strict: bool) -> Tally:
    """Write and count the results, in order. ValueError if all are skipped, or if one is and `strict` is set."""
    tally, seen = Tally([0] * len(found.class_names)), set()
    for result, label, condition in zip(results, found.labels, found.conditions, strict=True):
        if isinstance(result, Skipped):
            if strict:
                raise ValueError(f'{result.name!r}: {result.reason} (without --strict it would be skipped)')
            tally.skipped.append(result)
            continue
        writer.write([picture.data for picture in result], label, condition)
        if label is not None:
            tally.class_counts[label] += 1
        for picture in result:
            tally.add(picture)
        seen.add(hashlib.blake2b(b''.join(picture.data for picture in result), digest_size=16).digest())
    if not writer.samples:
        first = tally.skipped[0]
        raise ValueError(f'none of the {len(tally.skipped)} pictures can be read, e.g. {first.name!r}: {first.reason}')
    tally.pictures = writer.samples
    tally.duplicates = writer.samples - len(seen)
    return tally


def parser() -> Parser:
    parser = Parser(prog='imago pack', description=__doc__, epilog='imago pack --verify FOLDER finds damage in what was packed: '
                    'a line for each bad shard, and status 1 if there is one.')
    parser.add_argument('source', metavar='SOURCE', help='a folder or .zip of pictures, in one sub-folder a class or '
                        'in none; WebDataset tars or Parquet files: one, a folder of them, or a pattern like x-{000..003}.tar; '
                        "CIFAR's .tar.gz or MNIST's idx3-ubyte files, or folders of them. Labels in it go before sub-folders: "
                        "StyleGAN's dataset.json, metadata.csv, or KEY.cls or KEY.json beside KEY.png")
    parser.add_argument('--pair', metavar='SOURCE_B', help='pack each picture of SOURCE with the one of the same name here, as a '
                        'pair of the domains a and b; each picture must have its partner')
    parser.add_argument('out', metavar='OUT', help='the folder to make')
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument('--labels', metavar='FILE',
                        help='class names or numbers: CSV or JSON lines with a column of paths and one of labels, .json '
                        "object path -> label, or StyleGAN's dataset.json")
    labels.add_argument('--no-labels', action='store_true', help='no classes, whatever the folders')
    parser.add_argument('--columns', metavar='PATH,LABEL', help='the columns of the labels file, of metadata.csv, or of Parquet '
                        'files (picture and label) that are meant, where their names do not tell')
    parser.add_argument('--split', metavar='NAME', help='the part to pack where folders or file names tell train, validation and '
                        'test, or all (default: train)')
    parser.add_argument('--conditions', metavar='FILE', help='floats to pack with each picture: .npy, an array [pictures, '
                        'values] or [pictures, length, values] in the order of the sorted names; .csv, lines path,value,...; or '
                        '.json, an object path -> [values]')
    parser.add_argument('--resolution', metavar='SIZE', help='HEIGHT x WIDTH in pixels, like 768x512, or 512 for a '
                        'square; default: as is, all pictures must have one size')
    parser.add_argument('--keep-sizes', action='store_true',
                        help='each picture keeps its own size; data.crop=SIZE then shows parts of them')
    parser.add_argument('--fit', choices=('crop', 'pad'),
                        help='at another aspect: crop from the centre (default), or pad')
    parser.add_argument('--background', default='white', metavar='COLOUR',
                        help='under transparency and padding (default: %(default)s)')
    parser.add_argument('--channels', type=int, choices=(3, 1), default=3, help='3 colour (default), 1 grey')
    parser.add_argument('--white-level', metavar='N', default=str(WHITEST), help='the value that is white in files of 16 bits: '
                        '4095 where they hold 12 bits; auto finds it, from all of them (default: %(default)s)')
    parser.add_argument('--encoding', choices=tuple(SUFFIXES), default='webp', help='default: %(default)s')
    parser.add_argument('--quality', type=int, help='of webp and jpeg, 1 to 100 (default: 95)')
    parser.add_argument('--lossless', action='store_true', help='webp without loss, about as large as png')
    parser.add_argument('--shard-mb', type=float, default=256,
                        help='the most a shard may have, in 1e6 bytes (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the order of the pictures (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=min(usable_cores(), MOST_WORKERS), help='processes (default: all cores)')
    parser.add_argument('--max-pixels', type=int, default=100_000_000,
                        help='skip larger pictures (default: %(default)s)')
    parser.add_argument('--strict', action='store_true',
                        help='fail at the first picture that cannot be read, skip none')
    parser.add_argument('--overwrite', action='store_true',
                        help='replace OUT once the new one is complete; only if it is a packed dataset and holds nothing else')
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Its exit status is 0, 2 after an error that the user can mend, or 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if '--verify' in arguments:
        return verify.main(arguments)
    options = parser().parse_args(arguments)
    try:
        pack(options)
    except ValueError as error:
        tell_error('imago pack', error)
        return 2
    except OSError as error:
        tell_error('imago pack', f'{error}; {options.out} is as it was')
        return 2
    except BrokenProcessPool:
        fewer = f'fewer than --workers {options.workers}, or ' if options.workers > 1 else ''
        tell_error('imago pack', f'a worker process died (out of memory?); try {fewer}a smaller --max-pixels')
        return 2
    except KeyboardInterrupt:
        print(f'imago pack: interrupted; {options.out} is as it was', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's SIGTERM cleans up like Ctrl-C
    sys.exit(main())
