"""This module makes a run ready to start or to go on. Everything that can be checked is checked before anything is made."""

import json
import sys
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from imago.trainer.config.load import Config, parse_kept
from imago.trainer.config.plan import Plan
from imago.trainer.config.schedule import stage_at
from imago.trainer.data.conditions import to_text
from imago.trainer.data.locations import masked
from imago.trainer.data.reals import first_conditions
from imago.trainer.data.shards import Dataset
from imago.trainer.data.stream import Batch, stream
from imago.trainer.engine.parallel import Strategy, make_strategy
from imago.trainer.engine.state import TrainState, make_state
from imago.trainer.games import make_graphs
from imago.trainer.models import num_parameters
from imago.trainer.models.batch_norm import has_batch_norm
from imago.trainer.plan.preflight import check_disk, check_memory, describe_run
from imago.trainer.ranks import dist
from imago.trainer.ranks.backend import agree_on_kernels
from imago.trainer.ranks.device import unused_gpu
from imago.trainer.ranks.precision import describe_promise, set_precision
from imago.trainer.runs.checkpoint import Checkpoints
from imago.trainer.runs.dataset import lanes_of, open_checked
from imago.trainer.runs.description import describe_maker
from imago.trainer.runs.run_folder import (
    RunFolder,
    check_same_run,
    refuse_changes,
    told_of_micro_batches,
)
from imago.trainer.watch.evaluation import Evaluation, make_evaluation
from imago.trainer.watch.guard import new_guard_memory

MAY_DIFFER = ('class_counts', 'conditions', 'plugins')    # facts of the generator that another dataset or start may change


@dataclass(frozen=True)
class Run:
    """A run that is ready to start or to go on."""

    config: Config
    plan: Plan
    dataset: Dataset
    strategy: Strategy
    state: TrainState
    checkpoints: Checkpoints
    folder: RunFolder | None     # only rank 0 has it
    evaluation: Evaluation | None


def prepare(config: Config) -> Run:
    """Check everything that can be checked, then make the run's folder, and resume.

    ValueError is raised, on all ranks, for what the user can mend.
    """
    config, dataset = check(config)
    kind = dist.device().type
    if dist.is_main() and kind == 'cpu' and config.device == 'auto' and (told := unused_gpu()):
        print(f'warning: {told}', file=sys.stderr)
    if dist.is_main() and not all(shard.checksums for shard in dataset.manifest.shards):
        print(f'note: the pictures of {masked(config.data.path)} were packed without checksums, by an older imago, so that a '
              'flipped bit may go unseen; imago pack --verify finds damage, and packing again adds them', file=sys.stderr)
    plan = config.game.plan(config, dataset.manifest)
    if plan.condition_shape:
        plan = replace(plan, conditions=dist.from_main(lambda: to_text(first_conditions(dataset))))
    dist.together(lambda: check_memory(config, plan))
    precision = config.precision
    set_precision(kind, tf32=precision.tf32, cudnn_benchmark=precision.cudnn_benchmark, deterministic=precision.deterministic)
    kernels = agree_on_kernels(kind)
    strategy = make_strategy(config.parallel)
    state = make_state(config, plan, dist.device(), strategy)
    make_graphs(config, state, dist.device())    # it may refuse
    state.guard |= new_guard_memory(plan, state)
    dist.together(lambda: check_disk(Path(config.run_dir), plan, state), main_only=True)
    evaluation = make_evaluation(config, dataset, plan, state)
    folder = dist.together(lambda: RunFolder(config), main_only=True)
    checkpoints = resume(config, dataset, plan, state, kernels)
    checkpoints.best = evaluation.best_nimg() if evaluation else None
    if folder is not None:
        folder.record(config)
        lines = describe_run(config, plan, dataset.manifest, state.networks, kind)
        if kind == 'cuda':
            promise = describe_promise(cudnn_benchmark=precision.cudnn_benchmark, deterministic=precision.deterministic)
            lines.append(f'precision     {promise}')
        print(*lines, f'kernels       {kernels}',
              f'run           {config.run_dir}: {state.nimg / 1000:g} of {config.total_kimg:g} kimg',
              sep='\n', flush=True)
    return Run(config, plan, dataset, strategy, state, checkpoints, folder, evaluation)


