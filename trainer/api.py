"""What `import imago` gives. docs/api.md says what of it is public; the commands use the same code below.

Torch is imported when a function is called that needs it, so that `import imago` takes no time.
"""

import argparse
import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from imago.trainer.config.networks import NetworkSection
    from imago.trainer.games.game import Game
    from imago.trainer.games.makers import Inputs, Maker

Label = int | str


class Trained:
    """A trained generator, from `load`.

    `about` has its facts: class_names, class_counts, nimg, data, licence, version and others. `resolution` is (height, width)
    in px, and `class_names` are () without classes.
    """

    def __init__(self, maker: 'Maker', about: dict) -> None:
        self.maker, self.about = maker, about
        self.resolution: tuple[int, int] = maker.resolution
        self.class_names: tuple[str, ...] = tuple(about['class_names'])

    def sample(self, seeds: int | Iterable[int], label: Label | Sequence[Label] | None = None, psi: float = 1.0, *,
               psi_cutoff: int | None = None, truncation: float | None = None, condition: Any = None) -> list['Image.Image']:
        """Make one PIL picture for each seed: those of `imago sample` with the same seeds, label and psi.

        seeds: one number, or several. label: a class's number or name, or one for each seed; None draws classes as frequent as in
        the data. psi, psi_cutoff: truncation in w, and in how many layers. truncation: latents are drawn again until |z| is below
        it. condition: for continuous conditions, a row [d] or one for each seed [N, d]. ValueError for what cannot be made.
        """
        from PIL import Image

        from imago.trainer.games.makers import Sampling, generate
        numbers = [seeds] if isinstance(seeds, int) else list(seeds)
        if not numbers:
            raise ValueError('there are no seeds; give one or more, as range(8)')
        sampling = Sampling(psi, psi_cutoff, truncation)
        self.maker.check(sampling)
        pictures = generate(self.maker, self._inputs(numbers, label, truncation, condition), sampling)
        return [Image.fromarray(picture.squeeze()) for picture in pictures]

    def _inputs(self, seeds: list[int], label: Label | Sequence[Label] | None, truncation: float | None,
                condition: Any) -> 'Inputs':
        import numpy as np
        rows = None if condition is None else np.atleast_2d(np.asarray(condition, dtype=np.float32))
        if rows is not None and len(rows) == 1:
            rows = np.repeat(rows, len(seeds), axis=0)
        self.maker.check_conditions(rows)
        if rows is not None and len(rows) != len(seeds):
            raise ValueError(f'condition: there are {len(rows)} rows for {len(seeds)} seeds; give one row, or {len(seeds)}')
        inputs = self.maker.inputs(seeds, None, truncation, rows)
        return inputs if label is None else replace(inputs, labels=self._labels(label, len(seeds)))

    def _labels(self, label: Label | Sequence[Label], count: int) -> 'torch.Tensor':
        """Return classes [count] int64."""
        import torch

        from imago.trainer.data.labels import class_index
        if self.maker.condition_size:
            raise ValueError(f'label: this generator takes conditions of {self.maker.condition_size} numbers, no classes; give '
                             'condition')
        labels = [label] * count if isinstance(label, (int, str)) else list(label)
        if len(labels) != count:
            raise ValueError(f'label: there are {len(labels)} labels for {count} pictures; give one, or {count}')
        return torch.tensor([class_index(str(each), self.class_names) for each in labels])

    def __call__(self, z: 'torch.Tensor', c: Any = None, psi: float = 1.0) -> 'torch.Tensor':
        """Make pictures [NCHW] float32, in [-1, 1], of latents z [N, z_dim]; gradients reach z.

        c: a class's number or name, or N of them; a tensor [N, c_dim] goes to the generator as it is; None draws classes as
        frequent as in the data, by torch's own generator. ValueError if this generator has no latents z.
        """
        import torch

        from imago.trainer.data.labels import to_one_hot
        G = self.G
        if not isinstance(c, torch.Tensor):
            counts = self.maker.class_counts
            labels = self._labels(c, len(z)) if c is not None else torch.multinomial(
                torch.tensor(counts or (1,), dtype=torch.float64), len(z), replacement=True)
            rows = getattr(self.maker, 'conditions', None)
            c = to_one_hot(labels, G.c_dim) if rows is None else rows[labels]
        return G(z, c.to(z), **({'truncation_psi': psi} if G.num_ws else {}))

    @property
    def G(self) -> Any:
        """The generator's network, in evaluation mode: G(z [N, z_dim], c [N, c_dim]) -> [NCHW]."""
        if 'G' not in self.maker.networks or getattr(self.maker.networks['G'], 'generators', None) is not None:
            raise ValueError(f'the game {self.about["game"]} has no lone generator G of latents; take sample')
        return self.maker.networks['G']


@dataclass(frozen=True)
class Ended:
    """How a training ended: `ending` is finished, stopped, or stopped by the guard."""

    folder: Path
    kimg: float
    ending: str


