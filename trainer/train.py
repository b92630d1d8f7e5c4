"""The training loop, and how a run ends."""

from contextlib import closing

from imago.trainer.command import tell_error
from imago.trainer.config.load import Config
from imago.trainer.data.shards import ShardError
from imago.trainer.engine.ema import ema_decay, update_ema
from imago.trainer.engine.phase import NonFiniteGradient, run_phase
from imago.trainer.games import make_game
from imago.trainer.ranks import dist
from imago.trainer.ranks.stop_signals import StopSignal, StopSignals, asked_to_stop
from imago.trainer.runs.checkpoint import CheckpointError
from imago.trainer.start import Run, open_stream, prepare
from imago.trainer.watch.guard import roll_back
from imago.trainer.watch.watch import Watch, due

FINISHED, STOPPED, ROLLED_BACK, GUARDED = 'finished', 'stopped', 'rolled back', 'stopped by the guard'
GUARD_STATUS = 3   # exit status of GUARDED: to start it again would change nothing


def train(run: Run) -> str:
    """Train to the end; go back and on where the guard says so. Returns how it ended. All ranks call it together."""
    while (ending := train_on(run)) == ROLLED_BACK:
        pass
    dist.print0(f'{ending} at {run.state.nimg / 1000:g} kimg; pictures and checkpoints in {run.config.run_dir}'
                + {FINISHED: '', STOPPED: '; the same command goes on from there',
                   GUARDED: '; guard.action=warn goes on from there all the same'}[ending])
    return ending


def train_on(run: Run) -> str:
    """Train until `total_kimg`, a stop signal or the guard's verdict."""
    config, strategy, state, checkpoints = run.config, run.strategy, run.state, run.checkpoints
    game = make_game(config, run.plan, state)
    phases = game.phases()

    # the stream first: its processes start while the scheduler's signals are held, and never see them
    with (closing(open_stream(config, run.dataset, run.plan, state.nimg)) as data, StopSignals() as stop,
          closing(Watch(game, run.dataset, strategy, run.evaluation, lambda: stop.requested)) as watch):
        stopping = best = False
        while not stopping and watch.verdict is None and state.nimg < config.total_nimg:
            dist.begin_step(state.nimg)
            batch, count = next(data).to(dist.device()), game.batch
            stop.begin_step()
            game.begin_step()
            for phase in phases:
                if state.step % phase.interval == 0:
                    result = run_phase(phase, game.micro_batches(batch, phase), state, config.seed, strategy)
                    watch.phase_done(phase.name, result)
            for name, average in state.averages.items():
                update_ema(average, state.networks[name], ema_decay(state.nimg, count, config.ema))
            state.advance(count)
            best = watch.step_done(batch, count)
            stopping = dist.any_rank(stop.requested or checkpoints.failed)
            if not stopping and watch.verdict is None and (best or due(config.checkpoint.interval_kimg, state.nimg, count)):
                checkpoints.save(state, best)
        # a stop goes before: what sounds is saved with the state, and heard again
        verdict = None if stopping else watch.verdict
        with dist.patience('going back'):
            back = verdict is not None and verdict.rollback and roll_back(state, checkpoints, verdict.last_good)
        if not back:
            checkpoints.save(state, best)
            checkpoints.wait()
    # no longer ours, signals wait again: none is lost between this and the next round
    if back and not dist.any_rank(stop.requested):
        return ROLLED_BACK
    if state.nimg >= config.total_nimg:
        return FINISHED
    return STOPPED if back or verdict is None else GUARDED


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
    """After a failure of this rank, or of one that it needs. Errors of our own making keep their traceback."""
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
    """One line for people; errors that all ranks share are told once."""
    if dist.is_main() or isinstance(error, (ShardError, OSError)):
        tell_error(prog, error)
    return status
