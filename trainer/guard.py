"""Watches a run for collapse and overfitting: with each report it looks, warns in plain words, and may stop or roll back.

It draws from no generator and changes no tensor that training reads: a run with `guard.action=warn` has the bits of one
without. What it remembers is in `TrainState.guard`.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from trainer import dist
from trainer.alarms import SIGNALS, sounding, update_alarms, warning
from trainer.checkpoint import CheckpointError, Checkpoints
from trainer.combinations import SIGNED
from trainer.config import Config
from trainer.data.locations import masked
from trainer.data.manifest import Manifest
from trainer.data.shards import Dataset, Sample, ShardError, open_dataset
from trainer.data.stream import check_resolution
from trainer.diversity import area_colours, diversity_of
from trainer.game import to_float
from trainer.images import fixed_draws, generate
from trainer.labels import to_one_hot
from trainer.models.spectral import spectral_norms
from trainer.parallel import Strategy
from trainer.phase import PhaseResult
from trainer.reals import first_samples, rarest_classes, samples_of_classes
from trainer.schedule import at
from trainer.spikes import MEANS, end_report, see_step
from trainer.state import TrainState, picture_size
from trainer.stats import Stats
from trainer.wording import listed

A_CLASS = 8              # fakes of a class, at least
HALF_LIVES = 4           # of the EMA, that it takes to forget the networks of the start
POSITIVE = ('nonsaturating', 'least_squares', 'relativistic')   # losses of both D and G that are at least 0


@dataclass(frozen=True)
class Verdict:
    rollback: bool       # else: stop
    last_good: int       # images shown when no signal that sounds now had begun to rise


class Guard:
    """All ranks make one and call each method together; rank 0 looks at pictures."""

    def __init__(self, config: Config, dataset: Dataset, state: TrainState, strategy: Strategy):
        self.config, self.state, self.strategy = config, state, strategy
        if dist.is_main():
            self._gather_pictures(dataset)
        self.verdict = self._judge()
        if self.verdict is not None:
            self._say(f'{", ".join(sounding(state.guard))} sounded when this run was last saved, with guard.action='
                      f'{config.guard.action}; guard.action=warn goes on in spite of it')

    def phase_done(self, name: str, result: PhaseResult) -> None:
        seen = {key: result.means[key].item() for key in MEANS if key in result.means}
        see_step(self.state.guard, seen | {f'gradient_norm/{name}': result.gradient_norm})

    def report(self, stats: Stats) -> None:
        """Look, remember, and warn of what begins; then `verdict` says what is to be done."""
        guard, nimg, began = self.config.guard, self.state.nimg, time.perf_counter()
        values, norms = self._look()
        means, growth = end_report(self.state.guard, norms)
        values |= self._from_losses(means) | growth
        stats.record({f'guard/{name}': value for name, value in values.items()} |
                     {'guard/rollbacks': int(self.state.scalars['rollbacks']), 'seconds/guard': time.perf_counter() - began})
        awake = nimg >= self._start_nimg()
        for name in update_alarms(self.state.guard, values if awake else {}, nimg, patience=guard.patience,
                                  thresholds=guard.thresholds):
            threshold = guard.thresholds.get(name, SIGNALS[name].threshold)
            text = warning(name, values[name], threshold, nimg, sounding(self.state.guard)[name])
            stats.note(f'guard/warning/{name}', text)
            self._say(text)
        self.verdict = self._judge()

    def _start_nimg(self) -> float:
        start = self.config.guard.start_kimg
        return 1000 * (HALF_LIVES * at(self.config.ema.half_life_kimg, 0) if start is None else start)

    def _judge(self) -> Verdict | None:
        guard, sounds = self.config.guard, sounding(self.state.guard)
        if not sounds or guard.action == 'warn' or self.state.nimg >= self.config.total_nimg:
            return None
        rollback = guard.action == 'rollback' and self.state.scalars['rollbacks'] < guard.rollbacks
        return Verdict(rollback, min(sounds.values()))

    def _say(self, text: str) -> None:
        if dist.is_main():
            print(f'guard: {text}', file=sys.stderr, flush=True)

    def _gather_pictures(self, dataset: Dataset) -> None:
        """Reals, held-out ones and the latents of fakes; of the same classes all three."""
        config, manifest, count = self.config, dataset.manifest, self.config.guard.pictures
        labels, each = [], count
        if config.data.conditional:
            labels = rarest_classes(manifest.class_counts, count // A_CLASS)
            each = count // len(labels)
        size = picture_size(config, manifest)

        def some(of: Dataset) -> list[Sample]:
            if labels:
                return samples_of_classes(of, size, labels, each)
            return first_samples(of, size, 1, config.seed, min(count, of.manifest.num_samples))
        self._reals = some(dataset)
        self._held_out = some(open_held_out(config, manifest)) if config.guard.data else []
        self._draws = fixed_draws(config.seed, max(len(labels), 1) * each, self.state.G_ema, manifest.class_counts)
        if labels:
            self._draws = replace(self._draws, labels=torch.tensor(labels).repeat_interleave(each))

    def _look(self) -> tuple[dict[str, float], list[float]]:
        """Signals that need the networks, and the spectral norm of each of their layers; on all ranks as rank 0 saw them."""
        state, found, norms = self.state, {}, []
        with self.strategy.whole(), self.strategy.whole(state.G_ema):
            if dist.is_main():
                with largest_half(state.G_ema, state.D) as shares:
                    fakes = generate(state.G_ema, self._draws, dist.device(), batch=self.config.micro_batch)
                    found |= self._overfitting(fakes)
                if shares:
                    found['near_overflow'] = max(shares)
                reals, real_labels = stacked(self._reals)
                # where there are no classes, labels name the generators of MAD-GAN
                labels = self._draws.labels * bool(state.G.c_dim)
                found |= diversity_of(area_colours(fakes), area_colours(reals), labels, real_labels)
                norms = spectral_norms(state.G) + spectral_norms(state.D)
        return dist.gather((found, norms))[0]

    def _overfitting(self, fakes: np.ndarray) -> dict[str, float]:
        """(D(train) - D(held out)) / (D(train) - D(fake)), of means, not augmented. Karras et al. 2020 (ADA), equation 1."""
        if not self._held_out:
            return {}
        train, held_out = self._logits(*stacked(self._reals)), self._logits(*stacked(self._held_out))
        fake = self._logits(fakes, self._draws.labels)
        found = {'held_out_sign': held_out.sign().mean().item()}
        gap = (train.mean() - fake.mean()).item()
        if gap > 0:     # else D tells nothing apart, and overfits least of all
            found['overfitting'] = (train.mean() - held_out.mean()).item() / gap
        return found

    @torch.no_grad()
    def _logits(self, pictures: np.ndarray, labels: Tensor) -> Tensor:
        """D's, in evaluation mode: batch norm neither mixes the pictures nor learns from them. [N]"""
        D, size, parts = self.state.D, self.config.micro_batch, []
        images = to_float(torch.from_numpy(pictures).permute(0, 3, 1, 2).to(dist.device()))   # [NCHW]
        one_hot = to_one_hot(labels.to(dist.device()), self.state.G.c_dim)
        D.eval()
        for start in range(0, len(images), size):
            parts.append(D(images[start:start + size], one_hot[start:start + size])[:, 0])
        D.train()
        return torch.cat(parts)

    def _from_losses(self, means: dict[str, float]) -> dict[str, float]:
        """Where the loss gives them a meaning."""
        name, found = self.config.loss.name, {}
        if name in SIGNED and 'logits/real_sign' in means:
            found['real_sign'] = means['logits/real_sign']
        if name in POSITIVE and means.get('loss/D', 0) > 0 and 'loss/G' in means:
            found['loss_ratio'] = means['loss/G'] / means['loss/D']
        return found


