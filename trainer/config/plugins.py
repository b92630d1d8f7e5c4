"""Plugins are modules of a user's own, which register losses, networks or games when they are imported.

A plugin is imported only if the user names it: by the key `plugins` of what `imago train` reads, or by IMAGO_PLUGINS. A run
folder or an export may be a stranger's, and so what they name is never imported for that reason alone.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

from imago.trainer.wording import one_line, shown

VARIABLE = 'IMAGO_PLUGINS'
MOST_PLUGINS = 64
_MODULE = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*', re.ASCII)


def check_module(name: str) -> str:
    if not _MODULE.fullmatch(name) or len(name) > 200:
        raise ValueError('it is no name of a module, as my_package or my_package.losses')
    return name


ModuleName = Annotated[str, AfterValidator(check_module)]


def names_in(value: object) -> list[str]:
    """Return the names in a value of the key `plugins`; [] for a value that the schema will refuse."""
    names = value if isinstance(value, list) else []
    return [name for name in names[:MOST_PLUGINS] if isinstance(name, str) and _MODULE.fullmatch(name)]


def import_plugins(names: Iterable[str]) -> None:
    """Import the modules that the user names. ValueError for one that cannot be imported.

    They may be installed, or lie in the working folder, which is searched last so that it hides nothing.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    for name in names:
        try:
            importlib.import_module(check_module(name))
        except Exception as error:   # a module may raise anything
            why = f'{type(error).__name__}: {one_line(str(error), 300)}'
            raise ValueError(f'plugins: {shown(name)} cannot be imported ({why}); install it, or start where its file lies'
                             ) from error


def require_plugins(names: Iterable[str], where: object) -> None:
    """Raise ValueError unless these modules, which a file names, are imported already or named in IMAGO_PLUGINS."""
    trusted = [name for name in os.environ.get(VARIABLE, '').split(',') if name]
    for name in names:
        if name in sys.modules:
            continue
        if name not in trusted:
            raise ValueError(f'{where} needs the plugin {shown(name)}, which is not imported unasked; if you trust it, put '
                             f'{VARIABLE}={shown(name)} before the command, or import it first')
        import_plugins([name])
