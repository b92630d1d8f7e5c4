"""StyleGAN, BigGAN and their kin play this game: latents become fakes, and D judges augmented fakes and reals.

Networks, losses, penalties and augmentation become phases. The YAML of a published recipe says which it takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from imago.trainer.config import games
from imago.trainer.config.games import on_gradient
from imago.trainer.config.schedule import Stage, at, stage_at
from imago.trainer.data.labels import to_one_hot
from imago.trainer.data.stream import Batch
from imago.trainer.engine.compiled import compiled
from imago.trainer.engine.graphs import Scalars
from imago.trainer.engine.optim import set_rates
from imago.trainer.engine.phase import Means, Phase
from imago.trainer.engine.randomness import Draws, draw
from imago.trainer.games.augmentation import Augmentation
from imago.trainer.games.game import Game
from imago.trainer.games.growth import at_level, begin_level
from imago.trainer.games.makers import LatentMaker
from imago.trainer.models import mix_styles
from imago.trainer.models.spectral import power_iterate
from imago.trainer.objectives.losses import LOSSES, auxiliary_loss
from imago.trainer.objectives.regularizers import (
    GRADIENT_PENALTIES,
    clip_weights_,
    drift,
    gradient_norm_squared,
    lecam,
    move_mean_,
    orthogonal_penalty,
    path_length_penalty,
    path_lengths,
    weight_so_far,
)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass sees this, on the device."""

    images: Tensor       # [NCHW] uint8 reals
    labels: Tensor       # [N, c_dim] one-hot classes or conditions of the reals
    draws: Draws         # latents for the fakes
    fake_labels: Tensor  # [N, c_dim] those of the fakes, which are the reals' if the loss is paired


