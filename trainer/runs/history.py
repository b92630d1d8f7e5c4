"""This file reads what a run has written about itself: reports in `stats.jsonl` and evaluations in `metrics.jsonl`."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imago.trainer.data.reading import open_regular, parse_json
from imago.trainer.wording import shown

REPORTS, EVALUATIONS = 'stats.jsonl', 'metrics.jsonl'
HIGHER_IS_BETTER = ('is', 'precision', 'recall', 'density', 'coverage')   # first words of scores; in others lower is better
SPEED = 'speed/img_per_s'
MOST_BYTES = 1 << 28
MOST_NIMG = 10 ** 15
_TAIL = 1 << 20    # bytes; every line is shorter


def read_reports(folder: Path) -> list[dict]:
    """Read the reports of a run folder in the order of `nimg`. `seconds` is the time of training up to each, without stops.

    Raises ValueError if `folder` holds no run, or a line is damaged.
    """
    reports = _read(folder / REPORTS, _check_report)
    if not reports:
        raise ValueError(f'{shown(folder)} holds no {REPORTS}; give the folder of a run that has trained')
    reports = list({report['nimg']: report for report in reports}.values())     # the later of two at one place
    seconds, before = 0.0, 0
    for report in reports:
        seconds += (report['nimg'] - before) / report[SPEED]
        report['seconds'], before = seconds, report['nimg']
    return reports


def read_evaluations(folder: Path) -> list[dict]:
    """Read the evaluations of a run folder, if any, in the order of `nimg`. Those of one state and one protocol are merged.

    Raises ValueError if a line is damaged.
    """
    evaluations = []
    for line in _read(folder / EVALUATIONS, _check_evaluation):
        if evaluations and all(line[key] == evaluations[-1][key] for key in ('nimg', 'protocol')):
            line = line | {key: evaluations[-1][key] | line[key] for key in ('values', 'intervals')}
            evaluations.pop()
        evaluations.append(line)
    return evaluations


def is_better(name: str, value: float, other: float) -> bool:
    """Tell whether `value` is at least as good a score of this name as `other`."""
    return value >= other if name.split('_')[0] in HIGHER_IS_BETTER else value <= other


def best_evaluation(evaluations: list[dict], name: str) -> dict | None:
    """Return the evaluation with the best score of this name, the later of two equal ones; None if none has this score."""
    best = None
    for evaluation in evaluations:
        if name in evaluation['values'] and (
                best is None or is_better(name, evaluation['values'][name], best['values'][name])):
            best = evaluation
    return best


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without an end. Readers pass over it, and the next line would be added to it and lost with it."""
    if not path.is_file():    # a pipe or a device is refused later, when it is opened to append
        return
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(size - _TAIL, 0))
        end = start + file.read().rfind(b'\n') + 1
    if end < size:
        os.truncate(path, end)


def _read(path: Path, check: Callable[[Any], None]) -> list[dict]:
    """Read lines of JSON. A run that resumed at fewer images voids its later lines; these and a torn last line are left out."""
    lines = []
    for number, text in enumerate(_whole_lines(path), 1):
        try:
            line = parse_json(text.decode())
            check(line)
        except ValueError as error:
            raise ValueError(f'{shown(path)}, line {number}: {error}; mend or remove that line') from error
        while lines and lines[-1]['nimg'] > line['nimg']:
            lines.pop()
        lines.append(line)
    return lines


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    with open_regular(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f'{shown(path)} has more than {MOST_BYTES} bytes, the most that is read')
    return data.split(b'\n')[:-1]


def _check_line(line: Any) -> None:
    if not isinstance(line, dict):
        raise ValueError(f'{shown(line)} is no report')
    nimg = line.get('nimg')
    if not isinstance(nimg, int) or isinstance(nimg, bool) or not 0 <= nimg < MOST_NIMG:
        raise ValueError(f'nimg={shown(nimg)} is no count of images')


def _check_report(line: Any) -> None:
    _check_line(line)
    for name, value in line.items():
        if not isinstance(value, str):    # the guard writes words
            _check_number(name, value)
    if not isinstance(speed := line.get(SPEED), (int, float)) or not 1e-9 < speed < math.inf:
        raise ValueError(f'{SPEED}={shown(speed)} is no speed')


def _check_evaluation(line: Any) -> None:
    _check_line(line)
    for key in ('values', 'intervals', 'protocol'):
        if not isinstance(line.get(key), dict):
            raise ValueError(f'{key}={shown(line.get(key))} is no table')
    for name, value in line['values'].items():
        _check_number(name, value)
        interval = line['intervals'].get(name)
        if not isinstance(interval, list) or len(interval) != 2:
            raise ValueError(f'the interval of {shown(name)} is {shown(interval)}')
        for end in interval:
            _check_number(name, end)


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or isinstance(value, int) and abs(value) > MOST_NIMG:
        raise ValueError(f'{shown(name)}={shown(value)} is no number')
