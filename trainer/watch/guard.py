"""The guard watches a run for collapse and overfitting. At each report it warns in plain words, and may stop or roll back.

It draws from no random generator and changes no tensor that training reads, so that a run with `guard.action=warn` stays
bitwise the same as one without a guard. The guard's own memory is `TrainState.guard`.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from imago.trainer.config.plan import Plan
from imago.trainer.config.schedule import at
from imago.trainer.data.reals import first_samples, rarest_classes, samples_of_classes
from imago.trainer.data.shards import Dataset, Sample
from imago.trainer.engine.parallel import Strategy
from imago.trainer.engine.results import Found
from imago.trainer.engine.state import TrainState
from imago.trainer.games.game import Game
from imago.trainer.games.makers import Maker, generate
from imago.trainer.models.spectral import spectral_norms
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import CheckpointError, Checkpoints
from imago.trainer.runs.dataset import open_held_out
from imago.trainer.runs.stats import Stats
from imago.trainer.watch.alarms import new_alarms, sounding, update_alarms
from imago.trainer.watch.diversity import area_colours, diversity_of
from imago.trainer.watch.indicators import INDICATORS, warning
from imago.trainer.watch.spikes import MEANS, end_report, new_memory, see_step

A_CLASS = 8              # the fewest fakes of a class
HALF_LIVES = 4           # half-lives that the EMA takes to forget the networks of the start


def new_guard_memory(plan: Plan, state: TrainState) -> dict[str, Tensor]:
    """Return the memory of a guard that has seen nothing yet: what `new_memory` and `new_alarms` return, in one."""
    return new_memory(plan.phases, state.networks.values()) | new_alarms()


@dataclass(frozen=True)
class Verdict:
    rollback: bool       # whether to roll back; else the run stops
    last_good: int       # images shown when all indicators that sound now were last good


class Guard:
    """All ranks make one and call each method together; only rank 0 looks at pictures."""

    def __init__(self, dataset: Dataset, game: Game, maker: Maker, strategy: Strategy):
        self.config, self.game, self.state, self.strategy, self.maker = game.config, game, game.state, strategy, maker
        if dist.is_main():
            self._gather_pictures(dataset)
        state = self.state
        self.verdict = self._judge()
        if self.verdict is not None:
            self._say(f'{", ".join(sounding(state.guard))} sounded when this run was last saved, with guard.action='
                      f'{self.config.guard.action}; guard.action=warn goes on in spite of it')

    def phase_done(self, found: Found) -> None:
        seen = {key: found.means[key] for key in MEANS if key in found.means}
        see_step(self.state.guard, self.game.plan.phases, seen | {f'gradient_norm/{found.phase}': found.gradient_norm})

    def report(self, stats: Stats) -> None:
        """Look, remember, and warn of indicators that begin to sound. Afterwards `verdict` says what is to be done."""
        guard, nimg, began = self.config.guard, self.state.nimg, time.perf_counter()
        thresholds = {str(name): threshold for name, threshold in guard.thresholds.items()}
        values, norms = self._look()
        means, growth = end_report(self.state.guard, self.game.plan.phases, norms)
        values |= self._from_losses(means) | growth
        stats.record({f'guard/{name}': value for name, value in values.items()} |
                     {'guard/rollbacks': int(self.state.memory['rollbacks']), 'seconds/guard': time.perf_counter() - began})
        awake = nimg >= self._start_nimg()
        for name in update_alarms(self.state.guard, values if awake else {}, nimg, patience=guard.patience,
                                  thresholds=thresholds):
            threshold = thresholds.get(name, INDICATORS[name].threshold)
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
        rollback = guard.action == 'rollback' and int(self.state.memory['rollbacks']) < guard.rollbacks
        return Verdict(rollback, min(sounds.values()))

    def _say(self, text: str) -> None:
        if dist.is_main():
            print(f'guard: {text}', file=sys.stderr, flush=True)

    def _gather_pictures(self, dataset: Dataset) -> None:
        """Gather reals, held-out reals and the latents of fakes, all three of the same classes."""
        config, manifest, count = self.config, dataset.manifest, self.config.guard.pictures
        labels, each = [], count
        if self.game.plan.class_counts:
            labels = rarest_classes(manifest.class_counts, count // A_CLASS)
            each = count // len(labels)
        size = self.game.plan.resolution

        def some(of: Dataset) -> list[Sample]:
            if labels:
                return samples_of_classes(of, size, labels, each)
            return first_samples(of, size, 1, config.seed, min(count, of.manifest.num_samples))
        self._reals = some(dataset)
        self._held_out = some(open_held_out(config, manifest)) if config.guard.data else []
        self._draws = self.maker.draw(config.seed, 0, 'grid', max(len(labels), 1) * each)
        if labels:
            self._draws = replace(self._draws, labels=torch.tensor(labels).repeat_interleave(each))

    def _look(self) -> tuple[dict[str, float], list[float]]:
        """Return the indicators that need the networks, and each layer's spectral norm. All ranks get what rank 0 saw."""
        state, found, norms = self.state, {}, []
        networks = [*state.networks.values(), *state.averages.values()]
        with self.strategy.whole(*networks):
            if dist.is_main():
                with largest_half(*networks) as shares:
                    fakes = generate(self.maker, self._draws, batch=self.config.micro_batch)
                    found |= self._overfitting(fakes)
                if shares:
                    found['near_overflow'] = max(shares)
                reals, real_labels = stacked(self._reals)
                # without classes, labels number the generators of MAD-GAN, and are set to 0 here
                labels = self._draws.labels * bool(self.game.plan.class_counts)
                found |= diversity_of(area_colours(fakes), area_colours(reals), labels, real_labels)
                norms = [norm for network in state.networks.values() for norm in spectral_norms(network)]
        return dist.gather((found, norms))[0]

    def _overfitting(self, fakes: np.ndarray) -> dict[str, float]:
        """Return r_v = (D(train) - D(held out)) / (D(train) - D(fake)). Karras et al. 2020 (ADA), equation 1.

        D(...) are means over logits of pictures [NHWC] uint8 that are not augmented.
        """
        if not self._held_out:
            return {}
        fake = self.game.judge(fakes, self._draws.labels)
        if fake is None:    # the game has no such critic
            return {}
        train, held_out = self.game.judge(*stacked(self._reals)), self.game.judge(*stacked(self._held_out))
        found = {'held_out_sign': held_out.sign().mean().item()}
        gap = (train.mean() - fake.mean()).item()
        if gap > 0:     # else D does not even tell reals from fakes, so that it cannot overfit
            found['overfitting'] = (train.mean() - held_out.mean()).item() / gap
        return found

    def _from_losses(self, means: dict[str, float]) -> dict[str, float]:
        """Return the indicators that come from the loss, as far as they have a meaning for this kind of loss."""
        facts, found = self.config.game.loss_facts(self.config), {}
        if facts.signed and 'logits/real_sign' in means:
            found['real_sign'] = means['logits/real_sign']
        if facts.positive and means.get('loss/D', 0) > 0 and 'loss/G' in means:
            found['loss_ratio'] = means['loss/G'] / means['loss/D']
        return found


