"""What an evaluation measures: the options of its command, over what the run says. Torch-free, so that refusals come at once."""

import argparse
from pathlib import Path

from pydantic import ValidationError

from imago.trainer.config.sections import EvaluateConfig
from imago.trainer.data.locations import check_whole, lacks_only_password, masked, scheme_of
from imago.trainer.data.web import find_login
from imago.trainer.runs.run_folder import CONFIG_FILE, read_config

PUBLISHED, ON_CPU = 50_000, 5_000    # fakes, unless the user gives a number
BUILT_IN = 'auto', 'inception', 'effnet_lite0'


def settings(options: argparse.Namespace) -> tuple[EvaluateConfig, str, tuple[int, int] | None]:
    """Return the run's `evaluate` section (or the defaults) with the options put over it, the dataset, and the run's crop.

    ValueError for bad values, and where no dataset is named.
    """
    source = Path(options.source)
    config = read_config(source) if (source / CONFIG_FILE).is_file() else None
    # the run may be a stranger's, and a dataset or a feature network may name a program
    if config and not options.data:
        check_own_data(source, config.data.path)
    if config and not options.extractor and config.evaluate.extractor not in BUILT_IN:
        raise ValueError(f'{source} has a feature network of its own, {config.evaluate.extractor}; if you trust that, give it '
                         'as --extractor')
    tree = (config.evaluate if config else EvaluateConfig()).model_dump()
    tree |= {name: value for name in tree if (value := getattr(options, name, None)) is not None}
    try:
        evaluation = EvaluateConfig.model_validate(tree)
    except ValidationError as error:
        detail = error.errors()[0]
        message = detail['msg'].removeprefix('Value error, ')
        raise ValueError(f'--{str(detail["loc"][0]).replace("_", "-")} {str(detail["input"])[:100]}: {message}') from None
    if not options.data and not config:
        raise ValueError(f'--data is missing: {options.source} is no run folder, which would name its dataset')
    check_extractor(evaluation)
    return evaluation, options.data or config.data.path, config.data.crop if config else None


def fakes_on(config: EvaluateConfig, device: str) -> int:
    """Return how many fakes are compared: as many as the user wants, or what is usual on this kind of device."""
    return config.images or (ON_CPU if device == 'cpu' else PUBLISHED)


def check_extractor(config: EvaluateConfig) -> None:
    """Raise ValueError if the file of a feature network is not there."""
    if config.extractor not in BUILT_IN and not Path(config.extractor).exists():
        raise ValueError(f'--extractor {config.extractor}: no such file; give inception, effnet_lite0, or a TorchScript or '
                         'ONNX file')


def check_there(path: str) -> None:
    """Raise ValueError if there is no such folder, zip or tar. Patterns of names, and what must be fetched, are not looked at."""
    if not scheme_of(path) and '{' not in path and not Path(path).exists():
        raise ValueError(f'no such folder: {path}; give shards or pictures')


def check_own_data(run: Path, location: str) -> None:
    """Raise ValueError if a run's own dataset is read by a command, which must not run unasked, or lacks a password.

    Only .netrc says which host may have a password. The password in the environment is for locations that the user gives.
    """
    if scheme_of(location) == 'pipe':
        raise ValueError(f'{run} reads its dataset by a command, {masked(location)}; if you trust that, give it as --data')
    try:
        check_whole(location)
        if scheme_of(location).startswith('http'):
            find_login(location, environment={})
    except ValueError:
        or_so = ', or the password in .netrc' if lacks_only_password(location) else ''
        raise ValueError(f'{run} keeps no password of its dataset {masked(location)}; '
                         f'give the whole location as --data{or_so}') from None
