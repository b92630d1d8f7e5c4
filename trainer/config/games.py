"""This module has each game's options, rules and plan, by the game's name. The code of the games is in trainer/games."""

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, SerializeAsAny

from imago.trainer.config.division import advice
from imago.trainer.config.losses import GRADIENT_PENALTY_NAMES, LOSS_FACTS, LossFacts
from imago.trainer.config.networks import discriminator_options, generator_options
from imago.trainer.config.plan import NetworkSpec, Plan
from imago.trainer.config.schema import FIXED, Positive, Section, Within, name_of, read_section
from imago.trainer.config.sections import CONTINUOUS
from imago.trainer.data.manifest import Manifest

if TYPE_CHECKING:
    from imago.trainer.config.load import Config

Rule = tuple   # (whether it is broken, what is wrong, *ways to mend it, each as overrides)
PHASES = ('D_main', 'D_reg', 'G_main', 'G_reg')
MEMORY = (
    'path_length_mean',
    'side',                                          # px of the stage that the optimizers work at, where networks grow;
                                                     # with growth.restart=both it is negative in a fade
    'lecam_real', 'lecam_fake',                      # moving averages of D's logits, biased to 0, where they start
    'augment_p', 'augment_signs', 'augment_steps',   # p, D(real)'s signs, summed over steps since p was adjusted
)


class GameSection(Section):
    """This is what the rest of the configuration must know of a game. Each game has a subclass, whose `name` is a Literal."""

    own_loss: ClassVar[bool] = False    # loss.name is not read
    together: ClassVar[int] = 1         # pictures of one class that are shown next to each other
    name: Annotated[str, FIXED]

    @property
    def shares(self) -> int:
        """Return what each micro-batch must be a multiple of, to be cut into equal shares; itself a multiple of `together`."""
        return self.together

    def loss_facts(self, config: 'Config') -> LossFacts:
        """Return the facts about the loss that the game is played with. Nothing is known about a game's own loss."""
        return LossFacts() if self.own_loss else LOSS_FACTS[config.loss.name]

    def rules(self, config: 'Config') -> list[Rule]:
        """Return the rules against what `config` may ask for and only this game cannot do."""
        return [(config.loss.reuse_fakes, f'loss.reuse_fakes=true with game.name={self.name}, which does not read it',
                 'loss.reuse_fakes=false')]

    def check_data(self, manifest: Manifest) -> None:
        """Raise ValueError unless the game can be played with these pictures."""

    @abstractmethod
    def plan(self, config: 'Config', manifest: Manifest) -> Plan:
        """Return the plan of what is trained on the pictures of `manifest`."""


class Latent(GameSection):
    """G turns latents into fakes, and D tells fakes from reals."""

    name: Literal['latent'] = 'latent'

    def rules(self, config: 'Config') -> list[Rule]:
        return []

    def plan(self, config: 'Config', manifest: Manifest) -> Plan:
        network, penalties, size = config.network, config.regularizers, config.data.size(manifest.resolution)
        classes = len(manifest.class_names) if config.data.conditional is True else 0
        condition_shape = (manifest.condition_shape or ()) if config.data.conditional == CONTINUOUS else ()
        c_dim = condition_shape[0] if condition_shape else classes
        of_both = {'resolution': list(size), 'img_channels': manifest.channels}
        normalise = {} if penalties.normalise == 'none' else {'normalise': [penalties.normalise, penalties.stable_rank]}
        of_G = generator_options(network) | of_both | {'c_dim': c_dim} | (normalise if penalties.normalise_g else {})
        of_D = discriminator_options(network) | of_both | normalise
        of_D |= {'c_dim': 0, 'num_outputs': 1 + classes} if config.loss.auxiliary else {'c_dim': c_dim, 'num_outputs': 1}
        return Plan(
            networks={'G': NetworkSpec(network.name, 'generator', of_G, 'g'),
                      'D': NetworkSpec(network.name, 'discriminator', of_D, 'd')},
            averaged=('G',), memory=MEMORY, phases=PHASES, resolution=(size[0], size[1]), channels=manifest.channels,
            class_names=manifest.class_names if classes else (), class_counts=manifest.class_counts if classes else (),
            condition_shape=condition_shape)


class BEGAN(Latent):
    """D reconstructs pictures, and the errors of reals and fakes are kept in balance. Berthelot et al. 2017."""

    own_loss: ClassVar[bool] = True
    name: Literal['began']  # type: ignore[assignment]  # a subclass is another game
    gamma: Positive = 0.5                 # wanted ratio of the reconstruction errors, fakes' to reals'
    rate: Positive = 0.001                # step size of k

    def rules(self, config: 'Config') -> list[Rule]:
        name, penalties = config.network.name, config.regularizers
        return [
            (config.network.made_for != self.name,
             f'game.name=began with network.name={name}: BEGAN balances reconstruction errors, which only its autoencoder '
             'returns', 'network.name=began', 'game.name=latent'),
            (config.loss.auxiliary or penalties.lecam or penalties.drift,
             'game.name=began has reconstruction errors, no logits', f'loss.auxiliary=0 {without("lecam", "drift")}')]

    def plan(self, config: 'Config', manifest: Manifest) -> Plan:
        plan = super().plan(config, manifest)
        return replace(plan, memory=(*plan.memory, 'began_k'))


