"""Speed of the data stream against plain decoding, and the time to resume.

    python tests/bench/loader.py [FOLDER OF 256 PX PICTURES]

Prints images per second of the stream with 2 workers and of 2 processes that decode the same files with Pillow in
a plain loop (medians of alternating rounds, and their ratio), then the seconds from opening to a first batch.
"""

import argparse
import hashlib
import io
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset import TarWriter

sys.path.insert(0, str(Path(__file__).parents[2]))

from trainer.data.manifest import Manifest, Shard, sample_key
from trainer.data.shards import open_dataset
from trainer.data.stream import stream

SIZE = 256       # pixels
PER_SHARD = 500
BATCH, LANES = 32, 8


def find_pictures(folder: Path | None, scratch: Path) -> list[Path]:
    if folder is not None:
        return sorted(path for path in folder.rglob('*') if path.suffix in ('.webp', '.png', '.jpg'))
    paths = [scratch / f'{i}.webp' for i in range(1000)]
    for i, path in enumerate(paths):
        coarse = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def write_shards(paths: list[Path], out: Path) -> None:
    shards = []
    for first in range(0, len(paths), PER_SHARD):
        chosen, tar = paths[first:first + PER_SHARD], out / f'shard-{len(shards):05d}.tar'
        with TarWriter(str(tar)) as writer:
            for index, path in enumerate(chosen, first):
                writer.write({'__key__': sample_key(index), path.suffix[1:]: path.read_bytes()})
        content = tar.read_bytes()
        shards.append(Shard(tar.name, first, len(chosen), len(content), hashlib.sha256(content).hexdigest()))
    Manifest((SIZE, SIZE), 3, paths[0].suffix[1:], (), (), tuple(shards)).write(out)


def decode_plainly(paths: list[Path]) -> None:
    for path in paths:
        np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert('RGB'))


def open_stream(folder: Path, nimg: int, workers: int):
    return closing(stream(open_dataset(folder), batch=BATCH, lanes=LANES, seed=0, rank=0, world=1, nimg=nimg,
                          resolution=(SIZE, SIZE), flip=True, workers=workers))


def stream_speed(folder: Path, workers: int, images: int) -> float:
    """Images per second, once workers have started and what they read ahead meanwhile is gone."""
    with open_stream(folder, 0, workers) as batches:
        for _ in itertools.islice(batches, 4 * workers):
            continue
        start = time.perf_counter()
        for _ in itertools.islice(batches, images // BATCH):
            continue
        return images // BATCH * BATCH / (time.perf_counter() - start)


def plain_speed(pool, parts: list[list[Path]], images: int) -> float:
    start = time.perf_counter()
    pool.map(decode_plainly, parts, chunksize=1)
    return images / (time.perf_counter() - start)


def seconds_to_first_batch(folder: Path, nimg: int, workers: int) -> float:
    start = time.perf_counter()
    with open_stream(folder, nimg, workers) as batches:
        next(batches)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, nargs='?')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args()
    workers = options.workers
    with tempfile.TemporaryDirectory() as scratch, multiprocessing.get_context('spawn').Pool(workers) as pool:
        folder = Path(scratch)
        paths = find_pictures(options.folder, folder)
        write_shards(paths, folder)
        parts = [paths[i::workers] for i in range(workers)]
        pool.map(decode_plainly, parts, chunksize=1)  # starts the processes, fills the page cache
        speeds = [(stream_speed(folder, workers, len(paths)), plain_speed(pool, parts, len(paths)))
                  for _ in range(options.rounds)]
        streamed, plain = map(statistics.median, zip(*speeds))
        ratio = statistics.median(a / b for a, b in speeds)
        print(f'{len(paths)} pictures, {workers} workers: stream {streamed:.0f} img/s, plain loops {plain:.0f} img/s, '
              f'ratio {ratio:.2f} (median of {options.rounds} rounds)')
        starts = (0, 10_000_000 // BATCH * BATCH)
        for count in (0, workers):
            times = [[seconds_to_first_batch(folder, nimg, count) for nimg in starts] for _ in range(options.rounds)]
            first, later = map(statistics.median, zip(*times))
            print(f'first batch with {count} workers: {first:.3f} s from image 0, {later:.3f} s from image {starts[1]}')


if __name__ == '__main__':
    main()
