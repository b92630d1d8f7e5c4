"""This module translates configurations that older versions of Imago wrote into run folders and checkpoints.

Before there were games, BEGAN and MAD-GAN were losses, and SD-GAN was a way to read the data.
"""

RENAMED = {'loss.began_gamma': 'game.gamma', 'loss.began_rate': 'game.rate', 'network.generators': 'game.generators',
           'network.identity_dim': 'game.identity_dim', 'data.pairs': 'game.name=sd_gan'}
GAMES_ONCE_LOSSES = ('began', 'mad_gan')


def translate(tree: dict) -> dict:
    """Translate a configuration that an older version wrote, with all its keys, into today's keys.

    A configuration of today comes back unchanged. So does anything that is no configuration; the schema then refuses it.
    """
    if 'game' in tree or not all(isinstance(tree.get(name), dict) for name in ('data', 'network', 'loss')):
        return tree
    former = {key: tree[section][name] for key in RENAMED for section, name in [key.split('.')] if name in tree[section]}
    sections = {section: {name: value for name, value in tree[section].items() if f'{section}.{name}' not in RENAMED}
                for section in ('data', 'network', 'loss')}
    name = tree['loss'].get('name')
    if name in GAMES_ONCE_LOSSES:
        del sections['loss']['name']
        game = {'name': name}
    else:
        paired = str(former.get('data.pairs')).lower() == 'true'    # YAML gives a word, a sealed file a boolean
        game = {'name': 'sd_gan' if paired else 'latent'}
    options = {'began': ('loss.began_gamma', 'loss.began_rate'), 'mad_gan': ('network.generators',),
               'sd_gan': ('network.identity_dim',)}.get(game['name'], ())
    game |= {RENAMED[key].removeprefix('game.'): former[key] for key in options if key in former}
    return tree | sections | {'game': game}