class MADGAN(Latent):
    """Several generators share all but their last layers, and D also tells who made a fake. Ghosh et al. 2018."""

    own_loss: ClassVar[bool] = True
    name: Literal['mad_gan']  # type: ignore[assignment]
    generators: Annotated[int, Within(2, 64), FIXED] = 4

    @property
    def shares(self) -> int:
        return self.generators

    def rules(self, config: 'Config') -> list[Rule]:
        penalties, count = config.regularizers, self.generators
        uneven = [f'{key}={micro}' for *_, key, micro in config.batches() if micro % count]
        return [
            (config.network.styles,
             f'game.name=mad_gan with network.name={config.network.name}: several generators would need a mapping each, where a '
             'network without styles, as dcgan, needs none', 'network.name=dcgan', 'game.name=latent'),
            (config.data.conditional,
             f'game.name=mad_gan with data.conditional={str(config.data.conditional).lower()}: its discriminator names the '
             'generator in place of the class',
             'data.conditional=false', 'game.name=latent'),
            (uneven,
             f'{uneven and uneven[0]} is not a multiple of game.generators={count}, which make equal shares of it; '
             f'{uneven and advice(config, 1)}'),
            (on_gradient(config) or penalties.lecam or penalties.drift,
             'game.name=mad_gan has a softmax over outputs, no logit', without(*GRADIENT_PENALTY_NAMES, 'lecam', 'drift'))]

    def plan(self, config: 'Config', manifest: Manifest) -> Plan:
        plan = super().plan(config, manifest)
        G, D = plan.networks['G'], plan.networks['D']
        options = {key: value for key, value in G.options.items() if key != 'normalise'}
        several = {'model': G.model, 'count': self.generators, 'options': options}
        several |= {key: G.options[key] for key in ('normalise',) if key in G.options}    # they share layers
        return replace(plan, networks={'G': replace(G, model='several', options=several),
                                       'D': replace(D, options=D.options | {'num_outputs': 1 + self.generators})})


class SDGAN(Latent):
    """Pictures come in pairs of one identity, and a part of the latents stands for the identity. Donahue et al. 2018."""

    together: ClassVar[int] = 2
    name: Literal['sd_gan']  # type: ignore[assignment]
    identity_dim: Annotated[int, Within(1, 1 << 16), FIXED] = 50    # both fakes of a pair share so many first latents

    def rules(self, config: 'Config') -> list[Rule]:
        z_dim, lanes = config.network.z_dim, config.data.lanes or 1
        odd = [f'{key}={batch}, {micro_key}={micro}' for key, batch, micro_key, micro in config.batches()
               if batch % (2 * lanes) or micro % 2]
        return [
            (self.identity_dim >= z_dim,
             f'game.identity_dim={self.identity_dim} leaves no latents of network.z_dim={z_dim} to observations',
             f'game.identity_dim={z_dim // 2}'),
            (config.data.conditional,
             f'game.name=sd_gan with data.conditional={str(config.data.conditional).lower()}: the class is the identity, '
             'which z carries', 'data.conditional=false'),
            (odd,
             f'game.name=sd_gan with {odd and odd[0]}: each batch must be a multiple of {2 * lanes}, and each '
             f'micro-batch even; {odd and advice(config, 1)}'),
            (config.regularizers.wgan_gp,
             'regularizers.wgan_gp with game.name=sd_gan: points between would mix each picture of a pair by a share of its own',
             *(f'{without("wgan_gp")} {other}' for other in ('regularizers.r1=1', 'regularizers.dragan=10')), without('wgan_gp')),
            (config.guard.data,
             'guard.data with game.name=sd_gan: held-out pictures are judged one by one', 'guard.data=null')]

    def check_data(self, manifest: Manifest) -> None:
        """Raise ValueError unless each class, here an identity, has at least two pictures."""
        if not manifest.class_names:
            raise ValueError('game.name=sd_gan, but the dataset has no labels to tell identities; pack one sub-folder an '
                             'identity')
        for name, count in zip(manifest.class_names, manifest.class_counts, strict=True):
            if count == 1:
                raise ValueError(f'game.name=sd_gan, but identity {name} has a single picture; pack two or more of each')

    def plan(self, config: 'Config', manifest: Manifest) -> Plan:
        plan = super().plan(config, manifest)
        D = plan.networks['D']
        pair = {'img_channels': self.together * manifest.channels}       # a pair is one input
        return replace(plan, networks=plan.networks | {'D': replace(D, options=D.options | pair)})


def on_gradient(config: 'Config') -> list[str]:
    """Return the names of D's gradient penalties that are on."""
    return [key for key in GRADIENT_PENALTY_NAMES if getattr(config.regularizers, key)]


def without(*keys: str) -> str:
    """Return overrides that leave these penalties out."""
    return ' '.join(f'regularizers.{key}=0' for key in keys)


SECTIONS: dict[str, type[GameSection]] = {}


def add_section(section: type[GameSection]) -> None:
    """Let `game.name` take the section's name. Raises ValueError if another game has this name."""
    name = name_of(section)
    if SECTIONS.setdefault(name, section) is not section:
        raise ValueError(f'there is a game {name} already; choose another name')


for _section in (Latent, BEGAN, MADGAN, SDGAN):
    add_section(_section)


def read_game(value: object) -> object:
    """Return the section of the game that `value` names, `latent` by default."""
    return read_section(value, SECTIONS, 'latent')


GameConfig = Annotated[SerializeAsAny[GameSection], BeforeValidator(read_game)]