@contextmanager
def largest_half(*networks: nn.Module) -> Iterator[list[float]]:
    """While the block runs, note each float16 output's largest magnitude, over the largest number of float16, in the list."""
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
    """Stack samples into pictures [NHWC] uint8 and labels [N]."""
    return np.stack([sample.image for sample in samples]), torch.tensor([sample.label for sample in samples])


def roll_back(state: TrainState, checkpoints: Checkpoints, last_good: int) -> bool:
    """Return `state` to the best checkpoint, if it has at most `last_good` images, else to the newest one that has no more.

    Without such a checkpoint, return False and do nothing. Newer checkpoints are set aside as `abandoned-ROLLBACK-IMAGES`.
    The rollback is counted in `state`, which lowers the learning rates. A run that is killed before its next checkpoint rolls
    back once more, and to the same bits. CheckpointError is raised if all these checkpoints are damaged.
    """
    checkpoints.wait()
    best = checkpoints.best
    try:
        target = checkpoints.newest(last_good if best is None or best > last_good else best)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if target is None:
        return False
    count, left = int(state.memory['rollbacks']) + 1, state.nimg
    checkpoints.load(target[0], state)
    checkpoints.abandon(state.nimg, f'abandoned-{count}-')
    state.memory['rollbacks'].fill_(count)
    dist.print0(f'guard: went back from {left / 1000:g} to {state.nimg / 1000:g} kimg with lower learning rates; '
                f'rollback {count}')
    return True
