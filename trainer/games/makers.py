"""Makers make the pictures for which a run is trained, from the averages of its networks alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

from imago.trainer.data.conditions import from_text
from imago.trainer.data.labels import to_one_hot
from imago.trainer.engine.randomness import LEAST_TRUNCATION, Draws, draw, seed_for, truncated_normal
from imago.trainer.models.batch_norm import standing_statistics
from imago.trainer.models.layers import LATENTS
from imago.trainer.ranks.progress import Progress

MOST_PSI = 100.0


@dataclass(frozen=True)
class Sampling:
    """Says how pictures are drawn from a trained generator."""

    psi: float = 1.0                   # truncation psi, in w
    psi_cutoff: int | None = None      # number of layers, from the first on, in which psi truncates; None: all
    truncation: float | None = None    # latents are drawn again until |z| is below this; None: no limit
    noise: str = 'const'               # noise of layers that add some; 'random' comes from torch's own generator


class Inputs(Protocol):
    """A maker makes pictures from these rows, which are a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    labels: Tensor     # [N] classes, 0 where there are none

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Return some of the rows."""

    def to(self, device: torch.device) -> Self:
        """Return the same on a device."""


class Maker(ABC):
    """Makes pictures from the averages of a run, by name. Grids, guard, evaluation, sample and export know only this class."""

    takes: tuple[str, ...] = ()            # () is latents alone; ('a',) is pictures of domain a
    class_counts: tuple[int, ...] = ()     # how often each label is drawn; () if there are none
    classes: int = 0                       # number of classes that can be asked for
    condition_size: int = 0                # how many numbers a condition has that can be asked for; 0 if none can
    noisy: bool = False                    # whether pictures depend on `Sampling.noise`
    has_paths: bool = False                # whether `between` is implemented

    def __init__(self, networks: dict[str, nn.Module], resolution: tuple[int, int]) -> None:
        """resolution: (height, width) of its pictures, in px."""
        self.networks, self.resolution = networks, resolution

    @property
    def device(self) -> torch.device:
        return next(parameter for network in self.networks.values() for parameter in network.parameters()).device

    def check(self, sampling: Sampling) -> None:
        """Raise ValueError unless pictures can be made like this."""
        if (sampling.psi, sampling.psi_cutoff, sampling.truncation) != (1, None, None):
            raise ValueError('psi, psi-cutoff and truncation: what these pictures are made of cannot be truncated; leave them '
                             'out')

    def check_conditions(self, conditions: ArrayLike | None) -> None:
        """Raise ValueError unless pictures can be made of conditions [N, condition_size]. None stands for some of the data's."""
        if conditions is None:
            return
        if not self.condition_size:
            raise ValueError('condition: this generator takes none; ' + ('choose a class' if self.classes else 'leave it out'))
        shape = np.shape(conditions)
        if len(shape) != 2 or shape[1] != self.condition_size:
            raise ValueError(f'condition: there are {"x".join(map(str, shape[1:])) or "no"} numbers for a picture, and this '
                             f'generator takes {self.condition_size}; give {self.condition_size}')

    @abstractmethod
    def draw(self, seed: int, nimg: int, purpose: str, count: int, truncation: float | None = None) -> Inputs:
        """Draw inputs of `count` pictures as a pure function of the arguments; labels are as frequent as in the data."""

    @abstractmethod
    def inputs(self, seeds: Iterable[int], label: int | None = None, truncation: float | None = None,
               conditions: ArrayLike | None = None) -> Inputs:
        """Draw the inputs of one picture for each seed, whatever the other seeds are; all are of the class `label`, if given.

        `conditions` [N, condition_size] has a row for each picture, if given. ValueError if `check_conditions` refuses it.
        """

    @abstractmethod
    def __call__(self, inputs: Any, sampling: Sampling = Sampling()) -> Tensor:
        """Return pictures [NCHW] in [-1, 1] at full size, on the device of the networks."""

    def between(self, first: Any, second: Any, where: Tensor, sampling: Sampling) -> Tensor:
        """Return pictures [NCHW] at the share `where` [N, 1] of the way from `first` to `second`, of the classes of `first`."""
        raise NotImplementedError

    @torch.no_grad()
    def take_standing_statistics(self, batches: int, batch: int = 32) -> None:
        """Replace running batch-norm statistics by their means over `batches` of fakes. Brock et al. 2019, appendix D."""
        with ExitStack() as stack, Progress('standing statistics', batches, 'batches') as progress:
            for network in self.networks.values():
                stack.enter_context(standing_statistics(network))
            for number in range(batches):
                self(self.draw(number, 0, 'standing', batch).to(self.device))
                progress.add()


