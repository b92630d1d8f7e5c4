"""25 Gaussians on a grid: how many modes each loss finds, and the share of its samples near one, after the same training.

    python tests/bench/gaussians.py [--steps 2500] [--seeds 3] [--only NAME ...]

All losses train the same MLPs with the same Adam (rates fall linearly to 0), batch, steps and seeds, and take a step of D for
a step of G; results are medians over the seeds. A sample is near a mode within 3 of its standard deviations. A mode is found
if it has at least half of its share of samples.
Uniform samples over the square that the grid fills would find none and have 28% near a mode.
The default takes 5 minutes on one core, when all still learn; --steps 10000, 18 minutes, shows where they end.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from imago.trainer.config.losses import LOSS_FACTS
from imago.trainer.models.spectral import normalise_weights, power_iterate
from imago.trainer.objectives.losses import LOSSES, began_balance, began_d, began_g, mad_gan_d, mad_gan_g
from imago.trainer.objectives.regularizers import (
    GRADIENT_PENALTIES,
    clip_weights_,
    gradient_norm_squared,
    lecam,
)

SPACING, DEVIATION, BATCH, WIDTH, Z_DIM = 2.0, 0.2, 128, 64, 2
AXIS = SPACING * (torch.arange(5) - 2)
MODES = torch.cartesian_prod(AXIS, AXIS)  # [25, 2]


@dataclass(frozen=True)
class Case:
    loss: str
    gradient: dict[str, float] = field(default_factory=dict)   # weights of D's gradient penalties
    lecam: float = 0.0
    clip: float = 0.0
    spectral: bool = False
    generators: int = 1


CASES = {
    'minimax': Case('minimax'),
    'nonsaturating': Case('nonsaturating'),
    'nonsaturating + R1': Case('nonsaturating', {'r1': 0.02}),
    'nonsaturating + LeCam': Case('nonsaturating', lecam=0.1),
    'Wasserstein, clipped': Case('wgan', clip=0.1),
    'Wasserstein + penalty': Case('wgan', {'wgan_gp': 0.1}),
    'least squares': Case('least_squares'),
    'DRAGAN': Case('nonsaturating', {'dragan': 0.1}),
    'BEGAN': Case('began'),
    'hinge': Case('hinge'),
    'hinge + spectral norm': Case('hinge', spectral=True),
    'relativistic + R1 + R2': Case('relativistic', {'r1': 0.02, 'r2': 0.02}),
    'MAD-GAN, 4 generators': Case('mad_gan', generators=4),
}


def mlp(*sizes: int) -> nn.Sequential:
    layers = [part for size in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(*size), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers[:-1])


class Generator(nn.Module):
    """Several share all but the last layer; row i is made by generator i % count."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.layers = count, mlp(Z_DIM, WIDTH, WIDTH, WIDTH, 2 * count)

    def forward(self, number: int) -> Tensor:
        """Points [number, 2]."""
        points = self.layers(torch.randn(number, Z_DIM)).unflatten(1, (self.count, 2))
        return points[torch.arange(number), self.makers(number)]

    def makers(self, number: int) -> Tensor:
        return torch.arange(number) % self.count


class Autoencoder(nn.Module):
    """BEGAN's discriminator: points [N, 2] -> energies [N, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(2, WIDTH, WIDTH, 2, WIDTH, WIDTH, 2)

    def forward(self, points: Tensor) -> Tensor:
        return (points - self.layers(points)).abs().mean(dim=1, keepdim=True)


def reals(number: int) -> Tensor:
    return MODES[torch.randint(len(MODES), (number,))] + DEVIATION * torch.randn(number, 2)


class Match:
    """One case's networks in training."""

    def __init__(self, case: Case, lr: float, steps: int) -> None:
        self.case = case
        self.G = Generator(case.generators)
        outputs = 1 if case.generators == 1 else 1 + case.generators
        self.D = Autoencoder() if case.loss == 'began' else mlp(2, WIDTH, WIDTH, WIDTH, outputs)
        if case.spectral:
            normalise_weights(self.D, 'spectral')
        self.opt_G, self.opt_D = (torch.optim.Adam(network.parameters(), lr, betas=(0.0, 0.99), fused=True)
                                  for network in (self.G, self.D))
        self.decay = [torch.optim.lr_scheduler.LinearLR(opt, 1, 0, steps) for opt in (self.opt_G, self.opt_D)]
        self.k, self.means = torch.zeros(()), {'real': torch.zeros(()), 'fake': torch.zeros(())}

    def step(self) -> None:
        power_iterate(self.D)
        self.opt_D.zero_grad()
        self.d_loss().backward()
        self.opt_D.step()
        if self.case.clip:
            clip_weights_(self.D, self.case.clip)
        self.opt_G.zero_grad()
        self.g_loss().backward()
        self.opt_G.step()
        for decay in self.decay:
            decay.step()

    def d_loss(self) -> Tensor:
        case, x, made = self.case, reals(BATCH), self.G(BATCH).detach()
        real, fake = self.D(x), self.D(made)
        if case.loss == 'mad_gan':
            return mad_gan_d(real, fake, self.G.makers(BATCH))
        if case.loss == 'began':
            self.k, k = began_balance(self.k, real.detach().mean(), fake.detach().mean(), gamma=0.5, rate=0.01), self.k
            return began_d(real, fake, k)
        total = LOSSES[case.loss].d_loss(real, fake)
        for name, weight in case.gradient.items():
            penalty = GRADIENT_PENALTIES[name]
            points = penalty.points(x, made).detach().requires_grad_()
            total = total + weight * penalty.factor * penalty.cost(gradient_norm_squared(self.D(points), points)).mean()
        if case.lecam:
            total = total + case.lecam * lecam(real, fake, self.means['real'], self.means['fake']).mean()
        for name, logits in (('real', real), ('fake', fake)):
            self.means[name].lerp_(logits.detach().mean(), 0.01)
        return total

    def g_loss(self) -> Tensor:
        fake = self.D(self.G(BATCH))
        if self.case.loss == 'mad_gan':
            return mad_gan_g(fake)
        if self.case.loss == 'began':
            return began_g(fake)
        loss = LOSSES[self.case.loss]
        return loss.g_loss(fake, self.D(reals(BATCH)).detach() if LOSS_FACTS[self.case.loss].paired else None)


@torch.no_grad()
def score(points: Tensor) -> tuple[int, float]:
    """Modes found, and the share of points [N, 2] near one."""
    distance, nearest = torch.cdist(points, MODES).min(dim=1)
    near = nearest[distance < 3 * DEVIATION]
    counts = near.bincount(minlength=len(MODES))
    return int((counts >= len(points) / len(MODES) / 2).sum()), len(near) / len(points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=2500)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--lr', type=float, default=3e-3)
    parser.add_argument('--only', nargs='+', choices=CASES, default=CASES, metavar='NAME')
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f'{"loss":24} {"modes":>5} {"near":>6} {"CPU s":>8}   each seed')
    for name in args.only:
        results, start = [], time.process_time()
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            match = Match(CASES[name], args.lr, args.steps)
            for _ in range(args.steps):
                match.step()
            results.append(score(match.G(10_000)))
        seconds = (time.process_time() - start) / args.seeds
        modes, near = (median(values) for values in zip(*results, strict=True))
        each = '  '.join(f'{modes} {near:.0%}' for modes, near in results)
        print(f'{name:24} {modes:5.0f} {near:6.0%} {seconds:8.1f}   {each}', flush=True)


if __name__ == '__main__':
    main()