class Latent(Game):
    """Trains a generator G, which has an average, and a discriminator D."""

    section = games.Latent
    maker = LatentMaker
    captured = True

    @property
    def stage(self) -> Stage:
        return stage_at(self.config, self.plan.resolution, self.state.nimg)

    @property
    def batch(self) -> int:
        return self.stage.batch

    @property
    def G(self) -> nn.Module:
        return self.state.networks['G']

    @property
    def D(self) -> nn.Module:
        return self.state.networks['D']

    @cached_property
    def generator(self) -> Callable[..., Tensor]:
        """Return G for the main phases, or the synthesis of a G with styles.

        It maps z [N, z_dim], c [N, c_dim] to fakes [NCHW]; with styles, it maps ws [N, num_ws, w_dim] to them.
        """
        network = self.G.synthesis if self.G.num_ws else self.G
        return compiled(network) if self.config.compile else network

    @cached_property
    def discriminator(self) -> Callable[..., Tensor]:
        """Return D for the main phases, without gradient penalties: these differentiate twice, which compiled code cannot.

        It maps images [NCHW], c [N, c_dim] to outputs [N, outputs].
        """
        return compiled(self.D) if self.config.compile else self.D

    @cached_property
    def augment(self) -> Augmentation:
        return Augmentation(self.config.augment, self.plan, self.state, self.scalars)

    @cached_property
    def scalars(self) -> Scalars:
        """Return what the losses read of the schedules; `begin_step` brings it to the present step."""
        scalars = Scalars(next((parameter.device for parameter in self.D.parameters()), torch.device('cpu')))
        self.set_scalars(scalars)
        return scalars

    def set_scalars(self, scalars: Scalars) -> None:
        """Set the weights of gradient penalties, the probability of augmentations, and what LeCam's means must be divided by."""
        penalties, nimg = self.config.regularizers, self.state.nimg
        for name in self.on_gradient:
            scalars.set(name, GRADIENT_PENALTIES[name].factor * at(getattr(penalties, name), nimg))
        if self.config.augment.p is not None:
            scalars.set('augment_p', at(self.config.augment.p, nimg))
        scalars.set('lecam', weight_so_far(penalties.lecam_decay, max(self.state.step, 1)))

    @cached_property
    def made(self) -> list[tuple[Tensor, Tensor | None]]:
        """What `generate` returned in D's phase, with its graph, until G's phase takes it; it is empty between steps."""
        return []

    # A step begins with these

    def begin_step(self) -> None:
        """Set what is a function of the images shown and of rollbacks: rates and, if networks grow, the level of detail."""
        config, state, stage = self.config, self.state, self.stage
        slower = config.guard.lr_factor ** int(state.memory['rollbacks'])
        set_rates(state.optimizers['G'], stage.g_lr * slower, config.optim, state.nimg, self.lazy_g)
        set_rates(state.optimizers['D'], stage.d_lr * slower, config.optim, state.nimg, self.lazy_d)
        self.set_scalars(self.scalars)
        if config.growth is not None:
            begin_level(state, stage, config.growth.restart)

    @cached_property
    def on_gradient(self) -> list[str]:
        """Return the names of D's gradient penalties."""
        return on_gradient(self.config)

    @property
    def lazy_d(self) -> int | None:
        """Return how many main steps D takes for one step of its gradient penalties; None if these are in the main steps."""
        return self.config.regularizers.d_interval if self.on_gradient and self.config.regularizers.d_interval > 1 else None

    @property
    def lazy_g(self) -> float | None:
        penalties = self.config.regularizers
        return penalties.g_interval / self.config.loss.d_steps if penalties.path_length else None

    def phases(self) -> list[Phase]:
        """Return the phases of a step, in order. Lazy penalties weigh `interval` times as much, as they come that seldom."""
        penalties, both = self.config.regularizers, ('G', 'D')
        phases = [Phase('D_main', ('D',), both, 1, self.d_main, self.after_d, lambda: power_iterate(self.D))]
        if self.lazy_d:
            phases.append(Phase('D_reg', ('D',), both, self.lazy_d, self.d_reg))
        phases.append(Phase('G_main', ('G',), both, self.config.loss.d_steps, self.g_main, self.after_g,
                            lambda: power_iterate(self.G)))
        if penalties.path_length:
            phases.append(Phase('G_reg', ('G',), ('G',), penalties.g_interval, self.g_reg, self.after_path_length))
        return phases

    def micro_batches(self, batch: Batch, phase: Phase) -> list[MicroBatch]:
        """Cut this rank's share of the step for `phase`. Its latents are a slice of those for the whole global batch."""
        stage, counts = self.stage, self.plan.class_counts
        images, own = batch.pictures['image'], stage.batch // batch.world
        purpose = 'D_main' if self.config.loss.reuse_fakes and phase.name == 'G_main' else phase.name
        draws = self.draw(batch.nimg, purpose)[batch.rank * own:(batch.rank + 1) * own].to(images.device)
        if self.plan.condition_shape:
            labels, fake_labels = batch.conditions, batch.drawn_conditions
        else:
            labels, fake_labels = to_one_hot(batch.labels, len(counts)), to_one_hot(draws.labels, len(counts))
        if self.paired:   # the logits of a pair of two classes would differ by what D thinks of the classes
            fake_labels = labels
        cuts = [slice(start, start + stage.micro_batch) for start in range(0, own, stage.micro_batch)]
        return [MicroBatch(images[cut], labels[cut], draws[cut], fake_labels[cut]) for cut in cuts]

    @property
    def paired(self) -> bool:
        """Tell whether the loss compares each fake with the real of its row."""
        return self.config.game.loss_facts(self.config).paired

    def draw(self, nimg: int, purpose: str) -> Draws:
        """Draw latents for the whole global batch."""
        G, stage = self.G, self.stage
        return draw(self.config.seed, nimg, purpose, stage.batch, z_dim=G.z_dim, num_ws=G.num_ws - 2 * int(stage.lod),
                    style_mixing=self.config.network.style_mixing if G.num_ws else 0.0, class_counts=self.plan.class_counts,
                    latents=getattr(G, 'latents', 'normal'))

    # The networks show each other these

    def reals(self, micro: MicroBatch) -> Tensor:
        """Return reals [NCHW] in [-1, 1], at the stage's size; while that fades in, they are as blurred as the fakes are."""
        images = to_float(micro.images)
        return images if self.config.growth is None else at_level(images, self.stage.lod)

    def generate(self, micro: MicroBatch) -> tuple[Tensor, Tensor | None]:
        """Return fakes [NCHW] and, if G has styles, the first latent's w [N, w_dim]."""
        if not self.G.num_ws:
            return self.generator(micro.draws.z, micro.fake_labels), None
        ws, w = self.styles(micro)
        return self.generator(ws), w

    def styles(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return mixed styles [N, num_ws, w_dim], and the first latent's w [N, w_dim]."""
        mapping, draws = self.G.mapping, micro.draws
        ws = mapping(draws.z, micro.fake_labels)
        w = ws[:, 0]
        if self.config.network.style_mixing:
            ws = mix_styles(ws, mapping(draws.z_mix, micro.fake_labels), draws.cutoff)
        return ws, w

    def fakes_for_d(self, micro: MicroBatch) -> Tensor:
        """Return fakes [NCHW] that D learns from, which lead to no gradient of G."""
        if not self.config.loss.reuse_fakes:
            with torch.no_grad():
                return self.generate(micro)[0]
        self.G.requires_grad_(True)     # for the graph from which G's phase goes on; D's backward does not reach it
        try:
            self.made.append(self.generate(micro))
        finally:
            self.G.requires_grad_(False)
        return self.made[-1][0].detach()

    def outputs(self, D: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """images [NCHW], labels [N, c_dim] -> D's outputs [N, outputs] for the augmented images."""
        return D(self.augmented(images), labels)

    def augmented(self, images: Tensor) -> Tensor:
        """images [NCHW] -> augmented images [NCHW]"""
        return self.augment(images)

    # D's phases

    def d_main(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        """Return D's loss, a scalar [], and values [] by name."""
        penalties, loss = self.config.regularizers, self.config.loss
        joined = self.on_gradient and not self.lazy_d
        D = self.D if joined else self.discriminator     # compiled code differentiates only once
        fakes, reals = self.fakes_for_d(micro), self.reals(micro)
        if joined:
            reals.requires_grad_()
            fakes.requires_grad_()
        real_outputs, fake_outputs = self.outputs(D, reals, micro.labels), self.outputs(D, fakes, micro.fake_labels)
        real, fake = real_outputs[:, :1], fake_outputs[:, :1]  # [N, 1]
        means = {'logits/real': real.mean(), 'logits/fake': fake.mean(),
                 'logits/real_sign': real.sign().mean(), 'logits/fake_sign': fake.sign().mean()}
        means['loss/D'] = total = self.d_loss(real_outputs, fake_outputs)
        if loss.auxiliary:
            classes = auxiliary_loss(real_outputs[:, 1:], micro.labels) + auxiliary_loss(fake_outputs[:, 1:], micro.fake_labels)
            total, means['loss/D_classes'] = total + loss.auxiliary * classes, classes
        if penalties.drift:
            total = total + penalties.drift * drift(real).mean()
        if penalties.lecam:
            distance = self.lecam_distance(real, fake)
            total, means['penalty/lecam'] = total + penalties.lecam * distance, distance
        if joined:
            penalty, values = self.gradient_penalties(micro, reals, fakes, real, fake)
            total, means = total + penalty, means | values
        return total, means

    def lecam_distance(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return LeCam's distance [] of logits [N, 1] from the means until this step; it is 0 at the first, which has none."""
        biased = [self.state.memory[f'lecam_{name}'] for name in ('real', 'fake')]
        return lecam(real, fake, *(mean / self.scalars['lecam'] for mean in biased)).mean() * (biased[0] != 0)

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """D's outputs [N, outputs] for reals and fakes, the first of which is the logit -> the loss, a scalar []."""
        return LOSSES[self.config.loss.name].d_loss(real[:, :1], fake[:, :1])

    def d_reg(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        """Return D's gradient penalties, a scalar [], and values [] by name."""
        fakes = None
        if any(GRADIENT_PENALTIES[name].needs_fakes for name in self.on_gradient):
            with torch.no_grad():
                fakes = self.generate(micro)[0]
        penalty, means = self.gradient_penalties(micro, self.reals(micro), fakes)
        return penalty * self.config.regularizers.d_interval, means

    def gradient_penalties(self, micro: MicroBatch, reals: Tensor, fakes: Tensor | None, real: Tensor | None = None,
                           fake: Tensor | None = None) -> tuple[Tensor, Means]:
        """Return the weighted sum of D's gradient penalties, a scalar [], and each penalty [] by name, at reals and fakes [NCHW].

        `real` and `fake` are logits [N, 1], if they are known already.
        """
        total, means = reals.new_zeros(()), {}
        for name in self.on_gradient:
            penalty = GRADIENT_PENALTIES[name]
            points = penalty.points(reals, fakes)
            if points is reals and real is not None:
                logits = real
            elif points is fakes and fake is not None:
                logits = fake
            else:
                labels = micro.fake_labels if points is fakes else micro.labels
                points = points.detach().requires_grad_()
                logits = self.outputs(self.D, points, labels)[:, :1]
            cost = penalty.cost(self.norms(gradient_norm_squared(logits, points))).mean()
            total, means[f'penalty/{name}'] = total + self.scalars[name] * cost, cost
        return total, means

    def norms(self, squared: Tensor) -> Tensor:
        """|gradient|^2 of each picture [N] -> that of each of D's inputs [N], at the size at which penalties are taken."""
        if self.config.growth is None or self.config.growth.penalty_at == 'stage':
            return squared
        # Of 4**f pixels that make one pixel of the stage, each has its share of that one's gradient.
        return squared / 4 ** int(self.stage.lod)

    def after_d(self, means: Means) -> None:
        """Do what follows a step of D; `means` are over the global batch."""
        config, memory = self.config, self.state.memory
        if config.regularizers.weight_clip:
            clip_weights_(self.D, config.regularizers.weight_clip)
        if config.regularizers.lecam:
            for name in ('real', 'fake'):
                move_mean_(memory[f'lecam_{name}'], means[f'logits/{name}'], config.regularizers.lecam_decay, self.state.step)
        if self.augment.adapts:
            means['augment/p'] = self.augment.adapt(means['logits/real_sign'], self.stage.batch)

    # G's phases

    def g_main(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        """Return G's loss, a scalar [], and values [] by name; if G has styles, `w_mean` [w_dim] is among them."""
        loss, penalties = self.config.loss, self.config.regularizers
        fakes, w = self.made.pop() if loss.reuse_fakes else self.generate(micro)
        outputs = self.outputs(self.discriminator, fakes, micro.fake_labels)
        means = {} if w is None else {'w_mean': w.mean(dim=0)}
        means['loss/G'] = total = self.g_loss(outputs, micro)
        if loss.auxiliary:
            classes = auxiliary_loss(outputs[:, 1:], micro.fake_labels)
            total, means['loss/G_classes'] = total + loss.auxiliary * classes, classes
        if penalties.orthogonal:
            penalty = orthogonal_penalty(self.G, relaxed=penalties.orthogonal_form == 'relaxed')
            total, means['penalty/orthogonal'] = total + penalties.orthogonal * penalty, penalty
        return total, means

    def g_loss(self, fake: Tensor, micro: MicroBatch) -> Tensor:
        """D's outputs [N, outputs] for the fakes -> the loss, a scalar []."""
        chosen, real = LOSSES[self.config.loss.name], None
        if self.paired:
            with torch.no_grad():
                real = self.outputs(self.discriminator, self.reals(micro), micro.labels)[:, :1]
        return chosen.g_loss(fake[:, :1], real)

    def g_reg(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        """Return G's path length penalty, a scalar [], and values [] by name."""
        penalties = self.config.regularizers
        count = max(micro.draws.z.shape[0] // penalties.path_length_shrink, 1)
        ws = self.styles(micro)[0][:count]
        images = self.G.synthesis(ws)
        lengths = path_lengths(images, ws, torch.randn_like(images))
        # The running mean is that of the previous step, so it does not depend on how the batch is spread.
        penalty = path_length_penalty(lengths, self.state.memory['path_length_mean']).mean()
        return penalty * (penalties.path_length * penalties.g_interval), \
            {'penalty/path_length': penalty, 'path_length': lengths.mean()}

    def after_g(self, means: Means) -> None:
        if 'w_mean' in means:
            self.G.mapping.w_avg.lerp_(means.pop('w_mean'), 1 - self.config.ema.w_avg_beta)

    def after_path_length(self, means: Means) -> None:
        self.state.memory['path_length_mean'].lerp_(means['path_length'], self.config.regularizers.path_length_decay)

    # The guard calls this

    @torch.no_grad()
    def judge(self, pictures: np.ndarray, labels: Tensor) -> Tensor:
        """pictures [NHWC] uint8, classes [N] -> D's logits [N]. In evaluation mode, batch norm mixes and learns nothing."""
        D, size, parts = self.D, self.config.micro_batch, []
        device = next(D.parameters()).device
        images = to_float(torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device))   # [NCHW]
        one_hot = to_one_hot(labels.to(device), len(self.plan.class_counts))
        D.eval()
        for start in range(0, len(images), size):
            parts.append(D(images[start:start + size], one_hot[start:start + size])[:, 0])
        D.train()
        return torch.cat(parts)


def to_float(images: Tensor) -> Tensor:
    """[NCHW] uint8 -> [NCHW] float32 in [-1, 1]"""
    return images.float() / 127.5 - 1
