"""What a run has written about itself, read again: reports of `stats.jsonl`, evaluations of `metrics.jsonl`."""

import json
from pathlib import Path

REPORTS, EVALUATIONS = 'stats.jsonl', 'metrics.jsonl'
HIGHER_IS_BETTER = ('is', 'precision', 'recall', 'density', 'coverage')   # first words of scores; of the others lower is


def read_reports(folder: Path) -> list[dict]:
    """Reports of a run folder in the order of `nimg`, each with `seconds` of training up to it, stops left out.

    ValueError if `folder` holds no run.
    """
    reports = _read(folder / REPORTS)
    if not reports:
        raise ValueError(f'{folder} holds no {REPORTS}; give the folder of a run that has trained')
    reports = list({report['nimg']: report for report in reports}.values())     # of two at one place the later
    seconds, shown = 0.0, 0
    for report in reports:
        seconds += (report['nimg'] - shown) / report['speed/img_per_s']
        report['seconds'], shown = seconds, report['nimg']
    return reports


def read_evaluations(folder: Path) -> list[dict]:
    """Evaluations of a run folder in the order of `nimg`, those of one state under one protocol as one; perhaps none."""
    evaluations = []
    for line in _read(folder / EVALUATIONS):
        if evaluations and all(line[key] == evaluations[-1][key] for key in ('nimg', 'protocol')):
            line = line | {key: evaluations[-1][key] | line[key] for key in ('values', 'intervals')}
            evaluations.pop()
        evaluations.append(line)
    return evaluations


def is_better(name: str, value: float, other: float) -> bool:
    """Whether a score of this name is at least as good."""
    return value >= other if name.split('_')[0] in HIGHER_IS_BETTER else value <= other


def best_evaluation(evaluations: list[dict], name: str) -> dict | None:
    """The one with the best score of this name, the later of two equal ones; None if none has it."""
    best = None
    for evaluation in evaluations:
        if name in evaluation['values'] and (
                best is None or is_better(name, evaluation['values'][name], best['values'][name])):
            best = evaluation
    return best


def _read(path: Path) -> list[dict]:
    """Lines of JSON. Those of a future that a run went back behind, when it resumed, are left out, as is a torn last one."""
    lines = []
    for text in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if not text.endswith('\n'):
            break
        line = json.loads(text)
        while lines and lines[-1]['nimg'] > line['nimg']:
            lines.pop()
        lines.append(line)
    return lines
