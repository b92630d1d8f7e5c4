"""`imago evaluate` measures how good a generator's pictures, or those in a folder, are, compared with those of a dataset."""

import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from imago.trainer.command import Parser
from imago.trainer.config.sections import EvaluateConfig
from imago.trainer.data.locations import check_whole, lacks_only_password, masked, scheme_of
from imago.trainer.data.manifest import find_manifest
from imago.trainer.data.shards import ShardError, open_dataset
from imago.trainer.data.stream import check_resolution
from imago.trainer.data.web import find_login
from imago.trainer.games.makers import Maker
from imago.trainer.metrics import record
from imago.trainer.metrics.extractors import make_extractor
from imago.trainer.metrics.pictures import Damaged, Pictures, ShardPictures, fakes_of
from imago.trainer.metrics.protocol import check_evaluation, evaluate
from imago.trainer.pack.members import Member
from imago.trainer.pack.pictures import Limits, open_upright
from imago.trainer.pack.sources import list_source
from imago.trainer.pack.splits import ALL
from imago.trainer.ranks import dist
from imago.trainer.ranks.backend import agree_on_kernels
from imago.trainer.runs.checkpoint import SEAL
from imago.trainer.runs.export import ABOUT, build_maker, describe
from imago.trainer.runs.run_folder import CONFIG_FILE, read_config
from imago.trainer.train import fail

BUILT_IN = 'auto', 'inception', 'effnet_lite0'
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
    if not scheme_of(path):
        if not Path(path).exists() and '{' not in path:
            raise ValueError(f'no such folder: {path}; give shards or pictures')
        if find_manifest(Path(path)) is None:
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
    return ShardPictures(dataset, tuple(size), most, config.seed)


def is_generator(path: Path) -> bool:
    return any((path / name).exists() for name in (ABOUT, SEAL, CONFIG_FILE, 'checkpoints'))


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


def check_own_data(run: Path, location: str) -> None:
    """Raise ValueError if a run's own dataset is read by a command, which must not run unasked, or lacks a password.

    Only .netrc says which host may have a password. The password in the environment is for locations that the user gives.
    """
    if scheme_of(location) == 'pipe':
        raise ValueError(f'{run} reads its dataset by a command, {masked(location)}; if you trust that, give it as --data')
    try:
        check_whole(location)
        if scheme_of(location).startswith('http'):
            find_login(location, environment={})
    except ValueError:
        or_so = ', or the password in .netrc' if lacks_only_password(location) else ''
        raise ValueError(f'{run} keeps no password of its dataset {masked(location)}; '
                         f'give the whole location as --data{or_so}') from None


def settings(options: argparse.Namespace) -> tuple[EvaluateConfig, str | None, tuple[int, int] | None]:
    """Return the run's `evaluate` section (or the defaults) with the options put over it, the dataset, and the run's crop.

    ValueError for bad values.
    """
    source = Path(options.source)
    config = read_config(source) if (source / CONFIG_FILE).is_file() else None
    # the run may be a stranger's, and a dataset or a feature network may name a program
    if config and not options.data:
        check_own_data(source, config.data.path)
    if config and not options.extractor and config.evaluate.extractor not in BUILT_IN:
        raise ValueError(f'{source} has a feature network of its own, {config.evaluate.extractor}; if you trust that, give it '
                         'as --extractor')
    tree = (config.evaluate if config else EvaluateConfig()).model_dump()
    tree |= {name: value for name in tree if (value := getattr(options, name, None)) is not None}
    try:
        evaluation = EvaluateConfig.model_validate(tree)
        return evaluation, options.data or (config.data.path if config else None), config.data.crop if config else None
    except ValidationError as error:
        detail = error.errors()[0]
        message = detail['msg'].removeprefix('Value error, ')
        raise ValueError(f'--{str(detail["loc"][0]).replace("_", "-")} {str(detail["input"])[:100]}: {message}') from None


def run(options: argparse.Namespace) -> None:
    """Evaluate, print the scores, and keep them. All ranks call it together. ValueError for what the user can mend."""
    config, data, crop = dist.together(lambda: settings(options))
    if data is None:
        raise ValueError(f'--data is missing: {options.source} is no run folder, which would name its dataset')
    dist.init(options.device)
    path, nimg = Path(options.source), None
    if is_generator(path):
        maker, about = same_maker(path)
        source, size, crop, nimg = fakes_of(maker, config), maker.resolution, about['crop'] or crop, about['nimg']
    else:
        source, size = dist.together(lambda: find_pictures(options.source, config, config.images)), None
    reference = dist.together(lambda: find_pictures(data, config, config.most_reals, size, crop))
    dist.together(lambda: check_evaluation(config, source, reference))
    extractor = dist.together(lambda: make_extractor(config, dist.device()))
    scores = evaluate(source, reference, extractor, config)
    if dist.is_main():
        entry = record.record_of(scores, nimg)
        print(json.dumps(entry) if options.json else record.table(scores))
        if (path / CONFIG_FILE).is_file():
            record.append(path, entry)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog='imago evaluate', description=__doc__, allow_abbrev=False,
                    epilog='imago evaluate also takes --gpus N: N processes here, by torchrun. What is not '
                           'given is taken from the section `evaluate` of the run.')
    parser.add_argument('source', help='a run folder, a checkpoint, an export, a folder of pictures, or shards')
    parser.add_argument('--data', help="shards, or a folder of pictures, to compare with (default: the run's own)")
    parser.add_argument('--metrics', type=lambda text: tuple(text.split(',')),
                        help='some of fid,kid,is,precision,recall,density,coverage,ppl,intra_fid')
    parser.add_argument('--images', type=int, help='fakes (default: 50000)')
    parser.add_argument('--reals', help='at most, drawn by the seed (default: 50000); or all')
    parser.add_argument('--seed', type=int)
    parser.add_argument('--psi', type=float, help='truncation psi')
    parser.add_argument('--psi-cutoff', type=int, metavar='N', help='of psi: the first N layers only')
    parser.add_argument('--truncation', type=float, help='draw latents again until |z| is below this, as BigGAN does')
    parser.add_argument('--noise', help='of generators that add some: random (default), for each picture anew, or const')
    parser.add_argument('--resizer', help='clean (antialiased bicubic) or legacy (bilinear)')
    parser.add_argument('--extractor', help='auto, inception, effnet_lite0, or a TorchScript or ONNX file')
    parser.add_argument('--extractor-size', type=int, metavar='PX', help='of a file')
    parser.add_argument('--extractor-mean', type=float, nargs=3, metavar='X', help='of a file; of values from 0 to 1')
    parser.add_argument('--extractor-std', type=float, nargs=3, metavar='X', help='of a file')
    parser.add_argument('--extractor-sha256', metavar='HEX', help='that the weights must have')
    parser.add_argument('--device', default='auto', choices=('auto', 'cpu', 'cuda'))
    parser.add_argument('--json', action='store_true', help='one line of JSON instead of a table')
    try:
        run(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        return fail(error, 2, parser.prog)
    except ShardError as error:
        return fail(error, 1, parser.prog)
    finally:
        dist.shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
