"""SHA-256 of what each compiled kernel and its gradients make of random maps, to prove that a change moves no bit.

    python tests/bench/kernel_digests.py --out before.json       # then change the code
    python tests/bench/kernel_digests.py --against before.json   # exit status 1 where a digest differs

All instruction sets that this CPU has are compiled, each into a library of its own, and digested in a process of its own.
"""

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from imago import kernels
from imago.kernels import build, library
from imago.kernels.bias_act import ACTIVATIONS

SIZES = [(2, 8, 9, 8), (1, 16, 40, 11), (2, 3, 33, 70), (3, 64, 16, 16), (2, 100, 5, 7)]
# taps, up, down
FILTERS = [((4, 4), 1, 1), ((4, 4), 2, 1), ((4, 4), 1, 2), ((12,), 2, 1), ((4,), 1, 2), ((3, 5), (3, 2), (2, 1))]
PADDING = (2, 1, 2, 1)


def digests() -> dict[str, str]:
    """Return {kernel: digest} of the library that serves this process."""
    assert library.serves('cpu')
    torch.set_num_threads(1)
    found = {name: hashlib.sha256() for name in library.OPS}
    generator = torch.Generator().manual_seed(0)
    for dtype, layout in itertools.product((torch.float32, torch.float64, torch.bfloat16, torch.float16),
                                           (torch.contiguous_format, torch.channels_last)):
        for size in SIZES:
            for name, y, inputs in results(size, dtype, layout, generator):
                for tensor in (y, *gradients(y, inputs)):
                    found[name].update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {name: digest.hexdigest() for name, digest in found.items()}


def results(size: tuple, dtype: torch.dtype, layout: torch.memory_format, generator: torch.Generator):
    """Yield (kernel, what it returns, its inputs) for maps [NCHW] of this size."""
    def random(*shape: int, kind: torch.dtype = torch.float64 if dtype == torch.float64 else torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(kind)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.requires_grad_()

    n, c, height, width = size
    for taps, up, down in FILTERS:
        x = leaf(random(*size, kind=dtype).to(memory_format=layout))
        yield 'upfirdn2d', kernels.upfirdn2d(x, random(*taps), up, down, PADDING, gain=1.5), [x]
    for act, clamp in itertools.product(ACTIVATIONS, (None, 0.7)):
        x, b = leaf(random(*size, kind=dtype).to(memory_format=layout)), leaf(random(c))
        yield 'bias_act', kernels.bias_act(x, b, act=act, clamp=clamp), [x, b]
    x, scale = leaf(random(*size, kind=dtype).to(memory_format=layout)), leaf(random(n, c).abs() + 0.5)
    yield 'modulate', kernels.modulate(x, scale), [x, scale]
    for filtered, noises in itertools.product((False, True), (1, n)):
        x, scale, b = leaf(random(*size, kind=dtype).to(memory_format=layout)), leaf(random(n, c).abs() + 0.5), leaf(random(c))
        noise = leaf(random(noises, 1, height, width))
        taps, padding = (random(3, 3), (1, 1, 1, 1)) if filtered else (None, (0, 0, 0, 0))
        y = kernels.epilogue(x, scale, noise, b, taps, padding, fir_gain=0.5, gain=1.5, clamp=2.0 if filtered else None)
        yield 'epilogue', y, [x, scale, noise, b]
    x, scale, shift = leaf(random(*size, kind=dtype).to(memory_format=layout)), leaf(random(n, c)), leaf(random(n, c))
    noise, b = leaf(random(n, 1, height, width)), leaf(random(c))
    yield 'adain', kernels.adain(x, scale, shift, noise, b), [x, scale, shift, noise, b]


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradients of a weighted sum, and those of their squared length."""
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y)
    first = torch.autograd.grad((y * weights).sum(), inputs, create_graph=True)
    length = sum(gradient.double().square().sum() for gradient in first)
    second = torch.autograd.grad(length, inputs, allow_unused=True) if length.requires_grad else []
    return [*first, *(gradient for gradient in second if gradient is not None)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, help='a file for the digests, as JSON')
    parser.add_argument('--against', type=Path, help='such a file')
    options = parser.parse_args()
    if 'IMAGO_KERNELS_LIBRARY' in os.environ:     # by the call below
        print(json.dumps(digests()))
        return 0
    found, names = {}, build.all_sets()
    with tempfile.TemporaryDirectory() as folder:
        for name in names[:names.index(build.own_sets()[-1]) + 1]:
            built = Path(folder) / f'{name}.so'
            build.build(build.plan('cpu', sets=[name]), built)
            found[name] = json.loads(subprocess.check_output([sys.executable, __file__],
                                                             env=os.environ | {'IMAGO_KERNELS_LIBRARY': str(built)}))
            print(name, *(f'{kernel} {digest[:12]}' for kernel, digest in found[name].items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found))
    return int(bool(options.against) and json.loads(options.against.read_text()) != found)


if __name__ == '__main__':
    sys.exit(main())
