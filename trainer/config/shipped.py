"""The configurations that come with Imago, with what their heads say of each."""

import re
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
_FACTS = re.compile(r'# (?P<what>Hardware|Source): (?P<text>(?:al\. |[^.:;,])*)')    # each fact up to its first comma or stop


def names() -> list[str]:
    """Return the names that `imago train NAME` takes, sorted."""
    return sorted(path.stem for path in CONFIGS.glob('*.yaml'))


def table() -> str:
    """Return a line for each configuration: its name, the hardware that it is made for, and whose settings it has."""
    rows = []
    for name in names():
        facts = {found['what']: found['text'].strip() for found in _FACTS.finditer((CONFIGS / f'{name}.yaml').read_text())}
        rows.append((name, facts.get('Source', ''), facts.get('Hardware', '')))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return '\n'.join(f'  {name:{widths[0]}}  {source:{widths[1]}}  {hardware}'.rstrip() for name, source, hardware in rows)
