"""Other people's metrics, and tiny feature networks.

clean-fid and torch-fidelity import torchvision as a whole, which does not import beside this torch; their formulas need only
numpy, scipy and torch. So their files are imported with empty stand-ins for the modules that read pictures.
"""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn


def torch_fidelity(name: str) -> ModuleType:
    return _formulas('torch_fidelity', name, {'utils'})


def clean_fid() -> ModuleType:
    return _formulas('cleanfid', 'fid', {'utils', 'features'})


def _formulas(package: str, name: str, absent: set[str]) -> ModuleType:
    before = {key: module for key, module in sys.modules.items() if key.split('.')[0] == package}
    for key in before:
        del sys.modules[key]
    bare = ModuleType(package)
    bare.__path__ = list(find_spec(package).submodule_search_locations) if not before else list(before[package].__path__)
    sys.modules[package] = bare
    for other in absent:
        stand_in = ModuleType(f'{package}.{other}')
        stand_in.__all__ = []
        stand_in.__getattr__ = lambda attribute: None
        sys.modules[stand_in.__name__] = stand_in
    try:
        return importlib.import_module(f'{package}.{name}')
    finally:
        for key in [key for key in sys.modules if key.split('.')[0] == package]:
            del sys.modules[key]
        sys.modules.update(before)


class Patches(nn.Module):
    """Means of 4 x 4 patches through a fixed random layer: [N, 3, 8, 8] -> features [N, 12] and logits [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.register_buffer('weight', torch.randn(12, 12, generator=generator))
        self.register_buffer('classes', torch.randn(12, 5, generator=generator))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(nn.functional.avg_pool2d(x, 4).flatten(1) @ self.weight)
        return features, features @ self.classes


class FakeInception(nn.Module):
    """What clean-fid's wrapper asks of the TorchScript file: `layers` for 299 px, and a call that resizes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(32), nn.Conv2d(3, 2, 1), nn.Flatten())
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        x = nn.functional.interpolate(x, [299, 299], mode='bilinear', align_corners=False)
        features = self.layers((x - 128) / 128)
        return features if return_features else features[:, ::200].softmax(1)


def write_onnx(path: Path) -> None:
    """An ONNX file of means over pixels: [N, 3, 8, 8] -> [N, 3]. Written by hand, as the onnx package is not at hand."""
    def field(number: int, value: int | bytes | str) -> bytes:
        if isinstance(value, int):
            return _varint(number << 3) + _varint(value)
        value = value.encode() if isinstance(value, str) else value
        return _varint(number << 3 | 2) + _varint(len(value)) + value

    def tensor(name: str, *sides: int) -> bytes:
        shape = field(1, field(2, 'n')) + b''.join(field(1, field(1, side)) for side in sides)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))
    nodes = [field(1, 'x') + field(2, 'pooled') + field(4, 'GlobalAveragePool'),
             field(1, 'pooled') + field(2, 'features') + field(4, 'Flatten')]
    graph = b''.join(field(1, node) for node in nodes) + field(2, 'means') + field(11, tensor('x', 3, 8, 8)) + \
        field(12, tensor('features', 3))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))


def _varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


def write_extractor(path: Path) -> list[str]:
    """A TorchScript file, and the options of `imago evaluate` that take it."""
    torch.jit.script(Patches()).save(path)
    return ['--extractor', str(path), '--extractor-size', '8']
