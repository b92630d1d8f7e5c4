"""The first ten minutes on a GPU: does everything work there, is it exact, how fast is it, and what does a step wait for?

    python tests/gpu/first.py OUT                  about ten minutes on one card
    python tests/gpu/first.py OUT --only machine kernels steps
    python tests/gpu/first.py OUT --tiny           on any machine, a GPU or none: it finds errors of typing
    python tests/gpu/first.py OUT --peer FILE.py   also times a step of another repository on the same card

It writes OUT/first.json and OUT/first.md, which is what docs/gpu.md holds, after each part, so that a run that is cut short
leaves what it has. A part that fails leaves its error in the tables, and the next one begins.
FILE.py defines `prepare(name, batch, device)`, where name is that of a configuration such as stylegan2-256. It returns a function
without arguments that trains on one batch of noise, with its lazy penalties as often as they come; or None, if it knows none.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / 'tests/bench')]

import kernel_speed  # noqa: E402
import small_cases  # noqa: E402
import step  # noqa: E402

from imago import kernels  # noqa: E402
from imago.trainer.config.load import Config, load_config  # noqa: E402
from imago.trainer.ranks import dist  # noqa: E402

# name of a configuration, its overrides, images of a step on this card
STEPS = [('stylegan2-256', [], 8), ('stylegan2-256', [], 32), ('stylegan2-512', [], 8), ('stylegan2-512', [], 32),
         ('biggan-128', [], 64), ('r3gan-256', [], 32)]
TINY_STEPS = [('stylegan2-256', ['data.resolution=16', 'network.channel_base=128', 'network.channel_max=8', 'network.z_dim=8',
                                 'network.w_dim=8', 'network.low_precision=none'], 4)]
CASES = [(8, 64, 512, 512), (8, 128, 256, 256), (8, 512, 32, 32)]


@dataclass
class Report:
    """What the parts found: tables by title, each a list of rows by column."""

    folder: Path
    tiny: bool
    device: str
    only: list[str]
    peer: Path | None
    tables: dict[str, list[dict[str, object]]] = field(default_factory=lambda: collections.defaultdict(list))

    def add(self, title: str, **row: object) -> None:
        self.tables[title].append(row)
        print(f'{title}: ' + '  '.join(f'{name} {shown(value)}' for name, value in row.items()), flush=True)

    def save(self) -> None:
        (self.folder / 'first.json').write_text(json.dumps(self.tables, indent=1, default=str) + '\n')
        lines = []
        for title, rows in self.tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            lines += [f'## {title}', '', f'| {" | ".join(columns)} |', '|' + ' --- |' * len(columns)]
            lines += [f'| {" | ".join(shown(row.get(column, "")) for column in columns)} |' for row in rows] + ['']
        (self.folder / 'first.md').write_text('\n'.join(lines))


def shown(value: object) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value).replace('\n', ' ').replace('|', '/')


# 1. The machine

def machine(report: Report) -> None:
    """Name the machine, build the kernels, and measure torch's ceilings: a large copy, and large matrix products."""
    if report.device == 'cuda':
        report.add('Machine', what='card', value=torch.cuda.get_device_name())
        command = ['nvidia-smi', '--query-gpu=driver_version,clocks.sm,clocks.mem,memory.total', '--format=csv,noheader']
        report.add('Machine', what='driver, clocks, memory', value=subprocess.run(command, capture_output=True, text=True).stdout.strip())
    report.add('Machine', what='torch', value=torch.__version__)
    began = time.perf_counter()
    status = kernels.status()
    report.add('Machine', what='kernels', value=status['upfirdn2d'][report.device])
    report.add('Machine', what='seconds to build or find them', value=time.perf_counter() - began)
    size = 1 << (16 if report.tiny else 32)
    source = torch.empty(size, dtype=torch.uint8, device=report.device)
    target = torch.empty_like(source)
    seconds, = kernel_speed.median_seconds([lambda t=target, s=source: t.copy_(s)], report.device)
    report.add('Machine', what='copy, GB/s read and written', value=2 * size / seconds / 1e9)
    del source, target
    n = 64 if report.tiny else 8192
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(n, n, device=report.device).to(dtype) for _ in range(2))
        seconds, = kernel_speed.median_seconds([lambda a=a, b=b: a @ b], report.device)
        report.add('Machine', what=f'{n} x {n} product in {dtype}, TFLOP/s', value=2 * n ** 3 / seconds / 1e12)


