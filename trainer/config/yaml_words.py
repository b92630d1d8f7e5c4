"""This module reads YAML without its guesses: a word stays a word, and the schema says which key takes a number.

YAML 1.1 reads `off` as False, `1:30` as 90, `2024-01-01` as a date and `1e-3` as a text.
"""

import re

import yaml

from imago.trainer.wording import shown

MOST_NODES = 10_000    # aliases are counted as often as they are used: nine lines can stand for 10^9 values
_NULL, _TEXT, _LIST, _MAP = (f'tag:yaml.org,2002:{name}' for name in ('null', 'str', 'seq', 'map'))


class _Loader(yaml.BaseLoader):
    """This loader takes each word for a text, except that `null`, `~` and nothing are None unless they are quoted."""


_Loader.add_implicit_resolver(_NULL, re.compile('(?:~|null|Null|NULL|)$'), ['~', 'n', 'N', ''])


def parse_yaml(text: str) -> object:
    """Return the content as dicts, lists, str and None.

    Raises ValueError for what is not YAML, and for what no configuration needs: tags such as !!timestamp, a key that comes
    twice in its section, more than MOST_NODES values.
    """
    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else _Reader().value_of(node)
    except RecursionError as error:
        raise ValueError('it is nested too deeply') from error
    except (yaml.YAMLError, OverflowError) as error:    # escapes such as "\UFFFFFFFF" overflow
        raise ValueError(f'it is not valid YAML ({shown(" ".join(str(error).split()), 300)})') from error


class _Reader:
    def __init__(self):
        self._nodes = 0

    def value_of(self, node: yaml.Node) -> object:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise ValueError(f'it has more than {MOST_NODES} values, aliases counted as often as they are used')
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self._map(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _LIST:
            return [self.value_of(child) for child in node.value]
        if isinstance(node, yaml.ScalarNode) and node.tag in (_TEXT, _NULL):
            return node.value if node.tag == _TEXT else None
        raise ValueError(f'it has the tag {shown(node.tag)} in line {node.start_mark.line + 1}; leave it out')

    def _map(self, node: yaml.MappingNode) -> dict:
        found = {}
        for key_node, child in node.value:
            key, line = self.value_of(key_node), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ValueError(f'it has the key {shown(key)} in line {line}, which is no word; quote it')
            if key in found:
                raise ValueError(f'it has the key {shown(key)} once more in line {line}; keep one of them')
            found[key] = self.value_of(child)
        return found
