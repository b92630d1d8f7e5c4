"""Networks, losses, penalties and augmentation become phases. What a published recipe says stands in its YAML."""

from functools import cached_property

import torch
from torch import Tensor

from trainer.config.schedule import at
from trainer.engine.optim import restart, set_rates
from trainer.engine.phase import MicroBatch, Phase
from trainer.games.latent import Game
from trainer.models.spectral import power_iterate
from trainer.objectives.augment import adapt_p
from trainer.objectives.losses import LOSSES, auxiliary_loss, mad_gan_d, mad_gan_g
from trainer.objectives.regularizers import (
    GRADIENT_PENALTIES,
    clip_weights_,
    drift,
    gradient_norm_squared,
    lecam,
    move_mean_,
    orthogonal_penalty,
    path_length_penalty,
    path_lengths,
    unbiased,
)

Means = dict[str, Tensor]


class Recipe(Game):
    """A run's training."""

    def begin_step(self) -> None:
        """Set what is a function of the images shown (and of rollbacks): rates, and level of detail where networks grow."""
        config, state, stage = self.config, self.state, self.stage
        slower = config.guard.lr_factor ** int(state.scalars['rollbacks'])
        set_rates(state.opt_G, stage.g_lr * slower, config.optim, state.nimg, self.lazy_g)
        set_rates(state.opt_D, stage.d_lr * slower, config.optim, state.nimg, self.lazy_d)
        if config.growth is None:
            return
        for network in (state.G, state.D):
            for name, buffer in network.named_buffers():
                if name.rpartition('.')[2] == 'lod':
                    buffer.fill_(stage.lod)
        # negative in a fade whose end counts
        side = -stage.side if config.growth.restart == 'both' and stage.lod % 1 else stage.side
        if state.scalars['side'] != side:
            restart(state.opt_G)
            restart(state.opt_D)
            state.scalars['side'].fill_(side)

    @cached_property
    def on_gradient(self) -> list[str]:
        """Names of D's gradient penalties."""
        return [name for name in GRADIENT_PENALTIES if getattr(self.config.regularizers, name)]

    @property
    def lazy_d(self) -> int | None:
        """Main steps of D for one of its gradient penalties, where that is a step of its own."""
        return self.config.regularizers.d_interval if self.on_gradient and self.config.regularizers.d_interval > 1 else None

    @property
    def lazy_g(self) -> float | None:
        penalties = self.config.regularizers
        return penalties.g_interval / self.config.loss.d_steps if penalties.path_length else None

    def phases(self) -> list[Phase]:
        """What happens in a step, in order. Lazy penalties count `interval` times, as they come that seldom."""
        state, penalties = self.state, self.config.regularizers
        phases = [Phase('D_main', state.D, state.opt_D, 1, self.d_main, self.after_d, lambda: power_iterate(state.D))]
        if self.lazy_d:
            phases.append(Phase('D_reg', state.D, state.opt_D, self.lazy_d, self.d_reg))
        phases.append(Phase('G_main', state.G, state.opt_G, self.config.loss.d_steps, self.g_main, self.after_g,
                            lambda: power_iterate(state.G)))
        if penalties.path_length:
            phases.append(Phase('G_reg', state.G, state.opt_G, penalties.g_interval, self.g_reg, self.after_path_length))
        return phases

    def d_main(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        penalties, loss = self.config.regularizers, self.config.loss
        joined = self.on_gradient and not self.lazy_d
        D = self.state.D if joined else self.discriminator     # compiled code differentiates only once
        with torch.no_grad():
            fakes = self.generate(micro)[0]
        reals = self.reals(micro)
        if joined:
            reals.requires_grad_()
            fakes.requires_grad_()
        real_outputs, fake_outputs = self.judge(D, reals, micro.labels), self.judge(D, fakes, micro.fake_labels)
        real, fake = real_outputs[:, :1], fake_outputs[:, :1]  # [N, 1]
        means = {'logits/real': real.mean(), 'logits/fake': fake.mean(),
                 'logits/real_sign': real.sign().mean(), 'logits/fake_sign': fake.sign().mean()}
        if loss.name == 'mad_gan':
            total = mad_gan_d(real_outputs, fake_outputs, self.makers(fakes))
        elif loss.name == 'began':
            total = LOSSES['began'].d_loss(real, fake, self.state.scalars['began_k'])
        else:
            total = LOSSES[loss.name].d_loss(real, fake)
        means['loss/D'] = total
        if loss.auxiliary:
            classes = auxiliary_loss(real_outputs[:, 1:], micro.labels) + auxiliary_loss(fake_outputs[:, 1:], micro.fake_labels)
            total, means['loss/D_classes'] = total + loss.auxiliary * classes, classes
        if penalties.drift:
            total = total + penalties.drift * drift(real).mean()
        if penalties.lecam:
            distance = self.lecam_distance(real, fake)
            total, means['penalty/lecam'] = total + penalties.lecam * distance, distance
        if joined:
            penalty, values = self.gradient_penalties(micro, reals, fakes, real_outputs[:, :1], fake_outputs[:, :1])
            total, means = total + penalty, means | values
        return total, means

    def lecam_distance(self, real: Tensor, fake: Tensor) -> Tensor:
        """Of logits [N, 1] from the means until this step; 0 at the first, which has none."""
        decay, steps = self.config.regularizers.lecam_decay, max(self.state.step, 1)
        biased = [self.state.scalars[f'lecam_{name}'] for name in ('real', 'fake')]
        return lecam(real, fake, *(unbiased(mean, decay, steps) for mean in biased)).mean() * (biased[0] != 0)

    def d_reg(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        fakes = None
        if any(GRADIENT_PENALTIES[name].needs_fakes for name in self.on_gradient):
            with torch.no_grad():
                fakes = self.generate(micro)[0]
        penalty, means = self.gradient_penalties(micro, self.reals(micro), fakes)
        return penalty * self.config.regularizers.d_interval, means

    def gradient_penalties(self, micro: MicroBatch, reals: Tensor, fakes: Tensor | None, real: Tensor | None = None,
                           fake: Tensor | None = None) -> tuple[Tensor, Means]:
        """The weighted sum of D's gradient penalties; `real` and `fake` are logits already there, if any."""
        total, means = reals.new_zeros(()), {}
        at_full_size = self.config.growth is not None and self.config.growth.penalty_at == 'full'
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
                logits = self.judge(self.state.D, points, labels)[:, :1]
            norms = gradient_norm_squared(logits, points)          # [N]
            if self.config.data.pairs:
                norms = norms.unflatten(0, (-1, 2)).sum(dim=1)     # of an input, which is a pair
            if at_full_size:
                # each of the 4**f pixels that make one of the stage's has its share of that one's gradient
                norms = norms / 4 ** int(self.stage.lod)
            cost = penalty.cost(norms).mean()
            weight = at(getattr(self.config.regularizers, name), self.state.nimg)
            total, means[f'penalty/{name}'] = total + penalty.factor * weight * cost, cost
        return total, means

    def g_main(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        loss, penalties = self.config.loss, self.config.regularizers
        fakes, w = self.generate(micro)
        outputs = self.judge(self.discriminator, fakes, micro.fake_labels)
        means = {} if w is None else {'w_mean': w.mean(dim=0)}
        if loss.name == 'mad_gan':
            total = mad_gan_g(outputs)
        else:
            chosen, real = LOSSES[loss.name], None
            if chosen.pairs:
                with torch.no_grad():
                    real = self.judge(self.discriminator, self.reals(micro), micro.labels)[:, :1]
            total = chosen.g_loss(outputs[:, :1], real)
        means['loss/G'] = total
        if loss.auxiliary:
            classes = auxiliary_loss(outputs[:, 1:], micro.fake_labels)
            total, means['loss/G_classes'] = total + loss.auxiliary * classes, classes
        if penalties.orthogonal:
            penalty = orthogonal_penalty(self.state.G, relaxed=penalties.orthogonal_form == 'relaxed')
            total, means['penalty/orthogonal'] = total + penalties.orthogonal * penalty, penalty
        return total, means

    def g_reg(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        penalties = self.config.regularizers
        count = max(micro.draws.z.shape[0] // penalties.path_length_shrink, 1)
        ws = self.styles(micro)[0][:count]
        images = self.state.G.synthesis(ws)
        lengths = path_lengths(images, ws, torch.randn_like(images))
        # the running mean of the previous step: it does not depend on how the batch is spread
        penalty = path_length_penalty(lengths, self.state.scalars['path_length_mean']).mean()
        return penalty * (penalties.path_length * penalties.g_interval), \
            {'penalty/path_length': penalty, 'path_length': lengths.mean()}

    def after_d(self, means: Means) -> None:
        """Once D has moved; `means` are over the global batch."""
        config, scalars = self.config, self.state.scalars
        if config.regularizers.weight_clip:
            clip_weights_(self.state.D, config.regularizers.weight_clip)
        if config.regularizers.lecam:
            for name in ('real', 'fake'):
                move_mean_(scalars[f'lecam_{name}'], means[f'logits/{name}'], config.regularizers.lecam_decay, self.state.step)
        balance = LOSSES[config.loss.name].balance if config.loss.name in LOSSES else None
        if balance is not None:
            k = balance(scalars['began_k'], means['logits/real'], means['logits/fake'], config.loss.began_gamma,
                        config.loss.began_rate)
            means['began/k'] = scalars['began_k'].copy_(k).clone()
        if config.augment.name == 'ada' and config.augment.p is None:
            self.adapt_augmentation(means['logits/real_sign'])
            means['augment/p'] = scalars['augment_p'].clone()

    def adapt_augmentation(self, sign: Tensor) -> None:
        """Each `interval` steps, from the mean sign of D(real) over them."""
        augment, scalars = self.config.augment, self.state.scalars
        scalars['augment_signs'] += sign
        scalars['augment_steps'] += 1
        if scalars['augment_steps'] >= augment.interval:
            images = self.stage.batch * augment.interval
            scalars['augment_p'].copy_(adapt_p(scalars['augment_p'], scalars['augment_signs'] / scalars['augment_steps'],
                                               images, augment.target, augment.speed_kimg))
            scalars['augment_signs'].zero_()
            scalars['augment_steps'].zero_()

    def after_g(self, means: Means) -> None:
        if 'w_mean' in means:
            self.state.G.mapping.w_avg.lerp_(means.pop('w_mean'), 1 - self.config.ema.w_avg_beta)

    def after_path_length(self, means: Means) -> None:
        self.state.scalars['path_length_mean'].lerp_(means['path_length'], self.config.regularizers.path_length_decay)
