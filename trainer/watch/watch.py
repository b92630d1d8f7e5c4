"""This module writes what a run shows of itself, when it is due: figures, grids of pictures, and the keys it has read."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from imago.trainer.data.durable import in_place_of
from imago.trainer.data.reals import first_samples
from imago.trainer.data.shards import Dataset
from imago.trainer.data.stream import Batch
from imago.trainer.engine.parallel import Strategy
from imago.trainer.engine.phase import reads_at_once
from imago.trainer.engine.results import PhaseResult, Unread
from imago.trainer.games import maker_of
from imago.trainer.games.game import Game
from imago.trainer.games.makers import generate
from imago.trainer.models.spectral import top_singular_values
from imago.trainer.ranks import dist
from imago.trainer.runs.stats import Stats
from imago.trainer.watch.evaluation import Evaluation
from imago.trainer.watch.grids import captions_of, grid
from imago.trainer.watch.guard import Guard, Verdict


class Watch:
    """All ranks make one and tell it of each phase and step; rank 0 writes, each rank keeps its own keys."""

    def __init__(self, game: Game, dataset: Dataset, strategy: Strategy, evaluation: Evaluation | None = None,
                 stopped: Callable[[], bool] = lambda: False):
        """`stopped` tells whether this rank was asked to stop, which a long evaluation should not delay."""
        config = game.config
        self.config, self.state, self.strategy, self.folder = config, game.state, strategy, Path(config.run_dir)
        self._unread = Unread()
        self._evaluation, self._stopped, self._pictures = evaluation, stopped, dataset.manifest.num_samples
        self.stats = Stats(self.folder, config.total_nimg, self.state.nimg, dist.is_main(), config.stop_after)
        self._keys = open(self.folder / f'keys-rank{dist.rank()}.jsonl', 'a', buffering=1) if config.log.keys else None
        rows, self.columns = config.log.grid
        self.maker = maker_of(config, game.plan, self.state)
        self.guard = None if config.guard.action == 'off' else Guard(dataset, game, self.maker, strategy)
        if dist.is_main():
            self._inputs = self.maker.draw(config.seed, 0, 'grid', rows * self.columns)
            reals = first_samples(dataset, game.plan.resolution, config.data.lanes, config.seed, rows * self.columns)
            self._classes = game.plan.class_names
            self._save_grid('reals', np.stack([sample.image for sample in reals]), [sample.label for sample in reals])
        if self.state.nimg == 0:
            self.save_fakes()

    @property
    def verdict(self) -> Verdict | None:
        """The guard's verdict, if it wants anything done."""
        return self.guard.verdict if self.guard else None

    def phase_done(self, result: PhaseResult) -> None:
        self._unread.add(result)
        if reads_at_once(result.gradient_norm) or self._unread.is_full:
            self.read()

    def read(self) -> None:
        """Take in what phases have found. It must be called before a checkpoint is saved, as it may raise NonFiniteGradient."""
        for found in self._unread.read():
            self.stats.add(found)
            if self.guard is not None:
                self.guard.phase_done(found)

    def step_done(self, batch: Batch, count: int) -> bool:
        """Show what is due after the state has advanced past `batch`, which is one rank's part of `count` images.

        Returns whether an evaluation found this state to be the best so far.
        """
        nimg, log, total = self.state.nimg, self.config.log, self.config.total_nimg
        self.stats.count_damaged(batch.damaged)
        if self._keys is not None:
            self._keys.write(json.dumps({'nimg': batch.nimg, 'keys': batch.keys}) + '\n')
        self.stats.show(nimg)
        best = False
        intervals = log.interval_kimg, log.grid_kimg, self.config.evaluate.interval_kimg
        if any(each is not None and due(each, nimg, count) for each in intervals) or nimg >= total:
            self.read()
        if self._evaluation is not None and (due(self.config.evaluate.interval_kimg, nimg, count) or nimg >= total):
            with dist.patience('evaluating'):
                best = self._evaluate()
        if due(log.interval_kimg, nimg, count) or nimg >= total:
            if log.singular_values:
                with dist.patience('singular values'):
                    self._record_singular_values()
            # the report at the end may come early; a run that goes on from there must not have it in the guard's memory
            if self.guard is not None and due(log.interval_kimg, nimg, count):
                with dist.patience('the guard'):
                    self.guard.report(self.stats)
            self._report()
        if due(log.grid_kimg, nimg, count) or nimg >= total:
            self.save_fakes()
        return best

    def show_end(self, count: int) -> None:
        """Show how far a run has come that ends after this step of `count` images, before all are shown."""
        if not due(self.config.log.interval_kimg, self.state.nimg, count):
            self._report()
        if not due(self.config.log.grid_kimg, self.state.nimg, count):
            self.save_fakes()

    def close(self) -> None:
        self.stats.close()
        if self._keys is not None:
            self._keys.close()

    def _report(self) -> None:
        self.read()
        self.stats.record({'data/pictures': self._pictures})   # a run may go on with more
        self.stats.report(self.state.nimg)

    def _evaluate(self) -> bool:
        started = time.perf_counter()
        scores = self._evaluation.run(self.strategy, self._stopped)
        self.stats.leave_out(time.perf_counter() - started)
        if scores is not None:
            self.stats.record({f'metrics/{name}': value for name, value in scores.values.items()})
        return scores is not None and self._evaluation.found_best

    def _record_singular_values(self) -> None:
        """Record those of each network's layers. Their sudden rise announces a collapse: Brock et al. 2019, section 4.1."""
        networks = self.state.networks
        with self.strategy.whole(*networks.values()):
            for name, network in networks.items() if dist.is_main() else ():
                for layer, values in top_singular_values(network).items():
                    self.stats.record({f'singular_values/{name}.{layer}/{rank}': value for rank, value in enumerate(values)})

    def save_fakes(self) -> None:
        """Save a grid of what the averages make now. All ranks call it together."""
        with dist.patience('a grid of fakes'), self.strategy.whole(*self.state.averages.values()):
            if dist.is_main():
                fakes = generate(self.maker, self._inputs, batch=self.config.micro_batch)
                self._save_grid(f'fakes-{self.state.nimg / 1000:09.3f}', fakes, self._inputs.labels.tolist())

    def _save_grid(self, name: str, pictures: np.ndarray, labels: list[int]) -> None:
        sheet = grid(pictures, self.columns, captions_of(labels, self._classes))
        path = self.folder / 'grids' / f'{name}.png'
        path.parent.mkdir(exist_ok=True)
        with in_place_of(path) as aside:
            sheet.save(aside, 'png')
        self.stats.add_picture('pictures/' + name.split('-')[0], np.atleast_3d(np.asarray(sheet)), self.state.nimg)


def due(interval_kimg: float, nimg: int, batch: int) -> bool:
    """Tell whether the step of `batch` images that ended at `nimg` crossed a multiple of the interval."""
    interval = interval_kimg * 1000
    return nimg // interval > (nimg - batch) // interval
