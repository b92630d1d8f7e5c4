"""`imago evaluate`: how good a generator's pictures, or a folder of them, are, beside those of a dataset."""

import argparse
import sys
from pathlib import Path

from imago.trainer.command import Parser, tell_errors
from imago.trainer.metrics.settings import check_there, settings
from imago.trainer.ranks.world import world_size
from imago.trainer.runs.generator_folder import is_generator

PROG = 'imago evaluate'


def parser() -> Parser:
    parser = Parser(prog=PROG, description=__doc__, allow_abbrev=False,
                    epilog='imago evaluate also takes --gpus N: N processes here, by torchrun. What is not '
                           'given is taken from the section `evaluate` of the run.')
    parser.add_argument('source', help='a run folder, a checkpoint, an export, a folder of pictures, or shards')
    parser.add_argument('--data', help="shards, or a folder of pictures, to compare with (default: the run's own)")
    parser.add_argument('--metrics', type=lambda text: tuple(text.split(',')),
                        help='some of fid,kid,is,precision,recall,density,coverage,ppl,intra_fid')
    parser.add_argument('--images', type=int, help='fakes (default: 50000, and 5000 on a CPU)')
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
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Do one rank's part of an evaluation, and return its exit status."""
    options = parser().parse_args(arguments)

    def work() -> int:
        if world_size() == 1:
            check(options)
        from imago.trainer.tools.scoring import score
        return score(options, PROG)
    return tell_errors(PROG, work)


def ahead(arguments: list[str], ranks: int) -> int | None:
    """Refuse what makes no sense, before processes start. Returns the exit status, or None if they must start."""
    options = parser().parse_args(arguments)
    return tell_errors(PROG, lambda: check(options))


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for what can be refused without torch and without a network."""
    _, data, _ = settings(options)
    if not is_generator(Path(options.source)):
        check_there(options.source)
    check_there(data)


if __name__ == '__main__':
    sys.exit(main())
