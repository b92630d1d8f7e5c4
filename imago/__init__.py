"""Imago trains GANs for high-resolution pictures. docs/api.md says what is public.

The four packages in this folder are links to those at the repository's top.
"""

from importlib.metadata import PackageNotFoundError, version

from imago.trainer.api import Ended, Trained, evaluate, load, pack, register_game, register_loss, register_network, train

try:
    __version__ = version('imago-gan')
except PackageNotFoundError:    # a checkout that is not installed
    __version__ = 'unknown'

__all__ = ['Ended', 'Trained', '__version__', 'evaluate', 'load', 'pack', 'register_game', 'register_loss', 'register_network',
           'train']
