"""Networks, losses and penalties become phases. What a published recipe says is here and in its YAML."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from trainer import dist
from trainer.config import Config
from trainer.data.manifest import Manifest
from trainer.data.stream import Batch
from trainer.labels import to_one_hot
from trainer.losses import LOSSES
from trainer.models import mix_styles
from trainer.phase import MicroBatch, Phase
from trainer.randomness import draw
from trainer.regularizers import path_length_penalty, path_lengths, r1_penalty
from trainer.state import TrainState

Means = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """StyleGAN2's training. Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN"."""

    config: Config
    manifest: Manifest
    state: TrainState

    def phases(self) -> list[Phase]:
        """What happens in a step, in order. Lazy penalties count `interval` times, as they come that seldom."""
        loss, state = self.config.loss, self.state
        phases = [Phase('D_main', state.D, state.opt_D, 1, self.d_main)]
        if loss.r1_gamma:
            phases.append(Phase('D_reg', state.D, state.opt_D, loss.r1_interval, self.d_reg))
        phases.append(Phase('G_main', state.G, state.opt_G, 1, self.g_main, self.move_w_avg))
        if loss.pl_weight:
            phases.append(Phase('G_reg', state.G, state.opt_G, loss.pl_interval, self.g_reg, self.move_pl_mean))
        return phases

    @cached_property
    def synthesis(self) -> Callable[..., Tensor]:
        """G's synthesis network for the main phases. Their penalties differentiate twice, which compiled code cannot."""
        return self.maybe_compiled(self.state.G.synthesis)

    @cached_property
    def discriminator(self) -> Callable[..., Tensor]:
        """D for the main phases."""
        return self.maybe_compiled(self.state.D)

    def maybe_compiled(self, network: nn.Module) -> Callable[..., Tensor]:
        if not self.config.compile:
            return network
        from torch._inductor import config  # a second to import
        config.fallback_random = True           # layer noise is then what it is without compiling
        return torch.compile(network, dynamic=False)

    def d_main(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        with torch.no_grad():
            fakes = self.generate(micro)[0]
        real = self.discriminator(micro.images, micro.labels)  # [N, 1]
        fake = self.discriminator(fakes, micro.fake_labels)
        loss = LOSSES[self.config.loss.name].d_loss(real, fake)
        return loss, {'loss/D': loss, 'logits/real': real.mean(), 'logits/fake': fake.mean(),
                      'logits/real_sign': real.sign().mean(), 'logits/fake_sign': fake.sign().mean()}

    def d_reg(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        images = micro.images.detach().requires_grad_()
        penalty = r1_penalty(self.state.D(images, micro.labels), images).mean()
        loss = self.config.loss
        return penalty * (loss.r1_gamma / 2 * loss.r1_interval), {'penalty/r1': penalty}

    def g_main(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        fakes, w = self.generate(micro)
        loss = LOSSES[self.config.loss.name].g_loss(self.discriminator(fakes, micro.fake_labels))
        return loss, {'loss/G': loss, 'w_mean': w.mean(dim=0)}

    def g_reg(self, micro: MicroBatch) -> tuple[Tensor, Means]:
        loss = self.config.loss
        count = max(micro.draws.z.shape[0] // loss.pl_batch_shrink, 1)
        ws = self.styles(micro)[0][:count]
        images = self.state.G.synthesis(ws)
        lengths = path_lengths(images, ws, torch.randn_like(images))
        # the running mean of the previous step: it does not depend on how the batch is spread
        penalty = path_length_penalty(lengths, self.state.pl_mean).mean()
        return penalty * (loss.pl_weight * loss.pl_interval), {'penalty/path_length': penalty, 'path_length': lengths.mean()}

    def styles(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Mixed styles [N, num_ws, w_dim], and the first latent's w [N, w_dim]."""
        mapping, draws = self.state.G.mapping, micro.draws
        ws = mapping(draws.z, micro.fake_labels)
        w = ws[:, 0]
        if self.config.loss.style_mixing:
            ws = mix_styles(ws, mapping(draws.z_mix, micro.fake_labels), draws.cutoff)
        return ws, w

    def generate(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Fakes [NCHW] and the first latent's w [N, w_dim]."""
        ws, w = self.styles(micro)
        return self.synthesis(ws), w

    def move_w_avg(self, means: Means) -> None:
        self.state.G.mapping.w_avg.lerp_(means.pop('w_mean'), 1 - self.config.ema.w_avg_beta)

    def move_pl_mean(self, means: Means) -> None:
        self.state.pl_mean.lerp_(means['path_length'], self.config.loss.pl_decay)

    def micro_batches(self, batch: Batch, phase: Phase) -> list[MicroBatch]:
        """This rank's share of the step, cut for `phase`; its slice of latents drawn for the whole global batch."""
        config, G = self.config, self.state.G
        class_counts = self.manifest.class_counts if G.c_dim else ()
        draws = draw(config.seed, batch.nimg, phase.name, config.batch, z_dim=G.z_dim, num_ws=G.num_ws,
                     style_mixing=config.loss.style_mixing, class_counts=class_counts)
        own = config.batch // dist.world_size()
        draws = draws[dist.rank() * own:(dist.rank() + 1) * own].to(batch.images.device)
        labels, fake_labels = to_one_hot(batch.labels, G.c_dim), to_one_hot(draws.labels, G.c_dim)
        cuts = [slice(start, start + config.micro_batch) for start in range(0, own, config.micro_batch)]
        return [MicroBatch(batch.images[cut], labels[cut], draws[cut], fake_labels[cut]) for cut in cuts]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Images [NCHW] uint8 -> float32 in [-1, 1], and labels, on `device`."""
    images = batch.images.to(device, non_blocking=True).float() / 127.5 - 1
    return replace(batch, images=images, labels=batch.labels.to(device, non_blocking=True))
