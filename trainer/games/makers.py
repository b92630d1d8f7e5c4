"""What a trained game of latents is for: pictures from its averaged generator."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config.load import Config
from trainer.config.plan import Plan
from trainer.data.conditions import from_text
from trainer.data.labels import to_one_hot
from trainer.engine.randomness import LEAST_TRUNCATION, Draws, draw, seed_for, truncated_normal
from trainer.engine.state import TrainState
from trainer.models.batch_norm import standing_statistics
from trainer.models.layers import LATENTS
from trainer.ranks.progress import Progress

MOST_PSI, MOST_BATCHES = 100.0, 10_000


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn from a trained generator."""

    psi: float = 1.0                   # truncation psi, in w
    psi_cutoff: int | None = None      # layers, from the first on, in which psi truncates; None: all
    truncation: float | None = None    # latents are drawn again until |z| is below; None: any
    noise: str = 'const'               # of layers that add some; random: from torch's own generator


class LatentMaker:
    """Latents and labels become pictures.

    `class_counts`: how often each label is drawn; () where the generator takes none. Of a generator that takes continuous
    conditions, labels are the rows of `conditions` [K, c_dim], all drawn equally often.
    """

    takes: tuple[str, ...] = ()

    def __init__(self, G: nn.Module, class_counts: Iterable[int], conditions: Tensor | None = None) -> None:
        self.G, self.resolution, self.conditions = G, tuple(G.resolution), conditions
        self.class_counts = tuple(class_counts) if G.c_dim else ()
        if conditions is not None:
            self.class_counts = (1,) * len(conditions)

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device

    @property
    def classes(self) -> int:
        """Those that a picture can be asked to be of; 0 of an unconditional generator."""
        return self.G.c_dim if self.conditions is None else 0

    def c(self, labels: Tensor) -> Tensor:
        """[N] labels -> [N, c_dim], what the generator takes for them."""
        return to_one_hot(labels, self.G.c_dim) if self.conditions is None else self.conditions.to(labels.device)[labels]

    @property
    def noisy(self) -> bool:
        """Whether pictures depend on `Sampling.noise`."""
        return bool(self.G.num_ws)

    @property
    def latents(self) -> str:
        """Their distribution, of layers.LATENTS."""
        return getattr(self.G, 'latents', 'normal')

    def check(self, sampling: Sampling) -> None:
        """ValueError unless the generator can be truncated so: in w, in its first layers, and in z."""
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
        """Inputs of `count` pictures, a pure function of the arguments; labels as frequent as in the data."""
        draws = draw(seed, nimg, purpose, count, z_dim=self.G.z_dim, num_ws=self.G.num_ws, style_mixing=0.0,
                     class_counts=self.class_counts, latents=self.latents)
        if truncation is None:
            return draws
        generator = torch.Generator().manual_seed(seed_for(seed, nimg, purpose, 'truncated'))
        return replace(draws, z=truncated_normal(tuple(draws.z.shape), truncation, generator))

    def inputs(self, seeds: Iterable[int], label: int | None = None, truncation: float | None = None) -> Draws:
        """Those of `imago sample --seeds`: one picture a seed, of the class `label`, else of one as frequent as in the data."""
        weights = torch.tensor(self.class_counts or (1,), dtype=torch.float64)

        def one(seed: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(seed_for(int(seed), 0, 'sample'))
            z = LATENTS[self.latents](self.G.z_dim, generator=generator) if truncation is None else \
                truncated_normal((self.G.z_dim,), truncation, generator)
            return z, torch.multinomial(weights, 1, generator=generator)[0]

        z, labels = map(torch.stack, zip(*map(one, seeds), strict=True))
        if label is not None:
            labels = torch.full_like(labels, label)
        return Draws(z, z, torch.zeros_like(labels), labels)

    def __call__(self, inputs: Draws, sampling: Sampling = Sampling()) -> Tensor:
        """Pictures [NCHW] in [-1, 1] at full size. What of `sampling` draws latents is in `inputs` already."""
        styles = {'truncation_psi': sampling.psi, 'truncation_cutoff': sampling.psi_cutoff, 'noise': sampling.noise}
        images = self.run(inputs.z, inputs.labels, **(styles if self.G.num_ws else {}))
        return functional.interpolate(images, self.resolution)   # nearest, while G grows

    def run(self, z: Tensor, labels: Tensor, **options: object) -> Tensor:
        """G on latents [N, z_dim] and labels [N]."""
        return self.G(z, self.c(labels), **options)

    def between(self, first: Draws, second: Draws, where: Tensor, sampling: Sampling) -> Tensor:
        """Pictures [NCHW] at the share `where` [N, 1] of the way from `first` to `second`, of the classes of `first`.

        In w along a line; else in z, along a circle, or a line, which does not leave the cube of uniform latents.
        """
        if not self.G.num_ws:
            path = along_circle if self.latents == 'normal' else torch.lerp
            return self.run(path(first.z, second.z, where), first.labels)
        c = self.c(first.labels)
        w0, w1 = (self.G.mapping(z, c, sampling.psi, sampling.psi_cutoff) for z in (first.z, second.z))   # [N, num_ws, w_dim]
        return self.G.synthesis(w0.lerp(w1, where[:, :, None]), noise='const')

    @torch.no_grad()
    def take_standing_statistics(self, batches: int, batch: int = 32) -> None:
        """Replace G's running batch-norm statistics by their means over `batches` of fakes. Brock et al. 2019, appendix D."""
        with standing_statistics(self.G), Progress('standing statistics', batches, 'batches') as progress:
            for number in range(batches):
                draws = self.draw(number, 0, 'standing', batch).to(self.device)
                self.G(draws.z, self.c(draws.labels))
                progress.add()


class SeveralMaker(LatentMaker):
    """Labels are no classes: they say which of several generators makes a picture, all of them equally often."""

    def __init__(self, G: nn.Module, class_counts: Iterable[int], conditions: Tensor | None = None) -> None:
        super().__init__(G, class_counts, conditions)
        self.class_counts = (1,) * len(G.generators)

    def run(self, z: Tensor, labels: Tensor, **options: object) -> Tensor:
        return super().run(z, labels, made_by=labels.tolist(), **options)


MAKERS = {'several': SeveralMaker}     # of generators that are not run like any other


def make_maker(model: str, G: nn.Module, class_counts: Iterable[int], conditions: str = '') -> LatentMaker:
    """Of a generator that is called `model` in trainer.models.NETWORKS. conditions: of a plan, '' where it takes none."""
    table = torch.tensor(from_text(conditions, G.c_dim)) if conditions else None
    return MAKERS.get(model, LatentMaker)(G, class_counts, table)


def maker_of(plan: Plan, state: TrainState) -> LatentMaker:
    """Of a run's averages, which it sees change."""
    return make_maker(plan.networks['G'].model, state.averages['G'], plan.class_counts, plan.conditions)


def describe_maker(config: Config, plan: Plan) -> dict:
    """What to keep with the averages of a run, so that they make pictures without it; plain JSON values."""
    G = plan.networks['G']
    return {'game': config.game.name, 'model': G.model, 'options': G.options, 'class_names': plan.class_names,
            'class_counts': plan.class_counts} | ({'conditions': plan.conditions} if plan.conditions else {})


def check_batches(batches: int) -> None:
    """ValueError unless standing statistics can be taken of so many; 0: none are."""
    if not 0 <= batches <= MOST_BATCHES:
        raise ValueError(f'--standing-batches {batches} is not between 0 and {MOST_BATCHES}; 16 is usual')


@torch.no_grad()
def generate(maker: LatentMaker, inputs: Draws, sampling: Sampling = Sampling(), batch: int = 16,
             title: str | None = None) -> np.ndarray:
    """Pictures [NHWC] uint8, `batch` at a time. title: of the progress that is told; None: none is."""
    parts, count = [], len(inputs.labels)
    with Progress(title, count, 'pictures') as progress:
        for start in range(0, count, batch):
            part = inputs[start:start + batch].to(maker.device)
            parts.append(to_pictures(maker(part, sampling)))
            progress.add(len(part.labels))
    return np.concatenate(parts)


def to_pictures(images: Tensor) -> np.ndarray:
    """[NCHW] in [-1, 1] -> [NHWC] uint8, rounded and clamped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def along_circle(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """Spherical interpolation of rows [N, z_dim], lengths along with it; Shoemake 1985."""
    angle = torch.acos(torch.cosine_similarity(a, b, dim=1).clamp(-1, 1))[:, None]
    return (torch.sin((1 - where) * angle) * a + torch.sin(where * angle) * b) / torch.sin(angle)
