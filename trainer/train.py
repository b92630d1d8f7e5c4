"""The training loop, and how a run ends."""

import time
from contextlib import closing

from imago.trainer.command import tell_error
from imago.trainer.config.duration import in_words
from imago.trainer.config.load import Config
from imago.trainer.data.shards import ShardError
from imago.trainer.engine.ema import ema_decay, update_ema
from imago.trainer.engine.phase import run_phase
from imago.trainer.engine.results import NonFiniteGradient
from imago.trainer.games import make_game, make_graphs
from imago.trainer.ranks import dist
from imago.trainer.ranks.stop_signals import StopSignal, StopSignals, asked_to_stop
from imago.trainer.runs.checkpoint import CheckpointError
from imago.trainer.start import Run, open_stream, prepare
from imago.trainer.watch.guard import Verdict, roll_back
from imago.trainer.watch.watch import Watch, due

FINISHED, STOPPED, ROLLED_BACK, GUARDED = 'finished', 'stopped', 'rolled back', 'stopped by the guard'
GUARD_STATUS = 3   # the exit status of GUARDED: a new start of the same command would change nothing


def train(run: Run) -> str:
    """Train to the end, also after rollbacks by the guard. Returns how the run ended. All ranks call it together."""
    began = time.monotonic()
    while (ending := train_on(run, began)) == ROLLED_BACK:
        pass
    config, nimg = run.config, run.state.nimg
    by_time = f'; stop_after={in_words(config.stop_after or 0)} is over, and the same command goes on from there'
    dist.print0(f'{ending} at {nimg / 1000:g} kimg; pictures and checkpoints in {config.run_dir}'
                + {FINISHED: by_time if nimg < config.total_nimg else '', STOPPED: '; the same command goes on from there',
                   GUARDED: '; guard.action=warn goes on from there all the same'}[ending])
    return ending


def train_on(run: Run, began: float) -> str:
    """Train until `total_kimg`, `stop_after`, a stop signal or the guard's verdict. Returns how the round ended.

    began: when this start of the run began to train, in seconds of the monotonic clock.
    """
    config, strategy, state = run.config, run.strategy, run.state
    game = make_game(config, run.plan, state)
    phases, graphs = game.phases(), make_graphs(config, state, dist.device())

    # The stream comes first: its processes start while the scheduler's signals are held, and so they never see them.
    with (closing(open_stream(config, run.dataset, run.plan, state.nimg)) as data, StopSignals() as stop,
          closing(Watch(game, run.dataset, strategy, run.evaluation, lambda: stop.requested)) as watch):
        course = Course(run, stop, watch, began)
        while course.goes_on:
            dist.begin_step(state.nimg)
            batch, count = next(data).to(dist.device()), game.batch
            stop.begin_step()
            game.begin_step()
            for phase in phases:
                if state.step % phase.interval == 0:
                    result = run_phase(phase, game.micro_batches(batch, phase), state, config.seed, strategy, graphs)
                    watch.phase_done(result)
            for name, average in state.averages.items():
                update_ema(average, state.networks[name], ema_decay(state.nimg, count, config.ema))
            state.advance(count)
            course.step_done(count, best=watch.step_done(batch, count))
        course.go_back_or_save()
    return course.ending()