# 2. and 3. Values, gradients and addresses

def suites(report: Report) -> None:
    """Run the suites of values and gradients on this device."""
    files = [f'tests/kernels/test_{name}.py' for name in ('bias_act', 'filter_paths', 'layer_ends', 'upfirdn2d', 'ops')]
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--tb=line',
               *(files[2:3] + ['-k', 'impossible'] if report.tiny else files)]
    if not report.tiny and util.find_spec('xdist'):
        command += ['-n', str(min(8, os.cpu_count() or 1))]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True,
                         env=os.environ | {'IMAGO_TEST_DEVICE': report.device, 'IMAGO_KERNELS': 'strict'})
    (report.folder / 'suites.log').write_text(run.stdout + run.stderr)
    report.add('Values', suite='kernels, all', found=(run.stdout.strip().splitlines() or [run.stderr[-200:]])[-1])
    for line in re.findall(r'^(?:FAILED|ERROR) (.*)', run.stdout, re.MULTILINE)[:20]:
        report.add('Values', suite='failed', found=line[:200])


def sanitizer(report: Report) -> None:
    """Run one small case of each operation under compute-sanitizer."""
    program = shutil.which('compute-sanitizer')
    if report.device != 'cuda' or program is None:
        report.add('Values', suite='compute-sanitizer', found='not here')
        return
    for tool in ('memcheck', 'racecheck'):
        command = [program, '--tool', tool, '--error-exitcode', '9', sys.executable, str(Path(__file__).with_name('small_cases.py'))]
        run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {
            'PYTHONPATH': os.pathsep.join([str(REPOSITORY), os.environ.get('PYTHONPATH', '')])})
        (report.folder / f'{tool}.log').write_text(run.stdout + run.stderr)
        found = [line for line in run.stdout.splitlines() if 'SUMMARY' in line or 'Error' in line] or run.stderr.splitlines()[-1:]
        report.add('Values', suite=tool, found='; '.join(found)[:200])


# 4. What a GPU may do that a CPU does not

def exactness(report: Report) -> None:
    """Look for results that depend on what memory held before, on the run, on the stream, or on capture; and at huge maps."""
    for name, call in small_cases.cases(report.device):
        poison(report.device)
        first = [each.clone() for each in call()]
        poison(report.device)
        found = {'twice': same(first, call())}
        if report.device == 'cuda':
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                other = call()
            torch.cuda.current_stream().wait_stream(stream)
            found['on another stream'] = same(first, other)
            found['captured'] = same(first, captured(call))
        report.add('Exactness', operation=name, **found)
    if report.device == 'cuda':
        x = torch.ones(9, 8, 5500, 5500, dtype=torch.bfloat16, device='cuda')    # 2.18e9 elements
        with torch.no_grad():
            y = kernels.bias_act(x, torch.ones(8, device='cuda'), act='linear')
        report.add('Exactness', operation='map of more than 2^31 elements', twice='same' if bool((y[-1] == 2).all()) else 'WRONG')


def poison(device: str) -> None:
    """Fill memory with NaNs and free it, so that an output that is not written shows."""
    for size in (1 << 8, 1 << 12, 1 << 16, 1 << 20):
        _ = [torch.full([size], float('nan'), device=device) for _ in range(16)]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> str:
    fine = all(torch.equal(one, two) and bool(one.isfinite().all()) for one, two in zip(first, second, strict=True))
    return 'same bits' if fine else 'DIFFERENT'


