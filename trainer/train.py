"""`imago train`: a run, from configuration to last checkpoint. The same command starts and resumes it."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from trainer import dist
from trainer.checkpoint import CheckpointError, Checkpoints
from trainer.config import Config, load_config, parse_config, to_yaml
from trainer.data.locations import masked
from trainer.data.manifest import Manifest
from trainer.data.order import Order
from trainer.data.shards import Dataset, ShardError, open_dataset
from trainer.data.stream import Batch, check_resolution, stream
from trainer.ema import ema_decay, update_ema
from trainer.evaluation import Evaluation, make_evaluation
from trainer.game import to_device
from trainer.guard import open_held_out, roll_back
from trainer.models import num_parameters
from trainer.parallel import Strategy, make_strategy
from trainer.phase import NonFiniteGradient, run_phase
from trainer.recipe import Recipe
from trainer.resolution import base_and_doublings
from trainer.run_folder import RunFolder, refuse_changes
from trainer.schedule import check_growth, stage_at
from trainer.signals import StopSignal, StopSignals, asked_to_stop
from trainer.state import TrainState, make_state, network_options, picture_size
from trainer.tools.preflight import check_disk, describe_run
from trainer.watch import Watch, due

FINISHED, STOPPED, ROLLED_BACK, GUARDED = 'finished', 'stopped', 'rolled back', 'stopped by the guard'
GUARD_STATUS = 3   # exit status of GUARDED: to start it again would change nothing


@dataclass(frozen=True)
class Run:
    """A run that is ready to start or to go on."""

    config: Config
    dataset: Dataset
    strategy: Strategy
    state: TrainState
    checkpoints: Checkpoints
    folder: RunFolder | None     # rank 0 holds it
    evaluation: Evaluation | None


def prepare(config: Config) -> Run:
    """Check everything that can be checked, and resume. ValueError, on all ranks, for what the user can mend."""
    dist.together(lambda: config.check_world(dist.world_size()))
    dataset = dist.together(lambda: open_checked(config))
    if dist.is_main() and not all(shard.checksums for shard in dataset.manifest.shards):
        print(f'note: the pictures of {masked(config.data.path)} were packed without checksums, by an older imago, so that a '
              'flipped bit may go unseen; imago pack --verify finds damage, and packing again adds them', file=sys.stderr)
    folder = dist.together(lambda: RunFolder(config), main_only=True)
    strategy = make_strategy(config.parallel)
    state = make_state(config, dataset.manifest, dist.device(), strategy)
    dist.together(lambda: check_disk(Path(config.run_dir), state), main_only=True)
    evaluation = make_evaluation(config, dataset, state)
    checkpoints = resume(config, dataset.manifest, state)
    checkpoints.best = evaluation and evaluation.best_nimg()
    if folder is not None:
        folder.record(config)
    return Run(config, dataset, strategy, state, checkpoints, folder, evaluation)


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
    recipe = Recipe(config, run.dataset.manifest, state)
    phases = recipe.phases()

    # the stream first: its processes start while the scheduler's signals are held, and never see them
    with (closing(open_stream(config, run.dataset, state.nimg)) as data, StopSignals() as stop,
          closing(Watch(config, run.dataset, state, strategy, run.evaluation, lambda: stop.requested)) as watch):
        stopping = best = False
        while not stopping and watch.verdict is None and state.nimg < config.total_nimg:
            dist.begin_step(state.nimg)
            batch, count = to_device(next(data), dist.device()), recipe.stage.batch
            stop.begin_step()
            recipe.begin_step()
            for phase in phases:
                if state.step % phase.interval == 0:
                    result = run_phase(phase, recipe.micro_batches(batch, phase), config.seed, state.nimg, strategy)
                    watch.phase_done(phase.name, result)
            update_ema(state.G_ema, state.G, ema_decay(state.nimg, count, config.ema))
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


def open_checked(config: Config) -> Dataset:
    """The dataset, once it is certain that `config` can be trained on it. ValueError otherwise."""
    try:
        dataset = open_dataset(config.data.path, cache_dir=config.data.cache_dir, cache_gb=config.data.cache_gb)
    except ShardError as error:
        raise ValueError(f'data.path: {error}') from error
    manifest = dataset.manifest
    if config.data.conditional and not manifest.class_names:
        raise ValueError(f'data.conditional=true, but {masked(config.data.path)} has no labels; pack a folder with one '
                         'sub-folder a class, or give imago pack --labels FILE')
    if config.data.pairs:
        check_pairs(manifest)
    if config.data.resolution is None and manifest.resolution is None:
        raise ValueError(f'{masked(config.data.path)} holds pictures of different sizes; pack them with imago pack --resolution')
    base_and_doublings(picture_size(config, manifest))
    check_growth(config, picture_size(config, manifest))
    check_resolution(dataset, picture_size(config, manifest))
    Order(manifest, config.data.lanes, config.seed)
    if config.guard.data:
        open_held_out(config, manifest)
    return dataset


def check_pairs(manifest: Manifest) -> None:
    """ValueError unless each class, here an identity, has two pictures."""
    if not manifest.class_names:
        raise ValueError('data.pairs=true, but the dataset has no labels to tell identities; pack one sub-folder an identity')
    for name, count in zip(manifest.class_names, manifest.class_counts, strict=True):
        if count == 1:
            raise ValueError(f'data.pairs=true, but identity {name} has a single picture; pack two or more of each')


def resume(config: Config, manifest: Manifest, state: TrainState) -> Checkpoints:
    """Load the newest whole checkpoint into `state`, if there is one. ValueError if it is of another run."""
    about = {'config': config.model_dump(mode='json'), 'dataset': manifest.digest(), 'pictures': manifest.num_samples,
             'parameters': {'G': num_parameters(state.G), 'D': num_parameters(state.D)},
             'generator': {'model': config.network.name, 'options': network_options(config, manifest)[0],
                           'class_names': manifest.class_names if config.data.conditional else (),
                           'class_counts': manifest.class_counts if config.data.conditional else ()}}
    checkpoints = Checkpoints(Path(config.run_dir) / 'checkpoints', config.checkpoint.keep, about)
    newest = checkpoints.newest()
    if newest is None:
        return checkpoints
    path, seal = newest
    changes = refuse_changes(parse_config(seal['config'], str(path)), config, str(path))
    if seal['dataset'] != about['dataset']:
        raise ValueError(f'{path} was trained on another dataset than {masked(config.data.path)}; choose another run_dir')
    checkpoints.load(path, state)
    dist.print0(f'resumed from {path} at {state.nimg / 1000:g} kimg' + (f'; changed: {changes}' if changes else ''))
    return checkpoints


def open_stream(config: Config, dataset: Dataset, nimg: int) -> Iterator[Batch]:
    data = config.data
    size = picture_size(config, dataset.manifest)
    return stream(dataset, batch=lambda shown: stage_at(config, size, shown).batch, lanes=data.lanes, seed=config.seed,
                  rank=dist.rank(), world=dist.world_size(), nimg=nimg,
                  resolution=size, flip=data.flip, workers=data.workers, pairs=data.pairs,
                  pin_memory=dist.device().type == 'cuda')


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='imago train', description=__doc__,
                                     epilog='imago train also takes --gpus N: N processes here, by torchrun.')
    parser.add_argument('config', help='a YAML file, or the name of one in configs/')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='dotted keys, e.g. data.path=my-shards batch=32')
    parser.add_argument('--dry-run', action='store_true', help='print the configuration, parameter counts, memory and disk')
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        if options.dry_run:
            config.check_world(dist.world_size())
            dist.print0(to_yaml(config) + describe_run(config, open_checked(config).manifest, dist.world_size()))
            return 0
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
        print(f'imago train: error: {message}', file=sys.stderr, flush=True)
        return 0 if asked_to_stop() else status
    status = 2 if isinstance(error, (CheckpointError, OSError)) else 1
    dist.tell_failure(str(error) or repr(error), status)
    if not isinstance(error, (CheckpointError, OSError, ShardError, NonFiniteGradient)):
        raise error
    return fail(error, status)


def fail(error: Exception, status: int, prog: str = 'imago train') -> int:
    """One line for people; errors that all ranks share are told once."""
    if dist.is_main() or isinstance(error, (ShardError, OSError)):
        print(f'{prog}: error: {error}', file=sys.stderr, flush=True)
    return status
