"""`imago export` writes the EMA generator as safetensors and JSON, for use without its run."""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from imago.trainer.command import Parser, tell_errors
from imago.trainer.runs.generator_folder import ABOUT, WEIGHTS, check_new, check_source

MOST_BATCHES, MOST_TEXT = 10_000, 500


def parser() -> Parser:
    parser = Parser(prog='imago export', description=__doc__)
    parser.add_argument('source', help='a run folder (its newest checkpoint) or a checkpoint')
    parser.add_argument('out', help='folder to write; must not exist, or be empty')
    parser.add_argument('--standing-batches', type=int, default=0, metavar='N',
                        help='take batch-norm statistics anew from N batches of fakes (default: as kept while training)')
    parser.add_argument('--licence', default='', metavar='TEXT', help='of the weights, as CC-BY-4.0; it is written with them')
    parser.add_argument('--data', default='', metavar='TEXT',
                        help="what they were trained on (default: the dataset's name, count and digest)")
    return parser


def check_batches(batches: int) -> None:
    """Raise ValueError unless standing statistics can be taken over so many batches; 0 means that none are taken."""
    if not 0 <= batches <= MOST_BATCHES:
        raise ValueError(f'--standing-batches {batches} is not between 0 and {MOST_BATCHES}; 16 is usual')


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return tell_errors('imago export', lambda: export(options))


def export(options: argparse.Namespace) -> int:
    """Write the export, say so, and return the exit status. ValueError, before any work, for what makes no sense."""
    if not options.out:
        raise ValueError('the folder to write has no name; give one')
    out = Path(options.out)
    check_new(out)
    check_batches(options.standing_batches)
    for name in ('licence', 'data'):
        if len(getattr(options, name)) > MOST_TEXT:
            raise ValueError(f'--{name} has {len(getattr(options, name))} characters, of {MOST_TEXT} at most; name a web page')
    check_source(Path(options.source))
    from imago.trainer.runs.export import open_maker, write_export
    maker, about = open_maker(options.source)
    if options.standing_batches:
        maker.take_standing_statistics(options.standing_batches)
    about |= {'version': version('imago-gan')}
    about |= {key: given for key in ('licence', 'data') if (given := getattr(options, key))}
    write_export(maker, about, out)
    licence = f'licence {about["licence"]}' if about['licence'] else 'no licence given: --licence TEXT'
    data = about['data'] or 'unknown data'
    print(f'wrote {out / WEIGHTS} and {out / ABOUT} ({about["nimg"] / 1000:g} kimg, trained on {data}, {licence})')
    return 0


if __name__ == '__main__':
    sys.exit(main())