def captured(call: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    for output in outputs:
        output.fill_(float('nan'))
    graph.replay()
    return outputs


# 5. and 6. Kernels

def kernel_table(report: Report) -> None:
    """Time each kernel, and the best eager form, against a copy of as many bytes."""
    shapes = [(1, 8, 16, 16)] if report.tiny else CASES
    for dtype, layout in ((torch.bfloat16, 'NHWC'), (torch.float32, 'NCHW')):
        for case in kernel_speed.cases(shapes, [layout], report.device, dtype):
            forms = list(case.forms.values())[:2]
            source = torch.empty(case.bytes // 2, dtype=torch.uint8, device=report.device)
            target = torch.empty_like(source)
            ours, eager, copy = kernel_speed.median_seconds([*forms, lambda t=target, s=source: t.copy_(s)], report.device)
            report.add('Kernels', kernel=case.name.split('[')[0].strip(), shape='[' + case.name.split('[')[1], us=ours * 1e6,
                       **{'GB/s': case.bytes / ours / 1e9, 'share of copy': copy / ours, 'times eager': eager / ours})


def counters(report: Report) -> None:
    """Read the hardware counters of the kernels that gpu.md worries about."""
    program = shutil.which('ncu')
    if report.device != 'cuda' or program is None:
        return
    metrics = {'dram__throughput.avg.pct_of_peak_sustained_elapsed': 'DRAM %',
               'sm__inst_issued.avg.pct_of_peak_sustained_active': 'issue %',
               'smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio': 'stalled on loads, warps an issue'}
    command = [program, '--clock-control', 'none', '--metrics', ','.join(metrics), '--csv', '-k', 'regex:walk|fir',
               sys.executable, str(Path(__file__).with_name('small_cases.py')), 'large']
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=150, env=os.environ | {
        'PYTHONPATH': os.pathsep.join([str(REPOSITORY), os.environ.get('PYTHONPATH', '')])})
    (report.folder / 'ncu.csv').write_text(run.stdout + run.stderr)
    import csv
    rows = csv.DictReader(line for line in run.stdout.splitlines() if line.startswith('"'))
    found: dict[tuple[str, str], dict[str, object]] = {}
    for row in rows:
        kernel = re.sub(r'\(.*|imago::|<unnamed>::|\(anonymous namespace\)::', '', row['Kernel Name'])[:100]
        found.setdefault((row['ID'], kernel), {})[metrics.get(row['Metric Name'], row['Metric Name'])] = float(row['Metric Value'])
    for (_, kernel), values in found.items():
        report.add('Counters', kernel=kernel, **values)


# 7. Steps

def steps(report: Report) -> None:
    """Time each phase of the configurations; count what a step waits for."""
    for name, overrides, batch in TINY_STEPS if report.tiny else STEPS:
        with reported(report, 'Steps', configuration=name, batch=batch):
            trainer = trainer_of(name, overrides, batch)
            row = {'configuration': name, 'batch': batch} | phase_times(trainer, 1 if report.tiny else 5)
            if report.device == 'cuda':
                row['GB'] = torch.cuda.max_memory_allocated() / 1e9
                torch.cuda.reset_peak_memory_stats()
            row['host ms'] = host_seconds(trainer) * 1e3
            waits = syncs(trainer)
            row['syncs'] = sum(waits.values())
            report.add('Steps', **row)
            for place, count in waits.most_common(8):
                report.add('Syncs', configuration=name, batch=batch, place=place, count=count)
        if report.peer is not None:
            with reported(report, 'Steps', configuration=f'{name}, peer', batch=batch):
                call = peer_of(report.peer)(name, batch, report.device)
                if call is not None:
                    row = median_of(call, 1 if report.tiny else 32, mean=True)
                    report.add('Steps', configuration=f'{name}, peer', batch=batch, **{'step ms': row * 1e3, 'img/s': batch / row,
                               's/kimg': row / batch * 1000})


def ways(report: Report) -> None:
    """Time one configuration without graphs, with other algorithms of cuDNN, and with TF32."""
    name, overrides, batch = (TINY_STEPS if report.tiny else STEPS[2:3])[0]
    for changes in ([], ['graphs=off'], ['network.low_precision=none'], ['precision.tf32=true'], ['precision.deterministic=false'],
                    ['precision.deterministic=false', 'precision.cudnn_benchmark=true']):
        way = ' '.join(changes) or 'as shipped'
        with reported(report, 'Ways', way=way):
            report.add('Ways', way=way, **phase_times(trainer_of(name, overrides + changes, batch), 1 if report.tiny else 5))


def profile(report: Report) -> None:
    """Save where the time of each phase of stylegan2-512 goes."""
    name, overrides, batch = (TINY_STEPS if report.tiny else STEPS[2:3])[0]
    trainer = trainer_of(name, [*overrides, 'graphs=off'], batch)
    trainer.seconds()
    on_gpu = report.device == 'cuda'
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with (report.folder / 'profile.txt').open('w') as file:
        for phase in trainer.phases:
            with torch.profiler.profile(activities=activities) as profiler:
                trainer.time(phase)
            key = 'self_cuda_time_total' if on_gpu else 'self_cpu_time_total'
            print(phase.name, profiler.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=110), file=file)


