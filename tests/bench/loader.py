"""Speed of the data stream against plain decoding, and the time to resume.

    python tests/bench/loader.py [FOLDER OF 256 PX PICTURES]

Prints images per second of the stream with 2 workers and of 2 processes that decode the same files with Pillow in
a plain loop (medians of alternating rounds, and their ratio), then the seconds from opening to a first batch, and what
the checksums cost: of each picture against decoding it, and of opening a shard.
"""

import argparse
import dataclasses
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

sys.path.insert(0, str(Path(__file__).parents[2]))

from imago.trainer.data.checksums import checksum
from imago.trainer.data.manifest import Manifest
from imago.trainer.data.shards import Members, open_dataset
from imago.trainer.data.stream import stream
from imago.trainer.pack.shards import ShardWriter

SIZE = 256       # pixels
SHARD_BYTES = 10_000_000
BATCH, LANES = 32, 8


def picture_files(folder: Path | None, scratch: Path) -> list[Path]:
    if folder is not None:
        return sorted(path for path in folder.rglob('*') if path.suffix in ('.webp', '.png', '.jpg'))
    paths = [scratch / f'{i}.webp' for i in range(1000)]
    for i, path in enumerate(paths):
        coarse = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def write_shards(paths: list[Path], out: Path) -> None:
    with ShardWriter(out, paths[0].suffix[1:], SHARD_BYTES) as writer:
        for path in paths:
            writer.write(path.read_bytes(), None)
    Manifest((SIZE, SIZE), 3, paths[0].suffix[1:], (), (), tuple(writer.shards)).write(out)


def decode_plainly(paths: list[Path]) -> None:
    for path in paths:
        np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert('RGB'))


def open_stream(folder: Path, nimg: int, workers: int):
    return closing(stream(open_dataset(folder), batch=BATCH, lanes=LANES, seed=0, rank=0, world=1, nimg=nimg,
                          resolution=(SIZE, SIZE), flip=True, workers=workers))


def stream_speed(folder: Path, workers: int, images: int) -> float:
    """Return images per second, measured after workers have started and what they read ahead by then is used up."""
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


def checksum_costs(encoding: str, paths: list[Path], rounds: int) -> str:
    """Return the costs for the same pictures in another encoding, on one core, as medians of alternating rounds."""
    pictures = []
    for path in paths[:200]:
        out = io.BytesIO()
        Image.open(path).convert('RGB').save(out, encoding, quality=95)
        pictures.append(out.getvalue())

    def seconds(work) -> float:
        start = time.perf_counter()
        for data in pictures:
            work(data)
        return (time.perf_counter() - start) / len(pictures)
    times = [(seconds(checksum), seconds(lambda data: np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))))
             for _ in range(rounds)]
    summed, decoded = map(statistics.median, zip(*times))
    return (f'{encoding}: {sum(map(len, pictures)) / len(pictures) / 1e3:.1f} kB, checksum {1e6 * summed:.1f} us, decoding '
            f'{1e6 * decoded:.0f} us, {100 * statistics.median(a / b for a, b in times):.2f} %')


def opening_costs(folder: Path, rounds: int) -> str:
    """Return the costs of opening a shard with its checksums and without, as medians of alternating rounds."""
    dataset = open_dataset(folder)
    new = dataset.manifest.shards[0]
    old = dataclasses.replace(new, checksums=None)

    def seconds(shard) -> float:
        start = time.perf_counter()
        with dataset.open(shard) as file:
            Members(file, shard)
        return time.perf_counter() - start
    without, checked = map(statistics.median, zip(*((seconds(old), seconds(new)) for _ in range(4 * rounds))))
    return (f'opening a shard of {new.samples} pictures: {1e3 * without:.1f} ms without checksums, '
            f'{1e3 * checked:.1f} ms with them')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, nargs='?')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args()
    workers = options.workers
    with tempfile.TemporaryDirectory() as scratch, multiprocessing.get_context('spawn').Pool(workers) as pool:
        folder = Path(scratch)
        paths = picture_files(options.folder, folder)
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
        for encoding in ('webp', 'jpeg', 'png'):
            print(f'checksums of {checksum_costs(encoding, paths, 4 * options.rounds)}')
        print(opening_costs(folder, options.rounds))


if __name__ == '__main__':
    main()
