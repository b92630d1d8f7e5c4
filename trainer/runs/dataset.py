"""Whether a run can be trained on the dataset that its configuration names. Torch-free, so that a refusal comes at once."""

from dataclasses import replace
from pathlib import Path

from imago.trainer.config.division import fitting_lanes
from imago.trainer.config.load import Config
from imago.trainer.config.resolution import base_and_doublings
from imago.trainer.config.schedule import check_growth
from imago.trainer.config.sections import CONTINUOUS
from imago.trainer.data.locations import masked, scheme_of
from imago.trainer.data.manifest import SINGLE, Manifest
from imago.trainer.data.shards import Dataset, ShardError, check_resolution, open_dataset
from imago.trainer.runs.run_folder import CONFIG_FILE, read_config
from imago.trainer.wording import listed

DEMO = 'tests/data/fluent-emoji'   # the pictures of configs/demo.yaml, which no wheel holds


def open_checked(config: Config) -> Dataset:
    """Open the dataset and check that `config` can be trained on it. ValueError otherwise."""
    dataset = open_data(config, 'path')
    if config.data.path_b is not None:
        dataset = replace(dataset, b=open_data(config, 'path_b'))
    manifest = dataset.manifest
    if config.data.conditional is True and not manifest.class_names:
        raise ValueError(f'data.conditional=true, but {masked(config.data.path)} has no labels; pack a folder with one sub-'
                         'folder a class, or give imago pack --labels FILE')
    if config.data.conditional is True and len(manifest.class_names) == 1:
        raise ValueError(f'data.conditional=true, but the only class of {masked(config.data.path)} is {manifest.class_names[0]}; '
                         'pack one sub-folder a class, or set data.conditional=false')
    if config.data.conditional == CONTINUOUS and len(manifest.condition_shape or ()) != 1:
        there = f'sequences {list(manifest.condition_shape)}' if manifest.condition_shape else 'no conditions'
        raise ValueError(f'network.name={config.network.name} with data.conditional={CONTINUOUS} takes a vector with each '
                         f'picture, and {masked(config.data.path)} has {there}; pack a vector for each by imago pack '
                         '--conditions FILE, or set data.conditional=false')
    config.game.check_data(manifest)
    check_domains(config, dataset)
    size = config.data.size(manifest.resolution)
    if size is None:
        raise ValueError(f'{masked(config.data.path)} holds pictures of different sizes; show parts of them by data.crop=SIZE, '
                         'or pack them with imago pack --resolution')
    base_and_doublings(size)
    check_growth(config, size)
    check_resolution(dataset, size)
    if config.guard.data:
        open_held_out(config, manifest)
    return dataset


def lanes_of(config: Config, dataset: Dataset, world: int) -> int:
    """Return the lanes of the run that `config` goes on with, or for a new run those that fit. ValueError if none do."""
    folder, lanes = Path(config.run_dir), config.data.lanes
    fewest = min(one.manifest.num_samples for one in (dataset, dataset.b) if one)
    if lanes is None and (folder / CONFIG_FILE).is_file():
        lanes = read_config(folder).data.lanes
        if lanes % world:
            fit = [count for count in range(1, lanes + 1) if lanes % count == 0]
            raise ValueError(f'{folder} deals its pictures to {lanes} lanes, which {world} ranks cannot share alike; go on with '
                             f'{listed(fit)} ranks, or choose another run_dir')
    lanes = lanes or fitting_lanes(config, world, fewest)
    if lanes > fewest:
        raise ValueError(f'data.lanes={lanes} is more than the {fewest} pictures of the dataset; leave data.lanes out, or pack '
                         'more')
    return lanes


def open_data(config: Config, key: str) -> Dataset:
    """Open the dataset that `data.KEY` names. ValueError if it cannot be opened."""
    data, location = config.data, getattr(config.data, key)
    if not scheme_of(location) and not Path(location).exists():
        mend = f'give data.{key}=FOLDER, which imago pack SOURCE FOLDER makes'
        if location == DEMO:
            mend = f"it is in Imago's repository: start the demo there, or {mend}"
        raise ValueError(f'data.{key}={location} does not exist; {mend}')
    try:
        return open_dataset(location, cache_dir=data.cache_dir, cache_gb=data.cache_gb, crop=data.crop)
    except ShardError as error:
        raise ValueError(f'data.{key}: {error}') from error


def check_domains(config: Config, dataset: Dataset) -> None:
    """Raise ValueError unless the game takes pictures of these domains, and two datasets go together."""
    takes, b = config.game.plan(config, dataset.manifest).domains, dataset.b and dataset.b.manifest
    if b and (dataset.manifest.domains, b.domains) != (SINGLE, SINGLE):
        raise ValueError('data.path_b with samples of two pictures each, which are pairs already; leave data.path_b out, or pack '
                         'both without --pair')
    if b and b.channels != dataset.manifest.channels:
        raise ValueError(f'data.path_b has {b.channels} channels, data.path {dataset.manifest.channels}; pack both with the same '
                         '--channels')
    if takes == dataset.domains:
        return
    if takes == SINGLE:
        mend = 'leave data.path_b out' if b else 'pack one folder, without --pair'
        raise ValueError(f'game.name={config.game.name} takes single pictures, and there are two at a time here; {mend}, or '
                         'choose a game of two domains')
    raise ValueError(f'game.name={config.game.name} takes pictures of the domains {" and ".join(takes)}, and those of '
                     f'{masked(config.data.path)} are of {" and ".join(dataset.domains)}; pack pairs by imago pack A --pair B '
                     'OUT, or give the second dataset as data.path_b')


def open_held_out(config: Config, manifest: Manifest) -> Dataset:
    """Open the pictures of `guard.data`. ValueError unless they are of the kind of the training data, and not the same ones."""
    where = masked(config.guard.data)
    try:
        dataset = open_dataset(config.guard.data, cache_dir=config.data.cache_dir, cache_gb=config.data.cache_gb,
                               crop=config.data.crop)
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
    check_resolution(dataset, config.data.size(manifest.resolution))
    return dataset