class Course:
    """Whether a run goes on after a step, and how it ends. All ranks make one, call it together, and come to the same answers."""

    def __init__(self, run: Run, stop: StopSignals, watch: Watch, began: float):
        self._run, self._stop, self._watch, self._began = run, stop, watch, began
        self._stopping = False     # whether a rank was asked to stop, or could not save a checkpoint
        self._time_over = False    # whether this start has trained for `stop_after`
        self._best = False         # whether the last step made the networks with the best score so far
        self._went_back = False    # whether the guard has returned the state to an older checkpoint
        self._saved = time.monotonic()    # when the last checkpoint was begun, or this round

    @property
    def goes_on(self) -> bool:
        return self._undisturbed and not self._time_over and self._run.state.nimg < self._run.config.total_nimg

    @property
    def _undisturbed(self) -> bool:
        """Whether neither a stop nor the guard ends the round."""
        return not self._stopping and self._watch.verdict is None

    @property
    def _ends_by_time(self) -> bool:
        """Whether `stop_after` alone ends the run, so that it ends like one that has reached `total_kimg`."""
        return self._undisturbed and self._time_over and self._run.state.nimg < self._run.config.total_nimg

    @property
    def _verdict(self) -> Verdict | None:
        """The guard's. A stop takes precedence: the alarms are saved with the state, and the guard hears them on resume."""
        return None if self._stopping else self._watch.verdict

    def step_done(self, count: int, best: bool) -> None:
        """After a step of `count` images, hear whether a rank must stop, and save a checkpoint that is due."""
        state, checkpoints, kept = self._run.state, self._run.checkpoints, self._run.config.checkpoint
        self._best = best
        now, most = time.monotonic(), self._run.config.stop_after
        late = dist.is_main() and kept.interval_minutes is not None and now - self._saved >= 60 * kept.interval_minutes
        over = dist.is_main() and most is not None and now - self._began >= most
        # the ranks agree on all three by one message, as clocks differ
        self._stopping, late, self._time_over = dist.any_rank_of([self._stop.requested or checkpoints.failed, late, over])
        if self._undisturbed and (late or best or due(kept.interval_kimg, state.nimg, count)):
            self._saved = time.monotonic()
            self._watch.read()
            checkpoints.save(state, best)
            if late:
                self._watch.save_fakes()
        if self._ends_by_time:
            self._watch.show_end(count)

    def go_back_or_save(self) -> None:
        """After the last step, return to an older checkpoint if the guard wants it and there is one; else save the state."""
        self._watch.read()
        state, checkpoints, verdict = self._run.state, self._run.checkpoints, self._verdict
        with dist.patience('going back'):
            self._went_back = verdict is not None and verdict.rollback and roll_back(state, checkpoints, verdict.last_good)
        if self._went_back:
            return
        checkpoints.save(state, self._best)
        checkpoints.wait()
        if self._ends_by_time:
            dist.together(lambda: self._run.folder.mark_time_over(), main_only=True)

    def ending(self) -> str:
        """How the round ended, asked for when `StopSignals` has been left.

        From then on a signal is held until the next round begins, so that none is lost between this question and that round.
        """
        if self._went_back and not dist.any_rank(self._stop.requested):
            return ROLLED_BACK
        if self._ends_by_time or self._run.state.nimg >= self._run.config.total_nimg:
            return FINISHED
        return STOPPED if self._went_back or self._verdict is None else GUARDED


def begin(config: Config) -> int:
    """Start or resume a run, and train it. Returns this rank's exit status. All ranks call it together."""
    try:
        dist.init(config.device, config.parallel.timeout_minutes)
        run = prepare(config)
    except (ValueError, OSError) as error:
        dist.shutdown()
        return fail(error, 2)
    except (RuntimeError, StopSignal) as error:
        return end(error)
    try:
        ending = train(run)
    except Exception as error:
        return end(error)
    finally:
        dist.shutdown()
    return GUARD_STATUS if ending == GUARDED else 0


def end(error: Exception) -> int:
    """The exit status after a failure of this rank, or of one that it needs.

    An error that nobody outside of this program can have caused is raised again, with its traceback.
    """
    if isinstance(error, StopSignal):
        dist.tell_failure(f'{error} while it waited for its data', 0)
        dist.print0(f'{STOPPED} before the first step, while waiting for data: {error}; the same command starts again')
        return 0
    lost = dist.why_lost(error)
    if lost is not None:
        message, status = lost
        tell_error('imago train', message)
        return 0 if asked_to_stop() else status
    status = 2 if isinstance(error, (CheckpointError, OSError)) else 1
    dist.tell_failure(str(error) or repr(error), status)
    if not isinstance(error, (CheckpointError, OSError, ShardError, NonFiniteGradient)):
        raise error
    return fail(error, status)


def fail(error: Exception, status: int, prog: str = 'imago train') -> int:
    """Tell the error in one line, and return `status`. Rank 0 alone tells an error that all ranks share."""
    if dist.is_main() or isinstance(error, (ShardError, OSError)):
        tell_error(prog, error)
    return status
