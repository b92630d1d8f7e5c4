"""Pictures and generators as `imago evaluate` compares them."""

import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from imago.trainer.command import INTERRUPTED
from imago.trainer.config.sections import EvaluateConfig
from imago.trainer.data.locations import masked, scheme_of
from imago.trainer.data.manifest import find_manifest
from imago.trainer.data.shards import ShardError, open_dataset
from imago.trainer.data.stream import check_resolution
from imago.trainer.games.makers import Maker
from imago.trainer.metrics import record
from imago.trainer.metrics.extractors import make_extractor
from imago.trainer.metrics.outlook import outlook
from imago.trainer.metrics.pictures import Damaged, Fakes, Pictures, ShardPictures, fakes_of
from imago.trainer.metrics.protocol import Scores, check_evaluation, evaluate
from imago.trainer.metrics.settings import check_there, fakes_on, settings
from imago.trainer.pack.members import Member
from imago.trainer.pack.pictures import Limits, open_upright
from imago.trainer.pack.sources import list_source
from imago.trainer.pack.splits import ALL
from imago.trainer.ranks import dist
from imago.trainer.ranks.backend import agree_on_kernels
from imago.trainer.ranks.precision import set_precision
from imago.trainer.runs.export import build_maker, describe
from imago.trainer.runs.generator_folder import is_generator
from imago.trainer.runs.run_folder import CONFIG_FILE
from imago.trainer.train import fail

MAX_PIXELS = 2 ** 28   # of a picture in a folder


@dataclass(frozen=True)
class FolderPictures:
    """The pictures of a folder, zip or tars are read at their own sizes, upright and in sRGB. `seed` draws at most `most`."""

    source: str
    most: int
    seed: int
    size: None = None
    labelled: bool = False

    @cached_property
    def _pictures(self) -> list[Member]:
        pictures = list_source(self.source, labels=False, split=ALL).pictures
        drawn = np.random.RandomState([self.seed, 1]).permutation(len(pictures))[:self.most]
        return [pictures[index] for index in sorted(drawn)]

    @property
    def count(self) -> int:
        return len(self._pictures)

    @cached_property
    def digest(self) -> str:
        """A digest of names, sizes and times of change; reading all the files would take as long as computing their features."""
        digest = hashlib.sha256()
        for picture in self._pictures:
            path = Path(picture.container)
            found = os.stat(path / picture.name if path.is_dir() else path)
            digest.update(repr((picture.name, str(path.resolve()), found.st_size, found.st_mtime_ns)).encode())
        return digest.hexdigest()

    def read(self, index: int) -> tuple[np.ndarray, int]:
        picture = self._pictures[index]
        try:
            image = open_upright(picture, Limits(MAX_PIXELS), 'white', 3)
        except Exception as error:   # Pillow's readers raise nearly every kind of error on broken files
            raise Damaged(f'{picture.name}: {error}') from error
        return np.asarray(image), 0


def find_pictures(path: str, config: EvaluateConfig, most: int, size: tuple[int, int] | None = None,
                  crop: tuple[int, int] | None = None) -> Pictures:
    """Find pictures in shards, at `size` (height, width) or as packed; or in a folder, zip or tars. ValueError if there are none.

    From pictures in shards a part of the size `crop` is compared, or of `size` where pictures keep their own sizes.
    """
    check_there(path)
    if not scheme_of(path) and find_manifest(Path(path)) is None:
        return FolderPictures(path, most, config.seed)
    try:
        dataset = open_dataset(path, crop=crop)
    except ShardError as error:
        raise ValueError(str(error)) from error
    if dataset.size is None:
        dataset = replace(dataset, crop=size)
    size = size or dataset.size
    if size is None:
        raise ValueError(f'{masked(path)} holds pictures of different sizes; pack them with imago pack --resolution')
    check_resolution(dataset, size)
    return ShardPictures(dataset, (size[0], size[1]), most, config.seed)


def same_maker(path: Path) -> tuple[Maker, dict]:
    """Make the generator that rank 0 finds at `path` on all ranks, with the same kernels; see `open_maker`.

    Rank 0 alone looks, as a run may save another checkpoint meanwhile. All ranks call it together.
    """
    agree_on_kernels(dist.device().type)
    while True:
        folder, about = dist.from_main(lambda: describe(path))
        maker = dist.together(lambda: build_maker(folder, about, dist.device()))
        if not dist.any_rank(maker is None):
            return maker, about


def score(options: argparse.Namespace, prog: str) -> int:
    """Score what the options name, and return this rank's exit status. All ranks call it together."""
    try:
        run(options)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return fail(error, 2, prog)
    except ShardError as error:
        return fail(error, 1, prog)
    except KeyboardInterrupt:
        if dist.is_main():
            print(f'{prog}: interrupted; nothing is recorded', file=sys.stderr, flush=True)
        return INTERRUPTED
    finally:
        dist.shutdown()
    return 0


def run(options: argparse.Namespace) -> None:
    """Evaluate, print the scores, and keep them. All ranks call it together. ValueError for what the user can mend."""
    scores, entry = measure(options)
    if dist.is_main():
        try:
            print(json.dumps(entry) if options.json else record.table(scores), flush=True)
        finally:    # scores are kept though nobody reads on, and shown though they cannot be kept
            keep(Path(options.source), entry)


def keep(source: Path, entry: dict) -> None:
    """Record the scores of a run in its folder."""
    if (source / CONFIG_FILE).is_file():
        record.append(source, entry)
        record.to_tensorboard(source, entry)


def measure(options: argparse.Namespace) -> tuple[Scores, dict]:
    """Evaluate, and return the scores and their record. All ranks call it together."""
    config, data, crop = dist.together(lambda: settings(options))
    dist.init(options.device)
    set_precision(dist.device().type)
    path, nimg = Path(options.source), None
    source: Fakes | Pictures
    if is_generator(path):
        maker, about = same_maker(path)
        source, size, crop, nimg = fakes_of(maker, config), maker.resolution, about['crop'] or crop, about['nimg']
    else:
        most = fakes_on(config, dist.device().type)
        source, size = dist.together(lambda: find_pictures(options.source, config, most)), None
    reference = dist.together(lambda: find_pictures(data, config, config.most_reals, size, crop))
    dist.together(lambda: check_evaluation(config, source, reference))
    extractor = dist.together(lambda: make_extractor(config, dist.device()))
    told = dist.from_main(lambda: outlook(source, reference, extractor, config, dist.world_size()))
    if dist.is_main():
        print(f'evaluating {options.source}: {told}', file=sys.stderr, flush=True)
    scores = evaluate(source, reference, extractor, config)
    return scores, record.record_of(scores, nimg)
