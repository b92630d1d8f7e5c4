"""SHA-256 of the whole state after 12 tiny steps of every family and variant, to prove that a change moves no bit.

    python tests/bench/digests.py --out before.json       # then change the code
    python tests/bench/digests.py --against before.json   # exit status 1 where a digest differs

Kernels are the plain ones, with one thread. Each case runs data-parallel on 1 rank and on 2; two families also run under fsdp
and zero.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

os.environ |= {'IMAGO_KERNELS': 'reference', 'OMP_NUM_THREADS': '1'}
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent.parent)]

import torch
from families_for_tests import FAMILIES, VARIANTS, config_of
from runs_for_tests import on_ranks, train_here
from shards_for_tests import write_dataset

from imago.trainer.config.load import Config

KIMG = 0.144   # 12 steps of 12 images
QUIET = {'checkpoint': {'interval_kimg': 1.0}, 'log': {'interval_kimg': 1.0, 'grid_kimg': 1.0}}
SHARDED = ('stylegan2', 'pggan')


def digest(config: Config) -> str:
    """Return the digest of names and bytes of all tensors, which is the same on each rank."""
    with redirect_stdout(io.StringIO()):
        state = train_here(config)
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if name.startswith('scalars.') and not tensor:
            continue    # an unused value says nothing
        found.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def cases() -> list[tuple[str, int, str]]:
    """(family or variant, ranks, strategy)"""
    every = [(name, world, 'data') for name in FAMILIES | VARIANTS for world in (1, 2)]
    return every + [(name, 2, strategy) for name in SHARDED for strategy in ('fsdp', 'zero')]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, help='a file for the digests, as JSON')
    parser.add_argument('--against', type=Path, help='such a file')
    parser.add_argument('--only', nargs='+', choices=FAMILIES | VARIANTS, help='these families and variants')
    options = parser.parse_args()
    before = json.loads(options.against.read_text()) if options.against else {}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / 'data', (13, 10, 7), classes=3, size=32)
        for number, (name, world, strategy) in enumerate(cases()):
            if options.only and name not in options.only:
                continue
            config = config_of(name, data, Path(folder) / str(number), world, total_kimg=KIMG, parallel={'strategy': strategy},
                               **QUIET)
            key = f'{name}, {world} rank{"s" * (world > 1)}, {strategy}'
            found[key], = set(on_ranks(world, digest, config))
            verdict = '' if key not in before else 'the same' if before[key] == found[key] else f'was {before[key][:16]}'
            print(f'{key:36} {found[key][:16]}  {verdict}', flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + '\n')
    return int(any(before[key] != found[key] for key in before.keys() & found.keys()))


if __name__ == '__main__':
    sys.exit(main())
