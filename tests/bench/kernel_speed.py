"""How fast the kernels are, compared with the best eager PyTorch form of each and with the time to copy as much memory.

    python tests/bench/kernel_speed.py                    shapes of the CPU figures, float32
    python tests/bench/kernel_speed.py --device cuda      layers of a 512 px StyleGAN2 at batch 8, bf16 and float32

Times are medians; the forms of a line take turns in the same run. Bytes are those that any implementation must move.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from imago import kernels
from imago.kernels.library import serves
from imago.trainer.ranks import dist

LAYOUTS = {'NCHW': torch.contiguous_format, 'NHWC': torch.channels_last}
FLUSH_BYTES = 1 << 31
RESAMPLING = {'up 2': (2, 1, (2, 1, 2, 1)), 'down 2': (1, 2, (1, 1, 1, 1)), 'same': (1, 1, (2, 1, 2, 1))}


@dataclass
class Case:
    """`forms` maps names to what is timed; Imago's kernel is the first. `bytes` is the least that must be read and written."""

    name: str
    bytes: int
    forms: dict[str, Callable[[], object]] = field(default_factory=dict)


def median_seconds(forms: list[Callable[[], object]], device: str) -> list[float]:
    """Each form's median over three turns; a turn is eight calls, of which the first two only warm up."""
    times = [[] for _ in forms]
    for _ in range(3):
        for form, kept in zip(forms, times):
            kept += [seconds(form, device) for _ in range(8)][2:]
    return [statistics.median(kept) for kept in times]


def seconds(form: Callable[[], object], device: str) -> float:
    if device == 'cuda':
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # filling it takes longer than to launch a backward pass, and leaves nothing of the form's maps in the L2
        torch.empty(FLUSH_BYTES, dtype=torch.uint8, device='cuda').zero_()
        start.record()
        form()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    began = time.perf_counter()
    form()
    return time.perf_counter() - began


def usual_upfirdn2d(x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, ...]) -> Tensor:
    """upfirdn2d by its definition: put zeros in, pad, convolve depth-wise, keep every down-th pixel. [NCHW] -> [NCHW]"""
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(n, c, h * up, w * up)
    x = F.conv2d(F.pad(x, padding), taps.flip([0, 1]).to(x.dtype).expand(c, 1, -1, -1), groups=c)
    return x[:, :, ::down, ::down]


def sliced_upfirdn2d(x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, ...]) -> Tensor:
    """upfirdn2d by sums of shifted slices, a phase of the output at a time, the best eager form for few channels."""
    line = taps.sum(dim=1) / taps.sum().sqrt()  # the filter is the outer product of two of these
    for axis in (3, 2):
        before, after = padding[:2] if axis == 3 else padding[2:]
        pads = (before, after) if axis == 3 else (0, 0, before, after)
        if up == 1:
            wide = F.pad(x, pads)
            size = (wide.shape[axis] - 4) // down + 1
            slices = [wide.narrow(axis, k, down * (size - 1) + 1) for k in range(4)]
            slices = [piece[:, :, :, ::down] if axis == 3 else piece[:, :, ::down] for piece in slices]
            x = sum_of(slices, line)
        else:
            wide = F.pad(x, (1, 1) if axis == 3 else (0, 0, 1, 1))
            size = x.shape[axis]
            phases = [sum_of([wide.narrow(axis, q + j, size) for j in range(2)], line[1 - q::2] if q else line[0::2])
                      for q in range(2)]
            x = torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1)
    return x


def sum_of(slices: list[Tensor], weights: Tensor) -> Tensor:
    total = slices[0] * weights[0].item()
    for piece, weight in zip(slices[1:], weights[1:].tolist()):
        total.add_(piece, alpha=weight)
    return total


def cases(shapes: list[tuple[int, ...]], layouts: list[str], device: str, dtype: torch.dtype) -> Iterator[Case]:
    taps = kernels.setup_filter([1, 3, 3, 1]).to(device)
    for shape in shapes:
        for layout in layouts:
            x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=LAYOUTS[layout])
            b, each = torch.randn(shape[1], device=device), x.numel() * x.element_size()
            label = f'{list(shape)} {layout} {str(dtype).removeprefix("torch.")}'
            for name, (up, down, padding) in RESAMPLING.items():
                yield Case(f'upfirdn2d {name:6} {label}', int(each * (1 + (up / down) ** 2)), resampling(x, taps, up, down, padding))
            yield Case(f'bias_act fwd     {label}', 2 * each, activation(x, b))
            yield Case(f'bias_act bwd     {label}', 3 * each, activation_backward(x, b))
            yield from layer_cases(x, b, taps, label, each)


