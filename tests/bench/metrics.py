"""Seconds and peak memory of the metrics from given features, compared with torch-fidelity and clean-fid on the same features.

    python tests/bench/metrics.py [--count 50000] [--width 2048] [--only fid kid prc]     (PRC: half an hour on two cores)

Each metric runs in a process of its own, with all cores. Memory is counted without the two sets of features.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', str(len(os.sched_getaffinity(0))))
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import numpy as np
import torch
from peers_for_tests import clean_fid, torch_fidelity
from torch import Tensor

METRICS = {'fid': ('imago', 'torch-fidelity', 'clean-fid'), 'kid': ('imago', 'torch-fidelity', 'clean-fid'),
           'prc': ('imago', 'torch-fidelity')}


def imago(metric: str) -> Callable[[Tensor, Tensor], object]:
    from imago.trainer.metrics.frechet import frechet_distance
    from imago.trainer.metrics.kid import kernel_distance
    from imago.trainer.metrics.manifold import compare_manifolds

    def manifolds(x: Tensor, y: Tensor) -> tuple[float, float]:
        found = compare_manifolds(x, y)
        return float(found.precision.mean()), float(found.recall.mean())   # and density and coverage, at once
    return {'fid': frechet_distance, 'kid': lambda x, y: kernel_distance(x, y, 0), 'prc': manifolds}[metric]


def of_torch_fidelity(metric: str) -> Callable[[Tensor, Tensor], object]:
    module = torch_fidelity(f'metric_{metric}')
    if metric == 'fid':
        return lambda x, y: module.fid_statistics_to_metric(*map(module.fid_features_to_statistics, (x, y)), False)
    if metric == 'kid':
        return lambda x, y: module.kid_features_to_metric(x, y, kid_subset_size=min(1000, len(x)), verbose=False)
    return lambda x, y: module.prc_features_to_metric(x, y, save_cpu_ram=True, verbose=False)


def of_clean_fid(metric: str) -> Callable[[Tensor, Tensor], object]:
    module = clean_fid()
    if metric == 'kid':
        return lambda x, y: module.kernel_distance(x.numpy(), y.numpy())

    def frechet(x: Tensor, y: Tensor) -> float:
        (m1, c1), (m2, c2) = ((np.mean(one.numpy(), axis=0), np.cov(one.numpy(), rowvar=False)) for one in (x, y))
        return module.frechet_distance(m1, c1, m2, c2)
    return frechet


def measure(metric: str, whose: str, files: list[str]) -> None:
    """Measure in a process of its own, which prints one line of JSON."""
    x, y = (torch.from_numpy(np.load(file)) for file in files)
    score = {'imago': imago, 'torch-fidelity': of_torch_fidelity, 'clean-fid': of_clean_fid}[whose](metric)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    value = score(x, y)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({'value': value, 'seconds': seconds, 'mb': (after - before) / 1024}))


def write_features(folder: Path, count: int, width: int) -> list[str]:
    """Write features that are positive and correlated and have falling variances, like Inception's."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) / torch.arange(1, width + 1) ** 0.5
    files = []
    for name, shift in (('x', 0.0), ('y', 0.05)):
        files.append(str(folder / f'{name}.npy'))
        np.save(files[-1], torch.relu(torch.randn(count, width, generator=generator) @ mixing * 0.3 + 0.2 + shift).numpy())
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=50000)
    parser.add_argument('--width', type=int, default=2048)
    parser.add_argument('--only', nargs='+', choices=METRICS, default=list(METRICS))
    parser.add_argument('--one', nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return measure(options.one[0], options.one[1], options.one[2:])
    print(f'{options.count} x {options.width} features, {os.environ["OMP_NUM_THREADS"]} threads')
    with tempfile.TemporaryDirectory() as folder:
        files = write_features(Path(folder), options.count, options.width)
        for metric in options.only:
            ours = None
            for whose in METRICS[metric]:
                done = subprocess.run([sys.executable, __file__, '--one', metric, whose, *files], check=True, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                row = json.loads(done.stdout.splitlines()[-1])
                ours = ours or row
                ratios = f'x{row["seconds"] / ours["seconds"]:.1f}, x{row["mb"] / max(ours["mb"], 1):.1f}'
                print(f'{metric}  {whose:15}{row["seconds"]:8.1f} s {row["mb"]:8.0f} MB   {ratios}   {row["value"]}',
                      flush=True)


if __name__ == '__main__':
    main()
