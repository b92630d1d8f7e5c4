"""`imago export` writes the EMA generator as safetensors and JSON, for use without its run."""

import sys
from pathlib import Path

from imago.trainer.command import Parser, tell_error
from imago.trainer.games.makers import check_batches
from imago.trainer.runs.export import ABOUT, WEIGHTS, check_new, open_maker, write_export


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog='imago export', description=__doc__)
    parser.add_argument('source', help='a run folder (its newest checkpoint) or a checkpoint')
    parser.add_argument('out', help='folder to write; must not exist, or be empty')
    parser.add_argument('--standing-batches', type=int, default=0, metavar='N',
                        help='take batch-norm statistics anew from N batches of fakes (default: as kept while training)')
    options = parser.parse_args(arguments)
    out = Path(options.out)
    try:
        if not options.out:
            raise ValueError('the folder to write has no name; give one')
        check_new(out)
        check_batches(options.standing_batches)
        maker, about = open_maker(options.source)
        if options.standing_batches:
            maker.take_standing_statistics(options.standing_batches)
        write_export(maker, about, out)
    except (ValueError, OSError) as error:
        tell_error('imago export', error)
        return 2
    print(f'wrote {out / WEIGHTS} and {out / ABOUT} ({about["nimg"] / 1000:g} kimg)')
    return 0


if __name__ == '__main__':
    sys.exit(main())
