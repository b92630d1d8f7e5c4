"""This module reads tables of pictures and labels, CSV and JSON lines, and finds out which of their columns are meant."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath

from imago.trainer.data.reading import parse_json
from imago.trainer.pack.contents import FORMATS
from imago.trainer.pack.heif import SUFFIXES
from imago.trainer.pack.members import tidy
from imago.trainer.wording import listed, shown

PATHS = ('path', 'file', 'filename', 'file_name', 'filepath', 'file_path', 'image', 'image_path', 'image_file', 'image_name',
         'image_id', 'imageid', 'img', 'img_path', 'img_name', 'img_id', 'picture', 'photo')
LABELS = ('label', 'labels', 'class', 'classes', 'class_name', 'class_label', 'class_id', 'category', 'category_name',
          'category_id', 'target', 'targets')
HOW_COLUMNS = 'say which by --columns PATH,LABEL (names of columns, or their numbers from 1 on)'
LOOKED_AT = 1000   # rows that tell what the columns hold


def normal(name: object) -> str:
    """Return the name of a column in small letters with _ between words."""
    return str(name).strip().lower().replace(' ', '_').replace('-', '_')


def bare(path: str) -> str:
    """Return `path` without the suffix of a picture, if it has one."""
    pure = PurePosixPath(path)
    return str(pure.with_suffix('')) if pure.suffix.lower() in (*FORMATS, *SUFFIXES) else path


def last(path: str) -> str:
    return path.rpartition('/')[2]


# How a table may name pictures: by their paths, or without their suffixes, or without their folders, or without both.
FORMS: tuple[Callable[[str], str], ...] = (str, bare, last, lambda path: bare(last(path)))


class Table:
    """The pairs of a path and a label in a table. ValueError unless it is plain which columns are meant.

    `names` are those of the pictures, which tell the column of paths. `columns` are what the user says. If `strict`, only a
    column with a known name holds labels, and there may be none.
    """

    def __init__(self, data: bytes, where: str, names: Sequence[str], columns: str | None, *, strict: bool = False):
        self.where, self._data = where, data
        self._stems = {bare(last(tidy(name))) for name in names}
        rows = list(islice(self._rows(), LOOKED_AT))
        first = rows[0][1] if rows else []
        known = {normal(cell) for cell in first} & {*PATHS, *LABELS}
        picture = any(bare(cell) != cell for cell in map(str, first))
        self._skipped = bool(first) and not picture and bool(known or not any(map(self._is_picture, first)))
        self.header = [str(cell).strip() for cell in first] if self._skipped else []
        self.width = len(first)
        if self.width < 2:
            raise ValueError(f'{where} line 1 has {self.width} columns: {listed([shown(name) for name in first]) or "nothing"}; '
                             'write path,label')
        sample = [row for _, row in rows[self._skipped:] if len(row) == self.width]
        if columns:
            self.path, self.label = as_columns(columns, self.header or [''] * self.width, where)
        else:
            self.path = self._find_path(sample)
            self.label = self._find_label(sample, strict)

    def __iter__(self) -> Iterator[tuple[str, str, object]]:
        """Yield (where it stands, path, label)."""
        for line, row in islice(self._rows(), int(self._skipped), None):
            if len(row) != self.width:
                raise ValueError(f'{self.where} line {line} has {len(row)} columns, where there are {self.width} in the first: '
                                 f'{shown(row)}; {"write path,label" if self.width == 2 else "mend it"}')
            yield f'{self.where} line {line}', str(row[self.path]), row[self.label]

    @property
    def note(self) -> str:
        """Return a sentence on the columns that were chosen, or '' where the choice is plain."""
        if self.width == 2 and not self.header or [normal(name) for name in self.header] == ['path', 'label']:
            return ''
        picture, label = ((self.header or [str(i + 1) for i in range(self.width)])[i] for i in (self.path, self.label))
        return f'{self.where}: the column {shown(picture)} names pictures, {shown(label)} their labels (--columns names others)'

    def _rows(self) -> Iterator[tuple[int, list]]:
        """Yield (number of the line, cells) of all lines that hold something. ValueError for what is no table."""
        lines = self.where.lower().endswith('.jsonl')
        # names of files need not be UTF-8, hence surrogateescape; spreadsheets write a byte order mark, hence utf-8-sig
        text = self._data.decode('utf-8-sig', 'surrogateescape')
        try:
            yield from _rows_of_json(text, self.where) if lines else _rows_of_csv(text)
        except csv.Error as error:
            raise ValueError(f'{self.where} is no table ({error})') from error

    def _is_picture(self, cell: object) -> bool:
        return bare(last(tidy(str(cell)))) in self._stems

    def _find_path(self, sample: list[list]) -> int:
        named = [i for i, name in enumerate(self.header) if normal(name) in PATHS]
        if len(named) == 1:
            return named[0]
        hits = {i: sum(map(self._is_picture, {str(row[i]) for row in sample})) for i in named or range(self.width)}
        most = [i for i in hits if hits[i] == max(hits.values())]
        if len(most) == 1:
            return most[0]
        if not self.header and self.width == 2:
            return 0
        raise ValueError(self._ambiguous('paths', most))

    def _find_label(self, sample: list[list], strict: bool) -> int | None:
        others = [i for i in range(self.width) if i != self.path]
        named = [i for i in others if self.header and normal(self.header[i]) in LABELS]
        if len(named) == 1 or strict and not named:
            return named[0] if named else None
        if not named:
            named = others if len(others) == 1 else [i for i in others if _are_classes([str(row[i]).strip() for row in sample])]
        if len(named) != 1:
            raise ValueError(self._ambiguous('labels', named or others))
        return named[0]

    def _ambiguous(self, what: str, meant: list[int]) -> str:
        names = self.header or [str(i + 1) for i in range(self.width)]
        there = (f'its header is {listed([shown(name) for name in names])}' if self.header else
                 f'it has {self.width} columns without a header')
        return (f'{self.where}: several columns may be the {what}, {listed([shown(names[i]) for i in meant])}; {there}; '
                f'{HOW_COLUMNS}')


def as_columns(text: str, header: Sequence[str], where: str) -> tuple[int, int]:
    """Return the places of the two columns that `text` gives as names or as numbers from 1 on. ValueError without such two."""
    known = {str(place + 1): place for place in range(len(header))}
    known |= {normal(name): place for place, name in enumerate(header)} | {name: place for place, name in enumerate(header)}
    places = [known.get(name.strip(), known.get(normal(name))) for name in next(csv.reader([text]), [])]
    if len(places) != 2 or None in places or places[0] == places[1]:
        names = listed([shown(name) for name in header])
        raise ValueError(f'--columns {text} does not name two columns of {where}, whose header is {names}; '
                         'write PATH,LABEL, names or numbers from 1 on')
    return places[0], places[1]


def _are_classes(values: list[str]) -> bool:
    """Tell whether values repeat as classes do: each at least twice on average, and not all the same."""
    return 1 < len(set(values)) <= len(values) / 2 and all(values)


def _rows_of_csv(text: str) -> Iterator[tuple[int, list[str]]]:
    delimiter = next((mark for mark in ',\t;' if mark in text.partition('\n')[0]), ',')
    rows = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter)
    for row in rows:
        if row:
            yield rows.line_num, row


def _rows_of_json(text: str, where: str) -> Iterator[tuple[int, list]]:
    """Yield the names of the fields of the first object, then the values of these fields in each object."""
    lines = ((number, line) for number, line in enumerate(io.StringIO(text), 1) if line.strip())
    fields = None
    for number, line in lines:
        try:
            found = parse_json(line)
        except ValueError as error:
            raise ValueError(f'{where} line {number} is no JSON ({error})') from error
        if not isinstance(found, dict):
            raise ValueError(f'{where} line {number} is no JSON object')
        if fields is None:
            fields = list(found)
            yield number, fields
        yield number, [found.get(name) for name in fields]
