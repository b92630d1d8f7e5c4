"""What the two networks show each other: latents to fakes, pictures to reals, and both through augmentation to logits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.config.load import Config
from trainer.config.schedule import Stage, at, stage_at
from trainer.data.labels import to_one_hot
from trainer.data.manifest import Manifest
from trainer.data.stream import Batch
from trainer.engine.phase import MicroBatch, Phase
from trainer.engine.randomness import draw
from trainer.engine.state import TrainState, picture_size
from trainer.models import latents_of, mix_styles
from trainer.objectives.augment import make_augment
from trainer.objectives.losses import LOSSES
from trainer.ranks import dist


@dataclass(frozen=True)
class Game:
    """Its mutable part is `state`."""

    config: Config
    manifest: Manifest
    state: TrainState

    @property
    def stage(self) -> Stage:
        return stage_at(self.config, picture_size(self.config, self.manifest), self.state.nimg)

    @cached_property
    def generator(self) -> Callable[..., Tensor]:
        """G for the main phases; of a network with styles, its synthesis."""
        return self._maybe_compiled(self.state.G.synthesis if self.config.network.styles else self.state.G)

    @cached_property
    def discriminator(self) -> Callable[..., Tensor]:
        """D for the main phases. Their penalties differentiate twice, which compiled code cannot."""
        return self._maybe_compiled(self.state.D)

    def _maybe_compiled(self, network: nn.Module) -> Callable[..., Tensor]:
        if not self.config.compile:
            return network
        from torch._inductor import config  # a second to import
        config.fallback_random = True           # layer noise is then what it is without compiling
        return torch.compile(network, dynamic=False)

    @cached_property
    def augment(self) -> Callable[[Tensor, Tensor | float], Tensor]:
        """(images [NCHW], p) -> images."""
        height_width = picture_size(self.config, self.manifest)
        options = self.config.augment
        return make_augment(options.name, options.groups, options.factors, options.policies, self.manifest.channels,
                            height_width)

    def reals(self, micro: MicroBatch) -> Tensor:
        """Pictures [NCHW] in [-1, 1], at the stage's size; while it fades in, as blurred as the fakes are."""
        images, lod = to_float(micro.images), self.stage.lod
        if self.config.growth is None:
            return images
        images = F.avg_pool2d(images, 1 << int(lod))
        if lod % 1:
            coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2)
            images = images.lerp(coarse, lod % 1)
        return images

    def generate(self, micro: MicroBatch) -> tuple[Tensor, Tensor | None]:
        """Fakes [NCHW], and the first latent's w [N, w_dim] of a network with styles."""
        if not self.config.network.styles:
            return self.generator(micro.draws.z, micro.fake_labels), None
        ws, w = self.styles(micro)
        return self.generator(ws), w

    def styles(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Mixed styles [N, num_ws, w_dim], and the first latent's w [N, w_dim]."""
        mapping, draws = self.state.G.mapping, micro.draws
        ws = mapping(draws.z, micro.fake_labels)
        w = ws[:, 0]
        if self.config.network.style_mixing:
            ws = mix_styles(ws, mapping(draws.z_mix, micro.fake_labels), draws.cutoff)
        return ws, w

    def judge(self, D: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """D's outputs [N, outputs] for augmented images [NCHW]; for pairs of them [N / 2, outputs]."""
        p = self.config.augment.p
        images = self.augment(images, self.state.scalars['augment_p'] if p is None else at(p, self.state.nimg))
        if self.config.data.pairs:
            # a pair is one input with twice the channels
            images, labels = images.unflatten(0, (-1, 2)).flatten(1, 2), labels[::2]
        return D(images, labels)

    def makers(self, fakes: Tensor) -> Tensor:
        """Which of several generators made each of the fakes, [N]."""
        return torch.arange(len(fakes), device=fakes.device) % self.config.network.generators

    def micro_batches(self, batch: Batch, phase: Phase) -> list[MicroBatch]:
        """This rank's share of the step, cut for `phase`; its slice of latents drawn for the whole global batch."""
        config, G, stage = self.config, self.state.G, self.stage
        class_counts = self.manifest.class_counts if config.data.conditional else ()
        draws = draw(config.seed, batch.nimg, phase.name, stage.batch, z_dim=G.z_dim, num_ws=G.num_ws - 2 * int(stage.lod),
                     style_mixing=config.network.style_mixing if config.network.styles else 0.0, class_counts=class_counts,
                     identity_dim=config.network.identity_dim, latents=latents_of(G))
        own = stage.batch // dist.world_size()
        draws = draws[dist.rank() * own:(dist.rank() + 1) * own].to(batch.images.device)
        classes = len(class_counts)
        labels, loss = to_one_hot(batch.labels, classes), LOSSES.get(config.loss.name)
        # of two classes, a pair's logits would differ by what D thinks of the classes
        fake_labels = labels if loss and loss.pairs else to_one_hot(draws.labels, classes)
        cuts = [slice(start, start + stage.micro_batch) for start in range(0, own, stage.micro_batch)]
        return [MicroBatch(batch.images[cut], labels[cut], draws[cut], fake_labels[cut]) for cut in cuts]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Images [NCHW] uint8 and labels, on `device`."""
    return replace(batch, images=batch.images.to(device, non_blocking=True), labels=batch.labels.to(device, non_blocking=True))


def to_float(images: Tensor) -> Tensor:
    """[NCHW] uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
