"""One small case of each operation in each layout and type, or with the argument `large` one large case of each kernel.

compute-sanitizer and ncu run this file, and first.py compares the bits of its cases.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from imago import kernels

LAYOUTS = {'NCHW': torch.contiguous_format, 'NHWC': torch.channels_last}
Call = Callable[[], list[Tensor]]


def cases(device: str) -> Iterator[tuple[str, Call]]:
    """Yield names and calls, which return outputs and gradients; the call's inputs stay the same."""
    torch.manual_seed(0)
    for channels, offset in ((3, 0), (8, 0), (70, 0), (8, 1)):
        for layout in LAYOUTS:
            for dtype in (torch.float32, torch.bfloat16):
                yield from of(map_of((2, channels, 9, 8), layout, dtype, device, offset),
                              f'C={channels} {layout} {str(dtype)[6:]}{" at an odd address" if offset else ""}')


def map_of(shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str, offset: int = 0) -> Tensor:
    """Make a random map [NCHW] that begins `offset` elements into its memory."""
    like = torch.empty(shape).contiguous(memory_format=LAYOUTS[layout])
    memory = torch.randn(like.numel() + offset, device=device).to(dtype)
    return memory.as_strided(like.shape, like.stride(), offset)


def of(x: Tensor, label: str) -> Iterator[tuple[str, Call]]:
    """Yield every operation on a map x [NCHW]."""
    n, c, h, w = x.shape
    taps, three = (kernels.setup_filter(line).to(x.device) for line in ([1, 3, 3, 1], [1, 2, 1]))
    scale, b = torch.rand(n, c, device=x.device) + 0.5, torch.randn(c, device=x.device)
    noise = torch.randn(n, 1, h, w, device=x.device)
    calls = {
        'upfirdn2d same': (lambda x: kernels.upfirdn2d(x, taps, padding=(2, 1, 2, 1)), (x,)),
        'upfirdn2d up': (lambda x: kernels.upsample2d(x, taps), (x,)),
        'upfirdn2d down': (lambda x: kernels.downsample2d(x, taps), (x,)),
        'upfirdn2d 3x3': (lambda x: kernels.filter2d(x, three), (x,)),
        'bias_act': (lambda x, b: kernels.bias_act(x, b, act='lrelu', clamp=2.0), (x, b)),
        'bias_act without b': (lambda x: kernels.bias_act(x, act='lrelu'), (x,)),
        'swish': (lambda x, b: kernels.bias_act(x, b, act='swish'), (x, b)),
        'epilogue': (kernels.epilogue, (x, scale, noise, b)),
        'epilogue with FIR': (lambda x, s, z, b: kernels.epilogue(x, s, z, b, taps, (2, 1, 2, 1), fir_gain=4), (x, scale, noise, b)),
        'modulate': (kernels.modulate, (x, scale)),
        'adain': (lambda x, s, z, b: kernels.adain(x, s, s, z, b), (x, scale, noise, b)),
    }
    for name, (call, inputs) in calls.items():
        yield f'{name} {label}', with_gradients(call, inputs)


def with_gradients(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Call:
    g: list[Tensor] = []

    def whole() -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        y = call(*leaves)
        if not g:
            g.append(torch.randn(y.shape, device=y.device).to(y.dtype).contiguous(
                memory_format=torch.contiguous_format if y.is_contiguous() else torch.channels_last))
        return [y.detach(), *torch.autograd.grad(y, leaves, g[0])]
    return whole


def main() -> None:
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if sys.argv[1:] == ['large']:
        for layout, dtype in (('NHWC', torch.bfloat16), ('NCHW', torch.float32)):
            for name, call in of(map_of((8, 64, 512, 512), layout, dtype, device), layout):
                if not name.startswith(('swish', 'adain')):
                    call()
    else:
        for _, call in cases(device):
            call()
    if device == 'cuda':
        torch.cuda.synchronize()


if __name__ == '__main__':
    main()