class LatentMaker(Maker):
    """Turns latents and labels into pictures by G.

    `class_counts` are used only if the generator takes classes. If it takes continuous conditions, labels are row numbers of
    `conditions`, which data/conditions.py has written, and all are drawn equally often.
    """

    has_paths = True

    def __init__(self, networks: dict[str, nn.Module], class_counts: Iterable[int], conditions: str = '') -> None:
        self.G = networks['G']
        super().__init__(networks, tuple(self.G.resolution))
        self.class_counts, self.classes = tuple(class_counts) if self.G.c_dim else (), self.G.c_dim
        self.conditions = torch.tensor(from_text(conditions, self.G.c_dim)) if conditions else None   # [K, c_dim]
        if self.conditions is not None:
            self.class_counts, self.classes, self.condition_size = (1,) * len(self.conditions), 0, self.G.c_dim

    def c(self, inputs: Draws) -> Tensor:
        """Return the classes or conditions [N, c_dim] that the generator takes for `inputs`."""
        if inputs.conditions is not None:
            return inputs.conditions
        labels = inputs.labels
        return to_one_hot(labels, self.G.c_dim) if self.conditions is None else self.conditions.to(labels.device)[labels]

    @property
    def noisy(self) -> bool:
        return bool(self.G.num_ws)

    @property
    def latents(self) -> str:
        """Return the distribution of latents, a name in layers.LATENTS."""
        return getattr(self.G, 'latents', 'normal')

    def check(self, sampling: Sampling) -> None:
        """Raise ValueError unless the generator can truncate like this in w, in its first layers, and in z."""
        normal, psi, cutoff, truncation = self.latents == 'normal', sampling.psi, sampling.psi_cutoff, sampling.truncation
        if not abs(psi) <= MOST_PSI:
            raise ValueError(f'psi {psi} is not a number up to {MOST_PSI:g}; 0 to 1 is usual')
        if (psi != 1 or cutoff is not None) and not self.G.num_ws:
            raise ValueError(f'psi {psi:g}: this generator has no w to truncate in; '
                             + ('use truncation' if normal else 'leave it out'))
        if cutoff is not None and not 0 <= cutoff <= self.G.num_ws:
            raise ValueError(f'psi-cutoff {cutoff} is outside 0 to {self.G.num_ws}, the layers of this generator')
        if truncation is not None and not normal:
            raise ValueError(f'truncation {truncation:g}: the latents of this generator are uniform in [-1, 1], without tails to '
                             'draw again; leave it out')
        if truncation is not None and not truncation >= LEAST_TRUNCATION:
            raise ValueError(f'truncation {truncation:g} must be at least {LEAST_TRUNCATION}; 0.5 to 2 is usual')

    def draw(self, seed: int, nimg: int, purpose: str, count: int, truncation: float | None = None) -> Draws:
        draws = draw(seed, nimg, purpose, count, z_dim=self.G.z_dim, num_ws=self.G.num_ws, style_mixing=0.0,
                     class_counts=self.class_counts, latents=self.latents)
        if truncation is None:
            return draws
        generator = torch.Generator().manual_seed(seed_for(seed, nimg, purpose, 'truncated'))
        return replace(draws, z=truncated_normal(tuple(draws.z.shape), truncation, generator))

    def inputs(self, seeds: Iterable[int], label: int | None = None, truncation: float | None = None,
               conditions: ArrayLike | None = None) -> Draws:
        self.check_conditions(conditions)
        weights = torch.tensor(self.class_counts or (1,), dtype=torch.float64)

        def one(seed: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(seed_for(int(seed), 0, 'sample'))
            z = LATENTS[self.latents](self.G.z_dim, generator=generator) if truncation is None else \
                truncated_normal((self.G.z_dim,), truncation, generator)
            return z, torch.multinomial(weights, 1, generator=generator)[0]

        z, labels = map(torch.stack, zip(*map(one, seeds), strict=True))
        if label is not None:
            labels = torch.full_like(labels, label)
        if conditions is not None:
            conditions, labels = torch.as_tensor(conditions, dtype=torch.float32), torch.zeros_like(labels)
        return Draws(z, z, torch.zeros_like(labels), labels, conditions)

    def __call__(self, inputs: Draws, sampling: Sampling = Sampling()) -> Tensor:
        """Return pictures [NCHW]. The truncation of latents is in `inputs` already, so `sampling.truncation` is not used."""
        styles = {'truncation_psi': sampling.psi, 'truncation_cutoff': sampling.psi_cutoff, 'noise': sampling.noise}
        images = self.run(inputs.z, inputs, **(styles if self.G.num_ws else {}))
        return functional.interpolate(images, self.resolution)   # this repeats pixels while G grows

    def run(self, z: Tensor, inputs: Draws, **options: object) -> Tensor:
        """Run G on latents [N, z_dim], and on the labels or conditions of `inputs` -> pictures [NCHW]."""
        return self.G(z, self.c(inputs), **options)

    def between(self, first: Draws, second: Draws, where: Tensor, sampling: Sampling) -> Tensor:
        """Move along a line in w, if there is one, else along a circle in z. A line keeps uniform latents within their cube.

        where [N, 1] -> pictures [NCHW]
        """
        if not self.G.num_ws:
            path = along_circle if self.latents == 'normal' else torch.lerp
            return self.run(path(first.z, second.z, where), first)
        c = self.c(first)
        w0, w1 = (self.G.mapping(z, c, sampling.psi, sampling.psi_cutoff) for z in (first.z, second.z))   # [N, num_ws, w_dim]
        return self.G.synthesis(w0.lerp(w1, where[:, :, None]), noise='const')


class SeveralMaker(LatentMaker):
    """Labels are no classes here: they say which of several generators makes a picture. All are drawn equally often."""

    def __init__(self, networks: dict[str, nn.Module], class_counts: Iterable[int], conditions: str = '') -> None:
        super().__init__(networks, class_counts, conditions)
        self.class_counts = (1,) * len(self.G.generators)

    def run(self, z: Tensor, inputs: Draws, **options: object) -> Tensor:
        """Run G on latents [N, z_dim] -> pictures [NCHW]; the labels of `inputs` say which generator makes each."""
        return super().run(z, inputs, made_by=inputs.labels.tolist(), **options)


@torch.no_grad()
def generate(maker: Maker, inputs: Inputs, sampling: Sampling = Sampling(), batch: int = 16,
             title: str | None = None) -> np.ndarray:
    """Make pictures [NHWC] uint8, `batch` at a time. title: the title of the progress; None shows no progress."""
    parts, count = [], len(inputs.labels)
    with Progress(title, count, 'pictures') as progress:
        for start in range(0, count, batch):
            part = inputs[start:start + batch].to(maker.device)
            parts.append(to_pictures(maker(part, sampling)))
            progress.add(len(part.labels))
    return np.concatenate(parts)


def to_pictures(images: Tensor) -> np.ndarray:
    """[NCHW] in [-1, 1] -> [NHWC] uint8, rounded and clamped"""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def along_circle(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """Interpolate rows a and b [N, z_dim] spherically at `where` [N, 1] -> [N, z_dim]. Shoemake 1985."""
    angle = torch.acos(torch.cosine_similarity(a, b, dim=1).clamp(-1, 1))[:, None]
    return (torch.sin((1 - where) * angle) * a + torch.sin(where * angle) * b) / torch.sin(angle)