def trainer_of(name: str, overrides: list[str], batch: int) -> step.Trainer:
    if dist.device().type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    config: Config = load_config(name, [f'batch={batch}', f'micro_batch={batch}', 'data.lanes=1', *overrides])
    return step.Trainer(config)


def phase_times(trainer: step.Trainer, rounds: int) -> dict[str, object]:
    found = [trainer.seconds() for _ in range(rounds + 3)][3:]
    medians = {name: statistics.median(seconds[name] for seconds in found) for name in found[0]}
    whole, batch = sum(medians[phase.name] / phase.interval for phase in trainer.phases), trainer.config.batch
    return {**{f'{name} ms': value * 1e3 for name, value in medians.items()}, 'step ms': whole * 1e3, 'img/s': batch / whole,
            's/kimg': whole / batch * 1000}


def host_seconds(trainer: step.Trainer) -> float:
    """Return the seconds in which the host has given out a step's work, averaged over lazy penalties."""
    whole = 0.0
    for phase in trainer.phases:
        step.synchronize()
        began = time.perf_counter()
        trainer.run(phase)
        whole += (time.perf_counter() - began) / phase.interval
    step.synchronize()
    return whole


def syncs(trainer: step.Trainer) -> collections.Counter:
    """Count by place where the host waits for the GPU, in one run of each phase."""
    if dist.device().type != 'cuda':
        return collections.Counter()
    torch.cuda.synchronize()
    found: collections.Counter = collections.Counter()

    def note(message, category, filename, lineno, file=None, line=None) -> None:
        frames = [frame for frame in traceback.extract_stack() if '/trainer/' in frame.filename or '/kernels/' in frame.filename]
        last = frames[-1] if frames else traceback.extract_stack()[-4]
        found[f'{Path(last.filename).parent.name}/{Path(last.filename).name}:{last.lineno} {last.line}'] += 1
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode('warn')
        found.clear()    # it warns of itself
        try:
            for phase in trainer.phases:
                trainer.run(phase)
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return found