def resampling(x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, ...]) -> dict[str, Callable]:
    def ours() -> Tensor:
        return kernels.upfirdn2d(x, taps, up, down, padding, gain=up ** 2)

    def depthwise() -> Tensor:
        with kernels.reference_path():
            return ours()
    return {'ours': ours, 'depthwise': depthwise, 'slices': lambda: sliced_upfirdn2d(x, taps * up ** 2, up, down, padding),
            'usual': lambda: usual_upfirdn2d(x, taps * up ** 2, up, down, padding)}


def activation(x: Tensor, b: Tensor) -> dict[str, Callable]:
    def ours() -> Tensor:
        return kernels.bias_act(x, b, act='lrelu', clamp=256)

    def eager() -> Tensor:
        with kernels.reference_path():
            return ours()
    return {'ours': ours, 'eager': eager,
            'usual': lambda: (F.leaky_relu(x + b.to(x.dtype)[:, None, None], 0.2) * sqrt(2)).clamp(-256, 256)}


def activation_backward(x: Tensor, b: Tensor) -> dict[str, Callable]:
    x, b, g = x.clone().requires_grad_(), b.clone().requires_grad_(), torch.randn_like(x)
    forms = {}
    for name, forward in activation(x, b).items():
        y = forward()
        forms[name] = lambda y=y: torch.autograd.grad(y, (x, b), g, retain_graph=True)
    return forms


def layer_cases(x: Tensor, b: Tensor, taps: Tensor, label: str, each: int) -> Iterator[Case]:
    """The epilogue with and without its filter, modulation and AdaIN; each with its gradient."""
    n, c, h, w = x.shape
    scale, noise = torch.rand(n, c, device=x.device) + 0.5, torch.randn(n, 1, h, w, device=x.device)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, scale, noise, b)]
    wide = F.pad(x, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last if kernels_nhwc(x) else torch.contiguous_format)
    g = torch.randn_like(x)
    layers = {
        'epilogue with FIR': (lambda: kernels.epilogue(wide, scale, noise, b, taps, (1, 1, 1, 1), fir_gain=4), 2),
        'epilogue': (lambda: kernels.epilogue(x, scale, noise, b), 2),
        'modulate': (lambda: kernels.modulate(x, scale), 2),
        'adain': (lambda: kernels.adain(x, scale, scale, noise, b), 3)}
    for name, (call, passes) in layers.items():
        yield Case(f'{name:16} {label}', passes * each, {'ours': call, 'eager': in_reference(call)})
    graphs = {
        'epilogue grad': (lambda: kernels.epilogue(*leaves), leaves, 3),
        'modulate grad': (lambda: kernels.modulate(*leaves[:2]), leaves[:2], 3),
        'adain grad': (lambda: kernels.adain(leaves[0], leaves[1], leaves[1], leaves[2], leaves[3]), leaves, 5)}
    for name, (call, inputs, passes) in graphs.items():
        forms = {}
        for form, forward in (('ours', call), ('eager', in_reference(call))):
            y = forward()
            forms[form] = lambda y=y: torch.autograd.grad(y, inputs, g, retain_graph=True)
        yield Case(f'{name:16} {label}', passes * each, forms)


def kernels_nhwc(x: Tensor) -> bool:
    return not x.is_contiguous()


def in_reference(call: Callable) -> Callable:
    def wrapped() -> object:
        with kernels.reference_path():
            return call()
    return wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    device = parser.parse_args().device
    dist.init(device)  # as in training, also the allocator's settings
    if not serves(device):
        parser.error(f'no compiled kernels: {kernels.status()}')
    if device == 'cpu':
        shapes, dtypes, layouts = [(4, 64, 128, 128), (4, 32, 256, 256), (4, 3, 512, 512)], [torch.float32], list(LAYOUTS)
    else:
        shapes = [(8, min(32768 // size, 512), size, size) for size in (512, 256, 128, 64, 32, 16)]
        dtypes, layouts = [torch.bfloat16, torch.float32], list(LAYOUTS)
    print(f'{"":56} {"MB":>7} {"ms":>8} {"of copy":>8}  times faster than')
    for dtype in dtypes:
        for case in cases(shapes, layouts, device, dtype):
            source = torch.empty(case.bytes // 2, dtype=torch.uint8, device=device)
            target = torch.empty_like(source)
            ours, *others, copy = median_seconds([*case.forms.values(), lambda: target.copy_(source)], device)
            peers = '  '.join(f'{name} {other / ours:.1f}' for name, other in zip(list(case.forms)[1:], others))
            print(f'{case.name:56} {case.bytes / 1e6:7.1f} {ours * 1e3:8.3f} {copy / ours:8.0%}  {peers}', flush=True)


if __name__ == '__main__':
    main()
