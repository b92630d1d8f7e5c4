"""Runs on own kernels, on plain PyTorch and compiled learn the same."""

import torch
from runs_for_tests import differing, largest_difference, tiny_config, train_here

import kernels


def test_fifty_steps_equal_plain_pytorch_up_to_rounding(shards, tmp_path):
    fused = train_here(tiny_config(shards, tmp_path / 'fused', total_kimg=0.6))
    with kernels.reference_path():
        plain = train_here(tiny_config(shards, tmp_path / 'plain', total_kimg=0.6))
    other = train_here(tiny_config(shards, tmp_path / 'other', total_kimg=0.6, seed=1))
    for tree in (fused, plain, other):
        for name in [name for name in tree if not name.startswith(('G.', 'D.', 'G_ema.'))]:
            del tree[name]
    difference = largest_difference(plain, fused)
    print(f'largest difference after 50 steps: {difference:.1e}; of another seed: {largest_difference(plain, other):.1e}')
    assert difference < 1e-4
    assert differing(plain, fused), 'the same kernels served both'


def test_a_compiled_run_resumes_bitwise_and_learns_what_an_eager_one_does(shards, tmp_path):
    small = {'data': {'path': str(shards), 'lanes': 12, 'workers': 0, 'resolution': 8}}
    eager = train_here(tiny_config(shards, tmp_path / 'eager', **small))
    whole = train_here(tiny_config(shards, tmp_path / 'whole', compile=True, **small))
    train_here(tiny_config(shards, tmp_path / 'halves', compile=True, total_kimg=0.024, **small))
    torch._dynamo.reset()
    resumed = train_here(tiny_config(shards, tmp_path / 'halves', compile=True, **small))
    assert differing(whole, resumed) == []
    assert largest_difference(eager, whole) < 1e-3
    assert differing(eager, whole), 'nothing was compiled'
