"""`imago plot` draws learning curves of one run, or of several side by side, as one PNG."""

import fnmatch
import io
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imago.trainer.command import Parser, tell_errors
from imago.trainer.data.durable import write_beside
from imago.trainer.runs.history import read_evaluations, read_reports
from imago.trainer.runs.run_folder import CONFIG_FILE, read_config
from imago.trainer.watch.indicators import INDICATORS
from imago.trainer.wording import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT = ('metrics/*', 'loss/D', 'loss/G', 'logits/*_sign', 'penalty/*', 'path_length', 'augment/p', 'guard/*', 'speed/*')
MOST_PANELS = 120
Curve = list[tuple[float, float, tuple[float, float] | None]]   # kimg or hours, value, interval


def plot(folders: list[Path], out: Path | None, keys: list[str], by_hours: bool = False) -> tuple[Path, int]:
    """Draw one panel per key and one line per run. `keys` are names or patterns, as `loss/*`.

    Returns where the picture is, beside a file that had its name, and the number of panels. ValueError if a folder holds no run,
    or nothing matches.
    """
    runs = {str(folder): curves_of(folder, by_hours) for folder in folders}
    names = list(dict.fromkeys(name for pattern in keys
                               for name in sorted(set().union(*runs.values())) if fnmatch.fnmatch(name, pattern)
                               if name == pattern or not is_flat_zero(name, runs)))
    if not names:
        known = sorted(set().union(*runs.values()))
        raise ValueError(f'no curve is named {listed(keys)}; there are {listed(known, keys[0])}')
    if len(names) > MOST_PANELS:
        raise ValueError(f'{len(names)} curves are named, {listed(names)}; --keys takes up to {MOST_PANELS} of them')
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    limits = [thresholds_of(folder) for folder in folders]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure((5 * columns, 3 * rows + 0.4), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for name, axes in zip(names, panels, strict=False):
        draw_panel(axes, name, {run: curves[name] for run, curves in runs.items() if name in curves}, list(runs))
        draw_thresholds(axes, name.removeprefix('guard/'), limits if name.startswith('guard/') else [])
        axes.set_xlabel('hours' if by_hours else 'kimg')
    for axes in panels[len(names):]:
        axes.remove()
    handles = [Line2D([], [], color=f'C{number}', label=run) for number, run in enumerate(runs)]
    figure.legend(handles=handles, loc='outside upper center', ncols=min(3, len(runs)), frameon=False)
    content = io.BytesIO()
    out = out or folders[0] / f'curves-{read_reports(folders[0])[-1]["nimg"] / 1000:09.3f}.png'
    figure.savefig(content, dpi=110, format=out.suffix[1:] or 'png')
    return write_beside(out, content.getvalue()), len(names)


def is_flat_zero(name: str, runs: dict[str, dict[str, Curve]]) -> bool:
    return all(value == 0 for curves in runs.values() for _, value, _ in curves.get(name, ()))


def thresholds_of(folder: Path) -> dict[str, float]:
    """Return the thresholds of a run's guard, its own or the usual ones; {} if it has no guard."""
    if not (folder / CONFIG_FILE).is_file() or (guard := read_config(folder).guard).action == 'off':
        return {}
    return {name: indicator.threshold for name, indicator in INDICATORS.items()} | dict(guard.thresholds)


def draw_panel(axes: 'Axes', name: str, curves: dict[str, Curve], runs: list[str]) -> None:
    axes.set_title(name, fontsize='medium')
    axes.grid(alpha=0.3)
    for run, curve in curves.items():
        color, few = f'C{runs.index(run)}', len(curve) < 40
        x, y, intervals = zip(*curve, strict=True)
        axes.plot(x, y, color=color, linewidth=1.2, marker='.' if few else None, markersize=4)
        if intervals[0] is not None:
            low, high = zip(*intervals, strict=True)
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            if few:    # a lone point has no area
                axes.vlines(x, low, high, color=color, alpha=0.6, linewidth=1.2)


def draw_thresholds(axes: 'Axes', name: str, limits: list[dict[str, float]]) -> None:
    """Draw where the guard warns; where that is far from all curves, which it would flatten, say it in the title."""
    low, high = axes.get_ylim()
    for threshold in sorted({each[name] for each in limits if name in each}):
        side = 'above' if INDICATORS[name].above else 'below'
        if low - (high - low) <= threshold <= high + (high - low):
            axes.axhline(threshold, color='crimson', linestyle='--', linewidth=1)
        axes.set_title(f'{axes.get_title()}   warns {side} {threshold:g}', fontsize='medium')


def curves_of(folder: Path, by_hours: bool) -> dict[str, Curve]:
    """Return all that a run has reported, by name. Scores are named `metrics/NAME` and have intervals."""
    reports, curves = read_reports(folder), {}
    shown, hours = zip(*((report['nimg'], report['seconds'] / 3600) for report in reports), strict=True)
    for report in reports:
        for name, value in report.items():
            if name not in ('nimg', 'time', 'seconds') and not name.startswith('metrics/') and not isinstance(value, str):
                curves.setdefault(name, []).append((report['nimg'], value, None))
    for evaluation in read_evaluations(folder):
        for name, value in evaluation['values'].items():
            point = evaluation['nimg'], value, tuple(evaluation['intervals'][name])
            curves.setdefault('metrics/' + name, []).append(point)
    def at(nimg: int) -> float:
        return float(np.interp(nimg, (0, *shown), (0, *hours))) if by_hours else nimg / 1000
    return {name: [(at(nimg), *rest) for nimg, *rest in curve] for name, curve in curves.items()}


def parser() -> Parser:
    parser = Parser(prog='imago plot', description=__doc__)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='a run folder')
    parser.add_argument('--out', type=Path, help='a new PNG (default: curves-KIMG.png in the first run)')
    parser.add_argument('--hours', action='store_true', help='hours of training on the axis, not kimg')
    parser.add_argument('--keys', nargs='+', default=list(DEFAULT), metavar='KEY',
                        help='names or patterns of stats.jsonl and metrics/SCORE (default: %(default)s)')
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)

    def work() -> int:
        where, panels = plot(list(dict.fromkeys(options.runs)), options.out, options.keys, options.hours)
        print(f'wrote {where}: {panels} panels, {len(options.runs)} runs')
        return 0
    return tell_errors('imago plot', work)


if __name__ == '__main__':
    sys.exit(main())
