"""Files from strangers: whatever they hold, nothing in them is run, and nothing outside of their folder is touched."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from runs_for_tests import tiny_config, tiny_tree, train_here
from shards_for_tests import picture, rewrite_shard, write_dataset
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from imago.trainer.config.load import load_config, parse_config
from imago.trainer.data.sealed import write_sealed
from imago.trainer.data.shards import ShardError
from imago.trainer.pack import command as pack
from imago.trainer.ranks import dist
from imago.trainer.runs import checkpoint
from imago.trainer.runs.checkpoint import SEAL, list_checkpoints
from imago.trainer.runs.export import load_generator
from imago.trainer.start import prepare
from imago.trainer.tools import evaluate, export
from imago.trainer.train import train

ROOT = Path(__file__).parents[2]


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture(scope='module')
def finished(shards, tmp_path_factory):
    dist.init('cpu')
    config = tiny_config(shards, tmp_path_factory.mktemp('trusted') / 'run')
    train_here(config)
    return config


@pytest.fixture
def trace(tmp_path):
    """The folder that a payload makes when it runs."""
    return tmp_path / 'run-by-a-payload'


def edit_metadata(folder: Path, change) -> None:
    with open(folder / '.metadata', 'rb') as file:
        metadata = pickle.load(file)
    changed = change(metadata)
    (folder / '.metadata').write_bytes(pickle.dumps(metadata if changed is None else changed))


def as_bytes_entries(metadata):
    parts = {index.fqn: part for index, part in metadata.storage_data.items()}
    for name in metadata.state_dict_metadata:
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(name)] = parts[name]


def at(path: Path, length: int):
    def change(metadata):
        for part in metadata.storage_data.values():
            part.relative_path, part.offset, part.length = str(path), 0, length
    return change


def forged_tensors(folder: Path, trace: Path) -> None:
    out = BytesIO()
    torch.save(Payload(trace), out)
    (folder / '__0_0.distcp').write_bytes(out.getvalue())
    edit_metadata(folder, at(Path('__0_0.distcp'), len(out.getvalue())))


def forged_entries(folder: Path, trace: Path) -> None:
    forged_tensors(folder, trace)
    edit_metadata(folder, as_bytes_entries)


def outside(folder: Path, trace: Path) -> None:
    (folder / '__0_0.distcp').rename(folder.parent / 'elsewhere')
    edit_metadata(folder, lambda metadata: [setattr(part, 'relative_path', '../elsewhere')
                                            for part in metadata.storage_data.values()] and None)


FORGERIES = {
    'metadata is a payload': lambda folder, trace: edit_metadata(folder, lambda _: Payload(trace)),
    'a payload among the metadata': lambda folder, trace: edit_metadata(
        folder, lambda metadata: setattr(metadata, 'planner_data', Payload(trace))),
    'tensors that are payloads': forged_tensors,
    'entries that are no tensors': forged_entries,
    'tensors in a file outside': outside,
}


@pytest.mark.parametrize('forge', FORGERIES.values(), ids=FORGERIES)
def test_a_forged_checkpoint_is_refused_and_runs_nothing(finished, tmp_path, trace, forge):
    run = tmp_path / 'run'
    shutil.copytree(finished.run_dir, run)
    for folder in list_checkpoints(run / 'checkpoints'):
        forge(folder, trace)
        reseal(folder)
    for load in (lambda: load_generator(run), lambda: prepare(finished.model_copy(update={'run_dir': str(run)}))):
        with pytest.raises(ValueError, match='do not use this checkpoint|cannot be loaded'):
            load()
    assert not trace.exists()
    assert export.main([str(run), str(tmp_path / 'out')]) == 2 and not (tmp_path / 'out').exists()


def reseal(folder: Path) -> None:
    """Seal again like a forger, so that the checksums are right."""
    seal = json.loads((folder / SEAL).read_text())
    seal['files'] = {path.name: checkpoint._checksum(path) for path in folder.iterdir() if path.name != SEAL}
    write_sealed(folder / SEAL, seal)


def test_the_payloads_would_have_run(finished, tmp_path, trace):
    """The reader that comes with torch runs them, so that the test above holds back a real danger."""
    folder = shutil.copytree(list_checkpoints(Path(finished.run_dir) / 'checkpoints')[-1], tmp_path / 'one')
    forged_entries(folder, trace)
    dcp.load({'nimg': torch.tensor(0)}, checkpoint_id=folder, no_dist=True)
    assert trace.exists()


@pytest.mark.parametrize('name', ['/dev/zero', '../secret', 'a/b'])
def test_a_seal_names_only_files_beside_it(finished, tmp_path, name):
    shutil.copytree(finished.run_dir, tmp_path / 'run')
    for folder in list_checkpoints(tmp_path / 'run' / 'checkpoints'):
        seal = json.loads((folder / SEAL).read_text())
        seal['files'][name] = [1, 1]
        write_sealed(folder / SEAL, seal)
    with pytest.raises(ValueError, match='no file in it'):
        load_generator(tmp_path / 'run')


@pytest.mark.parametrize('name', ['generator.safetensors', 'generator.json'])
def test_a_forged_export_runs_nothing(finished, tmp_path, trace, name):
    assert export.main([finished.run_dir, str(tmp_path / 'export')]) == 0
    (tmp_path / 'export' / name).write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(ValueError):
        load_generator(tmp_path / 'export')
    assert not trace.exists()


def test_a_forged_configuration_runs_nothing(shards, tmp_path, trace):
    tag = f'!!python/object/apply:os.mkdir [{str(trace)!r}]'
    path = tmp_path / 'forged.yaml'
    path.write_text(f'run_dir: {tag}\n')
    for source, overrides in ((path, []), ('demo', [f'run_dir={tag}'])):
        with pytest.raises(ValueError):
            load_config(str(source), overrides)
    assert not trace.exists()


def test_a_forged_dataset_runs_nothing(shards, tmp_path, trace):
    data = write_dataset(tmp_path / 'data', (13, 10, 7), classes=3, size=16, checksums=False)
    shard = data / 'shard-00000.tar'
    out = BytesIO()
    with tarfile.open(shard) as old, tarfile.open(fileobj=out, mode='w') as new:
        for member in old:
            content = pickle.dumps(Payload(trace))
            member.size = len(content)
            new.addfile(member, BytesIO(content))
    rewrite_shard(data, 0, out.getvalue())
    tree = tiny_tree(data, tmp_path / 'run')
    with pytest.raises(ShardError, match='none of its 13 samples is good'):
        train(prepare(parse_config(tree, 'tiny')))
    (data / 'dataset.json').write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(ValueError):
        prepare(parse_config(tree | {'run_dir': str(tmp_path / 'other')}, 'tiny'))
    assert not trace.exists()


def choose_command(finished, folder: Path, scheme: str, trace: Path) -> str:
    """A copy of the run whose configuration names a command for its dataset, spelled in YAML."""
    shutil.copytree(finished.run_dir, folder)
    config = (folder / 'config.yaml').read_text()
    path = rf'  path: "{scheme}mkdir {trace}; cat {{}}"'
    (folder / 'config.yaml').write_text(re.sub('  path: .*', lambda _: path, config))
    return str(folder)


@pytest.mark.parametrize('scheme, told', [
    ('pipe:', 'if you trust that, give it as --data'), ('PIPE:', "no reader for 'PIPE'"), (' pipe:', "no reader for ' pipe'"),
    (r'\x01pipe:', 'control character'), (r'pi\tpe:', 'control character'), ('file:', 'no reader')])
def test_a_run_does_not_choose_a_command_for_its_reader(finished, tmp_path, trace, capsys, scheme, told):
    assert evaluate.main([choose_command(finished, tmp_path / 'run', scheme, trace)]) == 2
    errors = capsys.readouterr().err
    assert told in errors and errors.count('\n') == 1 and not trace.exists()


def test_nor_does_it_where_asserts_are_left_out(finished, tmp_path, trace):
    run = choose_command(finished, tmp_path / 'run', 'PIPE:', trace)
    done = subprocess.run([sys.executable, '-O', '-m', 'imago.trainer.tools.evaluate', run], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no reader for 'PIPE'" in done.stderr and not trace.exists()


ESCAPES = ['../../escaped.png', '/tmp/escaped-absolute.png', '../class/escaped.png']


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        for number, name in enumerate(['inside.png', *ESCAPES]):
            archive.writestr(name, picture(number))
        link = zipfile.ZipInfo('link.png')
        link.external_attr = 0o120777 << 16
        archive.writestr(link, '/etc/passwd')


def write_tar(path: Path) -> None:
    with tarfile.open(path, 'w') as archive:
        for number, name in enumerate(['inside.png', *ESCAPES]):
            info = tarfile.TarInfo(name)
            info.size = len(picture(number))
            archive.addfile(info, BytesIO(picture(number)))
        link = tarfile.TarInfo('link.png')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(link)


@pytest.mark.parametrize('write, suffix', [(write_zip, 'zip'), (write_tar, 'tar')])
def test_paths_in_archives_do_not_escape(tmp_path, capsys, write, suffix):
    """Members are read where they lie: their names never become paths."""
    home = tmp_path / 'a' / 'b'
    home.mkdir(parents=True)
    write(home / f'pictures.{suffix}')
    before = set(tmp_path.rglob('*'))
    assert pack.main([str(home / f'pictures.{suffix}'), str(home / 'shards')]) == 0, capsys.readouterr().err
    made = set(tmp_path.rglob('*')) - before
    assert all(path.is_relative_to(home / 'shards') for path in made) and not Path(ESCAPES[1]).exists()
    manifest = json.loads((home / 'shards' / 'dataset.json').read_text())
    assert sum(shard['samples'] for shard in manifest['shards']) == 2   # neither the link nor what has a ..
    assert all(b'root:' not in path.read_bytes() for path in (home / 'shards').iterdir())
