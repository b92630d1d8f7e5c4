"""`imago compare` sets runs beside one another: data, images seen, hours, parameters, and scores with their intervals."""

import json
import shlex
import sys
from pathlib import Path

from imago.trainer.command import Parser, tell_errors
from imago.trainer.config.load import Config, parse_kept
from imago.trainer.runs.history import best_evaluation, read_evaluations, read_reports
from imago.trainer.runs.seal import newest_of, read_seal
from imago.trainer.wording import listed, shown

MUST_AGREE = ('extractor', 'weights_sha256', 'resizer')
SHOULD_AGREE = ('dataset', 'resolution', 'fakes', 'reals', 'seed', 'psi', 'psi_cutoff', 'truncation', 'noise')
EARLIER = {'psi_cutoff': None, 'noise': 'const'}   # older records lack these keys and were made with these values


def trained_on(checkpoint: Path) -> tuple[dict, Config]:
    """Return a checkpoint's seal and its configuration. ValueError if they do not say what is compared here."""
    seal = read_seal(checkpoint)
    if not seal['parameters']:
        raise ValueError(f'{checkpoint} does not say how many parameters its networks have')
    return seal, parse_kept(seal['config'], str(checkpoint))


def row_of(folder: Path, best: str | None) -> dict:
    """Return facts and scores of one run. Scores are those of its last evaluation, or of the best one by the score `best`.

    ValueError if the run has no checkpoint that can be read, or no such evaluation.
    """
    reports, evaluations = read_reports(folder), read_evaluations(folder)
    seal, config = newest_of(folder / 'checkpoints', trained_on)[1]
    evaluation = best_evaluation(evaluations, best) if best else evaluations[-1] if evaluations else None
    if evaluation is None and evaluations:
        known = list(dict.fromkeys(name for line in evaluations for name in line['values']))
        raise ValueError(f'{shown(folder)} has no evaluation with {shown(best)}; its scores are {listed(known, best)}')
    if evaluation is None:
        raise ValueError(f'{shown(folder)} has no evaluation; make one with: imago evaluate {shown(shlex.quote(str(folder)))}')
    return {
        'run': str(folder), 'network': config.network.name,
        'data': Path(config.data.path).name, 'pictures': seal['pictures'],
        'kimg': reports[-1]['nimg'] / 1000, 'seconds': reports[-1]['seconds'], 'ranks': seal['world_size'],
        'parameters': seal['parameters'], 'evaluated_at_kimg': evaluation['nimg'] / 1000,
        **{key: evaluation[key] for key in ('values', 'intervals', 'protocol')}}


def check_comparable(runs: list[dict]) -> list[str]:
    """Say in sentences what differs in how scores were taken. ValueError if they are of different extractors or resizers."""
    first, differences = runs[0], []
    for run in runs[1:]:
        for key in (*MUST_AGREE, *SHOULD_AGREE):
            one, other = ((EARLIER | each['protocol']).get(key) for each in (first, run))
            # a generator that adds no noise has None here, and nothing to agree on
            if one == other or key == 'noise' and None in (one, other):
                continue
            told = f'{shown(first["run"])} was scored with {key}={shown(one)}, {shown(run["run"])} with {key}={shown(other)}'
            if key in MUST_AGREE:
                raise ValueError(f'{told}; such scores cannot stand in one table: evaluate one of them again')
            differences.append(told)
    return differences


def table(runs: list[dict]) -> str:
    """Write a table in GitHub's Markdown, which is also readable as plain text."""
    scores = list(dict.fromkeys(name for run in runs for name in run['values']))
    head = ['run', 'network', 'data', 'kimg', 'seconds x ranks', 'M parameters', 'scored at kimg', *scores]
    rows = [head, ['---'] * len(head)]
    for run in runs:
        counts = ', '.join(f'{name} {count / 1e6:.2f}' for name, count in run['parameters'].items())
        rows.append([run['run'], shown(run['network']), f'{shown(run["data"])}, {run["pictures"]}', f'{run["kimg"]:g}',
                     f'{run["seconds"]:.0f} x {run["ranks"]}', counts, f'{run["evaluated_at_kimg"]:g}',
                     *(_score(run, name) for name in scores)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ((cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return '\n'.join(f'| {" | ".join(row)} |' for row in padded)


def _score(run: dict, name: str) -> str:
    if name not in run['values']:
        return '-'
    low, high = run['intervals'][name]
    return f'{run["values"][name]:.4g} [{low:.4g}, {high:.4g}]'


def parser() -> Parser:
    parser = Parser(prog='imago compare', description=__doc__)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='a run folder with evaluations')
    parser.add_argument('--best', metavar='SCORE', help='of each run the evaluation that is best by this score, e.g. '
                        'kid_effnet_lite0 (default: its last)')
    parser.add_argument('--json', action='store_true', help='for machines')
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return tell_errors('imago compare', lambda: compare(list(dict.fromkeys(options.runs)), options.best, options.json))


def compare(folders: list[Path], best: str | None, as_json: bool) -> int:
    runs = [row_of(folder, best) for folder in folders]
    differences = check_comparable(runs)
    print(json.dumps(runs, indent=1) if as_json else table(runs))
    for difference in differences:
        print(f'not alike: {difference}', file=sys.stderr)
    return 0


if __name__ == '__main__':
    sys.exit(main())