def check(config: Config) -> tuple[Config, Dataset]:
    """Return `config` as this run has it, and its dataset, once the run can certainly be made here. ValueError otherwise."""
    world = dist.world_size()
    dist.together(lambda: config.check_world(world))
    dataset = dist.together(lambda: open_checked(config))
    lanes = dist.from_main(lambda: lanes_of(config, dataset, world))
    config = config.model_copy(update={'data': config.data.model_copy(update={'lanes': lanes})})
    dist.together(lambda: check_same_run(Path(config.run_dir), config), main_only=True)
    return config, dataset


def resume(config: Config, dataset: Dataset, plan: Plan, state: TrainState, kernels: str) -> Checkpoints:
    """Load the newest whole checkpoint into `state`, if there is one. ValueError if it is of another run.

    `kernels` describes what decides about rounding; see `agree_on_kernels`.
    """
    about = {'config': config.model_dump(mode='json'), 'dataset': dataset.digest(), 'pictures': dataset.manifest.num_samples,
             'parameters': {name: num_parameters(network) for name, network in state.networks.items()},
             'generator': describe_maker(config, plan),
             'kernels': kernels}
    checkpoints = Checkpoints(Path(config.run_dir) / 'checkpoints', config.checkpoint.keep, about)
    newest = checkpoints.newest()
    if newest is None:
        return checkpoints
    path, seal = newest
    there = parse_kept(seal['config'], str(path))
    changes = refuse_changes(there, config, str(path))
    checkpoints.about |= datasets_of(seal, about, config, str(path))
    checkpoints.load(path, state)
    if seal['kernels'] not in ('', kernels):
        dist.print0(f'kernels: {seal["kernels"]} up to here, {kernels} from here on, which rounds differently')
    ranks = seal.get('world_size', dist.world_size()), dist.world_size()
    told = told_of_micro_batches(there, config, ranks, any(map(has_batch_norm, state.networks.values())))
    texts = f'resumed from {path} at {state.nimg / 1000:g} kimg', changes and f'changed: {changes}', told
    dist.print0('; '.join(text for text in texts if text))
    return checkpoints


def datasets_of(seal: dict, about: dict, config: Config, where: str) -> dict:
    """Return what the next seals say of datasets that the run had before; {} of a run that has had but one.

    Raises ValueError if the dataset is another one than that of `seal`, and that is not accepted, or does not fit the networks.
    """
    before = seal.get('datasets', [])
    if seal['dataset'] != about['dataset']:
        if config.data.changed != 'accept':
            raise ValueError(f'{where} was trained on another dataset than {masked(config.data.path)}, with {seal["pictures"]} '
                             f'pictures; it has {about["pictures"]}. Choose another run_dir, or go on with this one by '
                             'data.changed=accept')
        there, now = ({key: value for key, value in each['generator'].items() if key not in MAY_DIFFER} for each in (seal, about))
        if json.dumps(there, sort_keys=True) != json.dumps(now, sort_keys=True):    # a seal has lists for tuples
            raise ValueError(f'{masked(config.data.path)} has other classes or sizes than the dataset that {where} was trained '
                             'on; pack it with the same ones, or choose another run_dir')
        before = [*before, {'dataset': seal['dataset'], 'pictures': seal['pictures'], 'nimg': seal['nimg']}]
        dist.print0(f'the dataset changed: {seal["pictures"]} pictures up to {seal["nimg"] / 1000:g} kimg, {about["pictures"]} '
                    'from here on')
    return {'datasets': before} if before else {}


def open_stream(config: Config, dataset: Dataset, plan: Plan, nimg: int) -> Generator[Batch]:
    """Yield this rank's batches from image `nimg` on."""
    data, size = config.data, plan.resolution
    return stream(dataset, batch=lambda shown: stage_at(config, size, shown).batch, lanes=data.lanes, seed=config.seed,
                  rank=dist.rank(), world=dist.world_size(), nimg=nimg, resolution=size, flip=data.flip, workers=data.workers,
                  together=config.game.together, pin_memory=dist.device().type == 'cuda')
