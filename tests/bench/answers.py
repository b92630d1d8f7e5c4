"""What each command takes to answer: CPU seconds of every --help, of a refused argument for each, and of a dry run.

    python tests/bench/answers.py            # --cost too, which counts the work of whole networks

The first line is the import of torch alone, which is no part of the answers that take under a second.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests'))
HELP = ('', 'pack', 'train', 'train --gpus 2', 'sample', 'export', 'evaluate', 'plot', 'compare', 'cost', 'doctor', 'launch',
        'launch slurm', 'launch kubernetes', 'launch node')
DRY_RUN = 'train stylegan2-256 data.path={data} run_dir={new} data.resolution=32 data.lanes=12 batch=12 micro_batch=6'
REFUSED = (
    'bake', 'pack nowhere {new}', 'pack {data} {new} --quality 200', 'train', 'train no-such', 'train demo bacth=24',
    'train demo batch=18', 'train demo optim.g_lr=much',
    'train demo bacth=24 --gpus 2', 'train demo batch=18 --gpus 2', 'train demo data.path={new}',
    'train demo data.path={new} --gpus 2', 'sample {new}', 'sample {data} --seeds 3-1', 'export {new} {new}',
    'export {data} {data}', 'evaluate {data}', 'evaluate {data} --data {new}', 'evaluate {data} --data {data} --psi much',
    'evaluate {new} --gpus 2', 'plot {new}', 'plot', 'compare {new}', 'compare --best', 'cost demo --nodes 0',
    'cost demo bacth=24', 'doctor now', 'launch slurm demo --nodes 2', 'launch slurm demo --nodes 2 --gpus-per-node 8 bacth=24',
    'launch kubernetes demo', 'launch node demo --nodes x', 'launch local demo bacth=24 --nproc 2')


def seconds(arguments: list[str], status: int) -> float:
    """Run Python on `arguments` and return the CPU seconds that it and its children take. It must end with `status`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != status:
        raise SystemExit(f'{" ".join(arguments)} ended with {done.returncode}, not {status}: {done.stderr}')
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cost', action='store_true', help='also time imago cost, the slowest command that trains nothing')
    options = parser.parse_args()
    from shards_for_tests import write_dataset
    with tempfile.TemporaryDirectory() as folder:
        places = {'data': write_dataset(Path(folder) / 'data', (13, 10, 7), classes=3, size=32), 'new': Path(folder) / 'new'}

        def tell(text: str, status: int) -> None:
            words = text.format(**places).split()
            print(f'{seconds(["-m", "imago.launch.cli", *words], status):6.2f}  imago {text}', flush=True)
        print(f'{seconds(["-c", "import torch"], 0):6.2f}  import torch', flush=True)
        for command in HELP:
            tell(f'{command} --help'.strip(), 0)
        for command in REFUSED:
            tell(command, 2)
        tell(f'{DRY_RUN} --dry-run', 0)
        tell(f'{DRY_RUN} --dry-run --gpus 2', 0)
        if options.cost:
            tell('cost stylegan2-256', 0)


if __name__ == '__main__':
    main()
