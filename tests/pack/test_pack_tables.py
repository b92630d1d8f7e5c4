"""`imago pack --labels` reads tables as people have them: any header that names a path and a label, or columns that are told."""

import json

import pytest
from packs_for_tests import folder_of, manifest_of, run, samples

NAMES = ['a/0.png', 'a/1.png', 'b/2.png', 'b/3.png']
ROWS = list(zip(NAMES, ['cat', 'dog', 'cat', 'dog']))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp('tables') / 'in', NAMES)


def lines(header: str, row: str) -> str:
    cells = [{'path': name, 'stem': name[:-4], 'base': name[2:], 'id': name[2:-4], 'label': label} for name, label in ROWS]
    return ''.join(f'{line}\n' for line in ([header] if header else []) + [row.format(**cell) for cell in cells])


TABLES = {
    'no header': ('', '{path},{label}'), 'the usual header': ('path,label', '{path},{label}'),
    'capitals and blanks': ('File Name,Class-Name', '{path},{label}'),
    'the other way round': ('category,image', '{label},{path}'),
    'many columns': ('id,image_path,width,target,note', '7,{path},24,{label},x'), 'Kaggle': ('image_id,label', '{id},{label}'),
    'without folders': ('filename,label', '{base},{label}'), 'without suffixes': ('image,label', '{stem},{label}'),
    'in another folder': ('file,label', 'data/pictures/{path},{label}'), 'backslashes': ('file,label', r'.\{path},{label}'),
    'semicolons': ('path;label', '{path};{label}'), 'tabs': ('path\tlabel', '{path}\t{label}'),
    'quotes': ('"path","label","x"', '"{path}","{label}","a, b"'), 'known by content': ('who,what', '{label},{path}'),
    'known by content, no header': ('', '{label},{path}'), 'known by content, of three': ('x,y,z', '1,{path},{label}'),
    'a byte order mark': ('\ufefffilename,class', '{path},{label}'),
}


@pytest.mark.parametrize('table', TABLES)
def test_any_header(source, tmp_path, table):
    (tmp_path / 'labels.csv').write_text(lines(*TABLES[table]))
    check_labels(source, tmp_path, 'labels.csv')


def check_labels(source, tmp_path, name, *options):
    assert run(source, tmp_path / 'out', '--labels', tmp_path / name, '--encoding', 'png', *options) == 0
    assert manifest_of(tmp_path / 'out').class_names == ('cat', 'dog')
    assert sorted(sample['cls'] for sample in samples(tmp_path / 'out')) == [0, 0, 1, 1]


@pytest.mark.parametrize('columns', ['file,b', 'FILE,B', '1,3', 'file,3'])
def test_columns_are_told(source, tmp_path, capsys, columns):
    (tmp_path / 'labels.csv').write_text(lines('file,a,b', '{path},x,{label}'))
    check_labels(source, tmp_path, 'labels.csv', '--columns', columns)
    note, = [line for line in capsys.readouterr().err.splitlines() if 'the column' in line]
    assert 'labels.csv: the column file names pictures, b their labels' in note


def test_json_lines_and_the_form_of_stylegan(source, tmp_path):
    (tmp_path / 'l.jsonl').write_text(''.join(
        json.dumps({'file_name': name, 'x': [1], 'label': label}) + '\n' for name, label in ROWS))
    check_labels(source, tmp_path, 'l.jsonl')
    (tmp_path / 'dataset.json').write_text(json.dumps({'labels': [[f'deeper/{name}', label] for name, label in ROWS]}))
    assert run(source, tmp_path / 'other', '--labels', tmp_path / 'dataset.json') == 0
    assert manifest_of(tmp_path / 'other').class_counts == (2, 2)


@pytest.mark.parametrize('header, row, options, words', [
    ('file,class,category', '{path},{label},{label}', [],
     ['several columns may be the labels, class, category', 'file, class, category', '--columns PATH,LABEL']),
    ('file,smiling,young', '{path},0,1', [], ['--columns', 'file, smiling, young']),
    ('file,path,label', '{path},{path},{label}', [], ['several columns may be the paths, file, path']),
    ('file,label', '{path},{label}', ['--columns', 'file,other'], ['file, label', 'does not name two columns']),
    ('file,label', '{path},{label}', ['--columns', 'file'], ['two columns']),
    ('file,label', '{path},{label}', ['--columns', 'file,file'], ['two columns']),
    ('file,label', '{path},{label},x', [], ['line 2 has 3 columns']), ('file', '{path}', [], ['line 1 has 1 columns']),
    ('', '', [], ['write path,label']),
    ('file,label', '{path}x,{label}', [], ['no label for 4 pictures'])])
def test_what_is_not_plain_is_refused(source, tmp_path, capsys, header, row, options, words):
    (tmp_path / 'labels.csv').write_text(lines(header, row))
    assert run(source, tmp_path / 'out', '--labels', tmp_path / 'labels.csv', *options) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'labels.csv' in error and all(word in error for word in words), error


def test_columns_without_a_table_are_refused(source, tmp_path, capsys):
    (tmp_path / 'l.json').write_text(json.dumps(dict(ROWS)))
    assert run(source, tmp_path / 'out', '--columns', 'a,b') == 2 and 'leave it out' in capsys.readouterr().err
    assert run(source, tmp_path / 'out', '--columns', 'a,b', '--labels', tmp_path / 'l.json') == 2
    assert 'leave it out' in capsys.readouterr().err


def test_labels_of_other_splits_are_no_mistake(tmp_path):
    source = folder_of(tmp_path / 'in', ['train/0.png', 'train/1.png', 'test/0.png'])
    (tmp_path / 'l.csv').write_text('file,label\ntrain/0.png,a\ntrain/1.png,b\ntest/0.png,a\n')
    (tmp_path / 'c.csv').write_text('train/0.png,1\ntrain/1.png,2\ntest/0.png,3\n')
    assert run(source, tmp_path / 'out', '--labels', tmp_path / 'l.csv', '--conditions', tmp_path / 'c.csv') == 0
    assert manifest_of(tmp_path / 'out').class_counts == (1, 1)
