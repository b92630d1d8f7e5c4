"""While a run trains, its averaged generator is scored against its own dataset."""

import time
from collections.abc import Callable
from pathlib import Path

from imago.trainer.config.load import Config
from imago.trainer.config.plan import Plan
from imago.trainer.data.shards import Dataset
from imago.trainer.engine.parallel import Strategy
from imago.trainer.engine.state import TrainState
from imago.trainer.games import maker_of
from imago.trainer.metrics import record
from imago.trainer.metrics.extractors import make_extractor
from imago.trainer.metrics.features import Stopped
from imago.trainer.metrics.pictures import ShardPictures, fakes_of
from imago.trainer.metrics.protocol import Scores, check_evaluation, evaluate, score_name
from imago.trainer.ranks import dist
from imago.trainer.ranks.precision import without_tf32
from imago.trainer.runs.history import best_evaluation, is_better, read_evaluations


class Evaluation:
    """All ranks make one before the run starts. ValueError is raised for what cannot be measured, or a missing extractor."""

    def __init__(self, config: Config, dataset: Dataset, plan: Plan, state: TrainState):
        self.config, self.folder, self.state = config.evaluate, Path(config.run_dir), state
        self.found_best = False         # whether the last call of `run` found the best scores so far
        self._fakes = fakes_of(maker_of(config, plan, state), self.config)
        self._reals = ShardPictures(dataset, plan.resolution, self.config.most_reals, self.config.seed)
        check_evaluation(self.config, self._fakes, self._reals)
        self._extractor = make_extractor(self.config, dist.device())
        self._best_by = config.checkpoint.best and score_name(config.checkpoint.best, self._extractor)

    def run(self, strategy: Strategy, stopped: Callable[[], bool]) -> Scores | None:
        """Evaluate, all ranks together, and append the result to metrics.jsonl. None if a rank is asked to stop meanwhile."""
        started, kimg = time.perf_counter(), self.state.nimg / 1000
        try:
            with strategy.whole(*self.state.averages.values()), without_tf32():
                scores = evaluate(self._fakes, self._reals, self._extractor, self.config, stopped)
        except Stopped:
            dist.print0(f'the evaluation at {kimg:g} kimg was given up, to stop in time')
            return None
        self.found_best = self._is_best(scores)
        if dist.is_main():
            record.append(self.folder, record.record_of(scores, self.state.nimg))
            print(f'evaluation at {kimg:g} kimg, {time.perf_counter() - started:.0f} s:\n{record.table(scores)}', flush=True)
        return scores

    def best_nimg(self) -> int | None:
        """Return the images shown at the best evaluation before now, by `checkpoint.best`. All ranks call it together."""
        best = self._best_before()
        return best['nimg'] if best else None

    def _is_best(self, scores: Scores) -> bool:
        if not self._best_by:
            return False
        best = self._best_before()
        return best is None or is_better(self._best_by, scores.values[self._best_by], best['values'][self._best_by])

    def _best_before(self) -> dict | None:
        def read() -> dict | None:
            before = [entry for entry in read_evaluations(self.folder) if entry['nimg'] < self.state.nimg]
            return best_evaluation(before, self._best_by)
        return dist.from_main(read) if self._best_by else None


def make_evaluation(config: Config, dataset: Dataset, plan: Plan, state: TrainState) -> Evaluation | None:
    """Return the run's evaluation, or None where `evaluate.interval_kimg` asks for none. All ranks call it together."""
    return dist.together(lambda: Evaluation(config, dataset, plan, state)) if config.evaluate.interval_kimg else None
