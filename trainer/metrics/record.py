"""An evaluation leaves a line in RUN/metrics.jsonl, and a table for people."""

import json
import time
from pathlib import Path

from imago.trainer.data.durable import open_to_append
from imago.trainer.metrics.protocol import Scores
from imago.trainer.runs.events import Events
from imago.trainer.runs.history import EVALUATIONS, drop_torn_line

FEW = 10_000    # pictures, of fakes or of reals
NEVER = 1 << 53   # images: an older checkpoint that is scored later hides nothing


def record_of(scores: Scores, nimg: int | None) -> dict:
    """Make the record of `scores`. nimg: images on which the generator was trained; None for pictures."""
    return {'nimg': nimg, 'time': time.time(), 'values': scores.values, 'intervals': scores.intervals,
            'protocol': scores.protocol}


def append(folder: Path, record: dict) -> None:
    drop_torn_line(folder / EVALUATIONS)
    with open_to_append(folder / EVALUATIONS) as file:
        file.write(json.dumps(record) + '\n')


def to_tensorboard(folder: Path, record: dict) -> None:
    """Show the scores at the run's images, as a curve `evaluate` beside that of the training, which writes files of its own."""
    events = Events(folder / 'tensorboard' / 'evaluate', purge_step=NEVER)
    try:
        events.add({f'metrics/{name}': value for name, value in record['values'].items()}, record['nimg'])
    finally:
        events.close()


def note(scores: Scores) -> str:
    """Say what a reader of few pictures' scores must know; '' where there are enough."""
    about, distances = scores.protocol, [name for name in scores.values if name.startswith(('fid', 'fd_', 'intra_f'))]
    fewest = min(about['fakes'], about['reals'] or about['fakes'])
    if not distances or fewest >= FEW:
        return ''
    read = 'read kid' if any(name.startswith('kid') for name in scores.values) else 'add --metrics kid'
    return (f'note: of {fewest} pictures, {", ".join(distances)} is too high, and more so the fewer there are (Binkowski et al. '
            f'2018); compare it at equal numbers alone, and {read}, which has no such bias')


def table(scores: Scores) -> str:
    """Format a line for each score, and one that says how they were measured."""
    about = scores.protocol
    width = max(map(len, scores.values))
    lines = [f'{name:{width}}  {value:10.4f}   [{scores.intervals[name][0]:.4f}, {scores.intervals[name][1]:.4f}]'
             for name, value in scores.values.items()]
    options = ''.join(f', {name} {about[name]:g}' for name in ('psi', 'psi_cutoff', 'truncation') if about[name] is not None)
    options += f', noise {about["noise"]}' if about['noise'] else ''
    all_of = 'all ' * (about['reals_at_most'] == 'all')
    sizes = f'{about["fakes"]} pictures' + (f' against {all_of}{about["reals"]} real ones' if about['reals'] else '')
    return '\n'.join([*lines, f'{sizes}; features of {about["extractor"]}, resizer {about["resizer"]}, seed {about["seed"]}'
                      f'{options}; in brackets 95%, bootstrap', *filter(None, [note(scores)])])
