"""A game of four networks, added from outside: drawings become pictures and back, and each side has its critic.

A drawing is smooth noise, so that one domain of packed pictures is enough. Two networks step together in each phase. Zhu et al.
2017, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", with the non-saturating loss and R1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import softplus

from imago.trainer.config.games import GameSection
from imago.trainer.config.plan import NetworkSpec, Plan
from imago.trainer.config.schedule import stage_at
from imago.trainer.config.schema import Positive, Width
from imago.trainer.data.stream import Batch
from imago.trainer.engine.optim import set_rates
from imago.trainer.engine.phase import Means, Phase
from imago.trainer.engine.randomness import seed_for
from imago.trainer.games import add_game
from imago.trainer.games.game import Game
from imago.trainer.games.makers import Maker, Sampling
from imago.trainer.models import NETWORKS
from imago.trainer.objectives.regularizers import gradient_norm_squared

COARSE = 4    # px of a drawing that one random number colours
FOUR = ('G_ab', 'G_ba', 'D_a', 'D_b')


class Translator(nn.Sequential):
    """Pictures [NCHW] of one domain -> of the other, in [-1, 1]."""

    def __init__(self, resolution: tuple[int, int], channels: int, width: int) -> None:
        super().__init__(nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2),
                         nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())
        self.resolution = tuple(resolution)


class Critic(nn.Sequential):
    """Pictures [NCHW] -> logits [N, 1]."""

    def __init__(self, resolution: tuple[int, int], channels: int, width: int) -> None:
        height, length = resolution
        super().__init__(nn.Conv2d(channels, width, 3, 2, padding=1), nn.LeakyReLU(0.2), nn.Flatten(),
                         nn.Linear(width * (height // 2) * (length // 2), 1))


class FourSection(GameSection):
    own_loss: ClassVar[bool] = True
    name: Literal['four_networks']
    width: Width = 4                  # channels inside
    cycle: Positive = 10.0            # weight of what is lost on the way there and back
    r1: Positive = 1.0

    def plan(self, config, manifest) -> Plan:
        size = config.data.size(manifest.resolution)
        options = {'resolution': list(size), 'channels': manifest.channels, 'width': self.width}
        translator, critic = (NetworkSpec('tiny', role, options, player) for role, player in (('translator', 'g'), ('critic', 'd')))
        return Plan(networks=dict(zip(FOUR, (translator, translator, critic, critic), strict=True)), averaged=FOUR[:2],
                    memory=('cycle_mean',), phases=('D_main', 'G_main'), resolution=tuple(size), channels=manifest.channels)


@dataclass(frozen=True)
class Drawings:
    """What a picture is made of."""

    coarse: Tensor    # [N, C, H / COARSE, W / COARSE] in [-1, 1]
    labels: Tensor    # [N] zeros

    def __getitem__(self, rows: slice) -> 'Drawings':
        return Drawings(self.coarse[rows], self.labels[rows])

    def to(self, device: torch.device) -> 'Drawings':
        return Drawings(self.coarse.to(device), self.labels.to(device))

    @property
    def whole(self) -> Tensor:
        """The drawings at full size [NCHW]."""
        return F.interpolate(self.coarse, scale_factor=COARSE, mode='bilinear')


def draw(count: int, channels: int, size: tuple[int, int], *purpose: object) -> Drawings:
    generator = torch.Generator().manual_seed(seed_for(*purpose))
    coarse = 2 * torch.rand(count, channels, size[0] // COARSE, size[1] // COARSE, generator=generator) - 1
    return Drawings(coarse, torch.zeros(count, dtype=torch.int64))


class FourMaker(Maker):
    """Drawings become pictures by G_ab."""

    def __init__(self, networks: dict[str, nn.Module], class_counts: Iterable[int], conditions: str = '') -> None:
        super().__init__(networks, networks['G_ab'].resolution)
        self.channels = networks['G_ab'][0].in_channels

    def draw(self, seed: int, nimg: int, purpose: str, count: int, truncation: float | None = None) -> Drawings:
        return draw(count, self.channels, self.resolution, seed, nimg, purpose)

    def inputs(self, seeds: Iterable[int], label: int | None = None, truncation: float | None = None,
               conditions: ArrayLike | None = None) -> Drawings:
        self.check_conditions(conditions)
        each = [self.draw(int(seed), 0, 'sample', 1) for seed in seeds]
        return Drawings(*(torch.cat([getattr(one, name) for one in each]) for name in ('coarse', 'labels')))

    def __call__(self, inputs: Drawings, sampling: Sampling = Sampling()) -> Tensor:
        return self.networks['G_ab'](inputs.whole)


@dataclass(frozen=True)
class Both:
    """A micro-batch: reals of both domains."""

    a: Tensor    # [NCHW] in [-1, 1], drawings
    b: Tensor    # [NCHW] in [-1, 1], pictures


class FourNetworks(Game):
    section = FourSection
    made_of = {'G_ab': 'translator', 'G_ba': 'translator'}
    maker = FourMaker

    @property
    def batch(self) -> int:
        return self.config.batch

    def begin_step(self) -> None:
        stage = stage_at(self.config, self.plan.resolution, self.state.nimg)
        slower = self.config.guard.lr_factor ** int(self.state.memory['rollbacks'])
        for name, spec in self.plan.networks.items():
            rate = {'g': stage.g_lr, 'd': stage.d_lr}[spec.player]
            set_rates(self.state.optimizers[name], rate * slower, self.config.optim, self.state.nimg, None)

    def phases(self) -> list[Phase]:
        return [Phase('D_main', ('D_a', 'D_b'), FOUR, 1, self.d_main),
                Phase('G_main', ('G_ab', 'G_ba'), FOUR, 1, self.g_main, self.after_g)]

    def micro_batches(self, batch: Batch, phase: Phase) -> list[Both]:
        pictures = batch.pictures['image']
        own, size = self.batch // batch.world, self.config.micro_batch
        drawings = draw(self.batch, self.plan.channels, self.plan.resolution, self.config.seed, batch.nimg, phase.name)
        a = drawings[batch.rank * own:(batch.rank + 1) * own].to(pictures.device).whole
        b = pictures.float() / 127.5 - 1
        return [Both(a[start:start + size], b[start:start + size]) for start in range(0, own, size)]

    def d_main(self, micro: Both) -> tuple[Tensor, Means]:
        networks = self.state.networks
        with torch.no_grad():
            fakes = {'D_a': networks['G_ba'](micro.b), 'D_b': networks['G_ab'](micro.a)}
        total, means = torch.zeros((), device=micro.a.device), {}
        for name, real in (('D_a', micro.a), ('D_b', micro.b)):
            real = real.detach().requires_grad_()
            on_real, on_fake = networks[name](real), networks[name](fakes[name])
            penalty = self.config.game.r1 / 2 * gradient_norm_squared(on_real, real).mean()
            means[f'penalty/r1/{name}'] = penalty
            total = total + softplus(-on_real).mean() + softplus(on_fake).mean() + penalty
        return total, means | {'loss/D': total}

    def g_main(self, micro: Both) -> tuple[Tensor, Means]:
        G_ab, G_ba, D_a, D_b = (self.state.networks[name] for name in FOUR)
        fake_b, fake_a = G_ab(micro.a), G_ba(micro.b)
        lost = (G_ba(fake_b) - micro.a).abs().mean() + (G_ab(fake_a) - micro.b).abs().mean()
        total = softplus(-D_b(fake_b)).mean() + softplus(-D_a(fake_a)).mean() + self.config.game.cycle * lost
        return total, {'loss/G': total, 'loss/cycle': lost}

    def after_g(self, means: Means) -> None:
        self.state.memory['cycle_mean'].lerp_(means['loss/cycle'], 0.1)


def register() -> None:
    """Add the game to the registry; each process that plays it has to call this."""
    NETWORKS.update({'translator': {'tiny': Translator}, 'critic': {'tiny': Critic}})
    add_game(FourNetworks)