def peer_of(path: Path) -> Callable:
    spec = util.spec_from_file_location('peer', path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare


def median_of(call: Callable[[], object], rounds: int, mean: bool = False) -> float:
    times = []
    for _ in range(rounds + 2):
        step.synchronize()
        began = time.perf_counter()
        call()
        step.synchronize()
        times.append(time.perf_counter() - began)
    return (statistics.mean if mean else statistics.median)(times[2:])


# 8. A run

def resume(report: Report) -> None:
    """Train, stop, resume, and compare with a run that never stopped, bit for bit; two starts, too."""
    from PIL import Image
    folder = report.folder / 'runs'
    shutil.rmtree(folder, ignore_errors=True)
    (folder / 'pictures').mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for index in range(64):
        pixels = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=generator).numpy()
        Image.fromarray(pixels).resize((64, 64)).save(folder / 'pictures' / f'{index}.png')
    imago(report, 'pack', str(folder / 'pictures'), str(folder / 'shards'), '--resolution', '64')
    first: dict[str, torch.Tensor] = {}
    kimg = (0.032, 0.064) if report.tiny else (0.32, 0.64)
    options = ['batch=32', 'micro_batch=16', 'network.channel_max=64' if not report.tiny else 'network.channel_max=8',
               'network.channel_base=4096' if not report.tiny else 'network.channel_base=256', 'data.workers=0',
               'regularizers.d_interval=2', 'regularizers.g_interval=2', 'log.interval_kimg=0.032', 'guard.action=off',
               'network.low_precision=bf16', 'network.low_precision_blocks=2']
    for label, extra in {'as shipped': [], 'ada': ['augment.name=ada', 'augment.p=0.5'], 'graphs=off': ['graphs=off']}.items():
        def train(run: str, label: str = label, extra: list[str] = extra) -> dict[str, torch.Tensor]:
            where = folder / f'{re.sub("[ =]", "-", label)}-{run}'
            for length in kimg if run == 'resumed' else kimg[1:]:
                imago(report, 'train', 'stylegan2-64', f'data.path={folder / "shards"}', f'run_dir={where}',
                      f'device={report.device}', f'total_kimg={length}', *options, *extra)
            return newest_state(where)
        with reported(report, 'Resume', way=label), ThreadPoolExecutor(1 if report.tiny else 3) as pool:
            whole, again, resumed = pool.map(train, ('whole', 'again', 'resumed'))
            first = first or whole
            report.add('Resume', way=label, resumed=equal_states(whole, resumed), **{'second start': equal_states(whole, again)},
                       **({'without graphs': equal_states(first, whole)} if 'graphs' in label else {}))
        if report.tiny:
            break
    shutil.rmtree(folder)


def imago(report: Report, *arguments: str) -> None:
    run = subprocess.run([sys.executable, '-m', 'imago.launch.cli', *arguments], capture_output=True, text=True, cwd=REPOSITORY,
                         env=os.environ | {'PYTHONPATH': os.pathsep.join([str(REPOSITORY), os.environ.get('PYTHONPATH', '')])})
    with (report.folder / 'runs.log').open('a') as log:
        log.write(f'$ imago {" ".join(arguments)}\n{run.stdout}{run.stderr}\n')
    if run.returncode:
        raise RuntimeError(f'imago {" ".join(arguments[:2])} ended with {run.returncode}: {run.stderr.strip()[-300:]}')


def newest_state(run: Path) -> dict[str, torch.Tensor]:
    sys.path.insert(0, str(REPOSITORY / 'tests'))
    from runs_for_tests import read_checkpoint
    return read_checkpoint(max((path for path in (run / 'checkpoints').iterdir() if path.is_dir()), key=lambda path: path.name))


def equal_states(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> str:
    wrong = [name for name in one if not torch.equal(one[name], two[name])]
    return 'same bits' if not wrong else f'{len(wrong)} of {len(one)} tensors differ, {wrong[0]} first'


@contextlib.contextmanager
def reported(report: Report, title: str, **row: object) -> Iterator[None]:
    """Put an error that is raised inside into the table."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        report.add(title, **row, error=f'{type(error).__name__}: {error}'[:300])


PARTS = {'machine': machine, 'suites': suites, 'sanitizer': sanitizer, 'exactness': exactness, 'kernels': kernel_table,
         'counters': counters, 'steps': steps, 'ways': ways, 'profile': profile, 'resume': resume}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--tiny', action='store_true')
    parser.add_argument('--only', nargs='+', default=list(PARTS), choices=PARTS)
    parser.add_argument('--peer', type=Path)
    options = parser.parse_args()
    if options.peer is not None and not options.peer.is_file():
        parser.error(f'--peer {options.peer}: there is no such file')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cpu' and not options.tiny:
        parser.error('torch sees no GPU; --tiny runs everything on small sizes here')
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault('IMAGO_KERNELS', 'strict')
    dist.init(device)
    report = Report(options.out.absolute(), options.tiny, device, options.only, options.peer)
    for name in options.only:
        began = time.perf_counter()
        with reported(report, 'Failed', part=name):
            PARTS[name](report)
        report.add('Seconds', part=name, seconds=time.perf_counter() - began)
        report.save()
    failed = 'Failed' in report.tables or any('error' in row for rows in report.tables.values() for row in rows)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