@contextmanager
def largest_half(*networks: nn.Module) -> Iterator[list[float]]:
    """Fills the list with each float16 output's largest magnitude, over what float16 can hold."""
    shares: list[float] = []

    def look(module: nn.Module, inputs: object, output: object) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float16:
                shares.append(tensor.abs().max().item() / torch.finfo(torch.float16).max)
    hooks = [module.register_forward_hook(look) for network in networks for module in network.modules()]
    try:
        yield shares
    finally:
        for hook in hooks:
            hook.remove()


def stacked(samples: list[Sample]) -> tuple[np.ndarray, Tensor]:
    """Pictures [NHWC] uint8, and labels [N]."""
    return np.stack([sample.image for sample in samples]), torch.tensor([sample.label for sample in samples])


def open_held_out(config: Config, manifest: Manifest) -> Dataset:
    """The pictures of `guard.data`. ValueError unless they are like those of `manifest`, and others."""
    where = masked(config.guard.data)
    try:
        dataset = open_dataset(config.guard.data, cache_dir=config.data.cache_dir, cache_gb=config.data.cache_gb)
    except ShardError as error:
        raise ValueError(f'guard.data: {error}') from error
    other = dataset.manifest
    if other.digest() == manifest.digest():
        raise ValueError(f'guard.data={where} is the training data itself; pack other pictures of the kind')
    if other.channels != manifest.channels:
        raise ValueError(f'guard.data={where} has {other.channels} channels, the training data {manifest.channels}')
    if config.data.conditional and other.class_names != manifest.class_names:
        raise ValueError(f'guard.data={where} has other classes ({listed(other.class_names) or "none"}) than the '
                         'training data; pack the same sub-folders')
    check_resolution(dataset, picture_size(config, manifest))
    return dataset


def roll_back(state: TrainState, checkpoints: Checkpoints, last_good: int) -> bool:
    """Return `state` to the best checkpoint, if there is one of at most `last_good` images, else to the newest such.

    False, and nothing done, without any.
    Newer checkpoints are set aside, as `abandoned-ROLLBACK-IMAGES`. Its rollback is on the count of `state`, which lowers
    the learning rates; a run that is killed before its next checkpoint comes here once more, and to the same bits.
    CheckpointError if all of them are damaged.
    """
    checkpoints.wait()
    best = checkpoints.best
    try:
        target = checkpoints.newest(last_good if best is None or best > last_good else best)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if target is None:
        return False
    count, left = int(state.scalars['rollbacks']) + 1, state.nimg
    checkpoints.load(target[0], state)
    checkpoints.abandon(state.nimg, f'abandoned-{count}-')
    state.scalars['rollbacks'].fill_(count)
    dist.print0(f'guard: went back from {left / 1000:g} to {state.nimg / 1000:g} kimg with lower learning rates; '
                f'rollback {count}')
    return True
