"""`imago plot` draws learning curves of one run, or of several side by side, as one PNG."""

import fnmatch
import io
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imago.trainer.command import Parser, tell_errors
from imago.trainer.data.durable import Written, write_beside
from imago.trainer.runs.history import read_evaluations, read_reports
from imago.trainer.runs.run_folder import CONFIG_FILE, read_config
from imago.trainer.watch.indicators import INDICATORS
from imago.trainer.wording import listed, shown

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEFAULT = ('metrics/*', 'loss/D', 'loss/G', 'logits/*_sign', 'penalty/*', 'path_length', 'augment/p', 'guard/*', 'speed/*')
MOST_PANELS, MOST_LETTERS = 120, 50   # letters of a run in the legend
DATED = {'svg': 'Date', 'pdf': 'CreationDate'}   # what these kinds of pictures call their date
Curve = list[tuple[float, float, tuple[float, float] | None]]   # kimg or hours, value, interval


def plot(folders: list[Path], out: Path | None, keys: list[str], by_hours: bool = False) -> tuple[Written, int]:
    """Draw one panel per key and one line per run. `keys` are names or patterns, as `loss/*`.

    Returns where the picture is, beside a file that had its name, and the number of panels. ValueError if a folder holds no run,
    nothing matches, or `out` is no name for a picture.
    """
    runs = {str(folder): curves_of(folder, by_hours) for folder in folders}
    names = names_of(runs, keys)
    from matplotlib.figure import Figure

    out = out or folders[0] / f'curves-{read_reports(folders[0])[-1]["nimg"] / 1000:09.3f}.png'
    kind = kind_of(out)
    limits = [thresholds_of(folder) for folder in folders]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure((5 * columns, 3 * rows + 0.4), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for name, axes in zip(names, panels, strict=False):
        draw_panel(axes, name, {run: curves[name] for run, curves in runs.items() if name in curves}, list(runs))
        draw_thresholds(axes, name.removeprefix('guard/'), limits if name.startswith('guard/') else [])
        axes.set_xlabel('hours' if by_hours else 'kimg')
        axes.tick_params(labelbottom=True)
    for axes in panels[len(names):]:
        axes.remove()
    figure.legend(handles=explained(list(runs), names, limits), loc='outside upper center', ncols=min(3, columns), frameon=False)
    return write_beside(out, drawn(figure, kind)), len(names)


def names_of(runs: dict[str, dict[str, Curve]], keys: list[str]) -> list[str]:
    """Return the names of the curves to draw. Patterns leave out those that are 0 throughout. ValueError for none or too many."""
    known = sorted(set().union(*runs.values()))
    names = list(dict.fromkeys(name for pattern in keys for name in known if fnmatch.fnmatch(name, pattern)
                               if name == pattern or not is_flat_zero(name, runs)))
    if not names:
        zeros = [name for pattern in keys for name in known if fnmatch.fnmatch(name, pattern)]
        if zeros:
            raise ValueError(f'{listed(zeros)}: all is 0 throughout; name one of them to see that')
        raise ValueError(f'no curve is named {listed(keys)}; there are {listed(known, keys[0])}')
    if len(names) > MOST_PANELS:
        raise ValueError(f'{len(names)} curves are named, {listed(names)}; --keys takes up to {MOST_PANELS} of them')
    return names


def kind_of(out: Path) -> str:
    """Return the kind of picture that `out` should be. ValueError if it is a folder, lies in none, or its ending is unknown."""
    from matplotlib.figure import Figure
    if out.is_dir():
        raise ValueError(f'--out {shown(out)} is a folder; give a file in it, as {shown(out / "curves.png")}')
    if not out.parent.is_dir():
        raise ValueError(f'--out {shown(out)}: there is no folder {shown(out.parent)}; make it first')
    kinds = Figure().canvas.get_supported_filetypes()
    if (kind := out.suffix[1:].lower() or 'png') not in kinds:
        raise ValueError(f'--out {shown(out)}: no picture ends in .{shown(kind)}; take one of {", ".join(sorted(kinds))}')
    return kind


def explained(runs: list[str], names: list[str], limits: list[dict[str, float]]) -> list['Artist']:
    """Return what the legend shows: a line for each run, and the marks that are in the panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    handles: list[Artist] = [Line2D([], [], color=f'C{number}', label=cut(run)) for number, run in enumerate(runs)]
    if any(name.startswith('metrics/') for name in names):
        handles.append(Patch(color='grey', alpha=0.3, label='95% of a score, by bootstrap'))
    if any(name.removeprefix('guard/') in each for name in names if name.startswith('guard/') for each in limits):
        handles.append(Line2D([], [], color='crimson', linestyle='--', label='the guard warns'))
    return handles


def cut(run: str) -> str:
    """Return the name of a run, or its end, so short that it fits above a panel."""
    return run if len(run) <= MOST_LETTERS else f'…{run[1 - MOST_LETTERS:]}'


def drawn(figure: 'Figure', kind: str) -> bytes:
    """Return the file of a picture. The same curves give the same bytes: neither a date nor anything random is in it."""
    import matplotlib
    content = io.BytesIO()
    with matplotlib.rc_context({'svg.hashsalt': 'imago'}):
        figure.savefig(content, dpi=110, format=kind, metadata={DATED[kind]: None} if kind in DATED else None)
    return content.getvalue()


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
    """Draw where the guards warn; where that is far from all curves, which it would flatten, only the title says it."""
    low, high = axes.get_ylim()
    thresholds = sorted({each[name] for each in limits if name in each})
    for threshold in thresholds:
        if low - (high - low) <= threshold <= high + (high - low):
            axes.axhline(threshold, color='crimson', linestyle='--', linewidth=1)
    if thresholds:
        side = 'above' if INDICATORS[name].above else 'below'
        axes.set_title(f'{axes.get_title()}   warns {side} {listed([f"{each:g}" for each in thresholds])}', fontsize='medium')


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
        done = f'wrote {where.path}' if where.new else f'{where.path} is there already, with just this picture'
        print(f'{done}: {panels} panels, {len(options.runs)} runs')
        return 0
    return tell_errors('imago plot', work)


if __name__ == '__main__':
    sys.exit(main())