def load(path: str | Path, device: str = 'cpu') -> Trained:
    """Load the averaged generator of an export, a checkpoint, or a run folder (its newest whole checkpoint).

    No code of a stranger's files runs. ValueError if there is none, or it is damaged.
    """
    from imago.trainer.runs.export import open_maker
    return Trained(*open_maker(path, device))


def train(config: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Ended:
    """Train, or go on training, in this process: `imago train CONFIG key=value ...`.

    config: a YAML file, or the name of a configuration. overrides: {'data.path': 'my-shards', 'batch': 32}, or ['batch=32'].
    Under torchrun each process is a rank. ValueError, before any work, for what makes no sense; a key that is unknown is named.
    """
    from imago.trainer.config.load import load_config
    from imago.trainer.ranks.world import world_size
    from imago.trainer.tools.train import check_places
    pairs = overrides.items() if isinstance(overrides, Mapping) else ()
    checked = load_config(config, [f'{key}={json.dumps(value)}' for key, value in pairs] or list(overrides))
    checked.check_world(world_size())
    if world_size() == 1:
        check_places(checked, 1)
    from imago.trainer import train as loop
    from imago.trainer.ranks import dist
    from imago.trainer.start import prepare
    try:
        dist.init(checked.device, checked.parallel.timeout_minutes)
        run = prepare(checked)
        ending = loop.train(run)
    finally:
        dist.shutdown()
    return Ended(Path(checked.run_dir), run.state.nimg / 1000, ending)


def evaluate(source: str | Path, **options: Any) -> dict:
    """Score a run, a checkpoint, an export, or pictures: {'values': {name: score}, 'intervals', 'protocol', 'nimg'}.

    The options are those of `imago evaluate`, as metrics='kid', images=1000, data='my-shards'. ValueError for an unknown one, and
    for what cannot be scored.
    """
    from imago.trainer.ranks import dist
    from imago.trainer.tools import evaluate as command
    asked = _asked(command.parser(), [source], options)
    command.check(asked)
    from imago.trainer.tools.scoring import keep, measure
    try:
        _, entry = measure(asked)
        if dist.is_main():
            keep(Path(source), entry)
        return entry
    finally:
        dist.shutdown()


def pack(source: str | Path, out: str | Path, **options: Any) -> dict:
    """Pack pictures into shards: {'path', 'pictures', 'resolution', 'classes': {name: count}}.

    The options are those of `imago pack`, as resolution=256, pair='other', keep_sizes=True. ValueError for an unknown one, and
    for what cannot be packed; `out` is then as it was.
    """
    from imago.trainer.data.shards import open_dataset
    from imago.trainer.pack import command
    command.pack(_asked(command.parser(), [source, out], options))
    manifest = open_dataset(str(out)).manifest
    return {'path': str(out), 'pictures': manifest.num_samples, 'resolution': manifest.resolution,
            'classes': dict(zip(manifest.class_names, manifest.class_counts, strict=True))}


def _asked(parser: argparse.ArgumentParser, places: list[str | Path], options: dict[str, Any]) -> argparse.Namespace:
    """Return what a command would read. ValueError for what it would refuse."""
    def refuse(message: str) -> NoReturn:
        raise ValueError(message)
    flags = (flag for action in parser._actions for flag in action.option_strings if flag.startswith('--'))
    known = {flag[2:].replace('-', '_'): flag for flag in flags}
    words: list[str] = []
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
            raise ValueError(f'there is no option {name}' + (f'; did you mean {near[0]}?' if near else ''))
        if isinstance(value, bool) or value is None:
            words += [known[name]] * bool(value)
        else:
            several = isinstance(value, (list, tuple))
            joined = [','.join(map(str, value))] if several and name == 'metrics' else map(str, value if several else [value])
            words += [known[name], *joined]
    parser.error = refuse    # type: ignore[method-assign]  # the command would end the process here
    return parser.parse_args([*map(str, places), *words])


def register_loss(name: str, d_loss: Callable, g_loss: Callable, *, signed: bool = False, positive: bool = False,
                  paired: bool = False) -> None:
    """Let `loss.name` take `name`.

    d_loss(real logits [N, 1], fake logits [N, 1]) and g_loss(fake logits [N, 1], real logits [N, 1] or None) return the mean over
    the batch, a scalar []. signed: it draws D's logits for reals above 0 and for fakes below. positive: for D and G it is at
    least 0. paired: it compares each fake with the real of its row. ValueError if another loss has the name.
    """
    from imago.trainer.config.losses import LossFacts
    from imago.trainer.objectives.losses import Loss, add_loss
    add_loss(name, Loss(d_loss, g_loss), LossFacts(signed=signed, positive=positive, paired=paired))


def register_network(section: type['NetworkSection'], generator: type, discriminator: type) -> None:
    """Let `network.name` take the name of `section`, which has the options of both. docs/write-a-network.md has the contract.

    ValueError if another family has the name.
    """
    from imago.trainer.models import add_network
    add_network(section, generator, discriminator)


def register_game(game: type['Game']) -> None:
    """Let `game.name` take the name of `game.section`. docs/write-a-game.md has the contract.

    ValueError if another game has the name.
    """
    from imago.trainer.games import add_game
    add_game(game)
