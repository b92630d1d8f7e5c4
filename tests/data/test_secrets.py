"""Passwords of a dataset: where they come from, to whom they go, and where they are never seen."""

import base64
import json
import re
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from runs_for_tests import tiny_tree
from shards_for_tests import write_dataset

from imago.launch import kubernetes, slurm
from imago.trainer.config.load import load_config, parse_config, to_yaml
from imago.trainer.data.shards import Dataset, ShardError, open_dataset
from imago.trainer.data.web import find_login
from imago.trainer.metrics.settings import settings
from imago.trainer.tools import evaluate, scoring
from imago.trainer.tools.train import main

LOGIN = 'Basic ' + base64.b64encode('alice:s3cr/t é'.encode()).decode()
QUOTED = 's3cr%2Ft%20%C3%A9'    # as it is written in a URL


class Guarded(BaseHTTPRequestHandler):
    """Serves a dataset at /data to those who know the password; /away and /near lead there, from another host and from this."""

    folder: Path
    seen: list[tuple[str, str, str | None]]     # host, path, Authorization

    def do_GET(self):
        path, _, query = self.path.partition('?')
        login = self.headers.get('Authorization')
        self.seen.append((self.headers['Host'].partition(':')[0], self.path, login))
        _, place, name = path.split('/')
        if place in ('away', 'near', 'ftp'):
            host = {'away': 'localhost', 'near': '127.0.0.1'}.get(place)
            self.send_response(302)
            self.send_header('Location', f'http://{host}:{self.server.server_port}/data/{name}' if host else 'ftp://host/passwd')
            self.end_headers()
        elif login != LOGIN and query != 'sig=s3cr%2Ft':
            self.send_error(401)
        else:
            body = (self.folder / name).read_bytes()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: str) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp('data') / 'packed', (13, 10, 7), classes=3, size=16)


@pytest.fixture
def server(folder, tmp_path, monkeypatch) -> Iterator[tuple[str, list]]:
    """Yield `host:port`, and what was asked of it. Only the test knows a password."""
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    monkeypatch.delenv('IMAGO_DATA_PASSWORD', raising=False)
    handler = type('Handler', (Guarded,), {'folder': folder, 'seen': []})
    http = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield f'127.0.0.1:{http.server_port}', handler.seen
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def read(server, tmp_path) -> Callable[[str], Dataset]:
    """Opens a dataset and its first shard."""
    def read(location: str) -> Dataset:
        dataset = open_dataset(location, attempts=1, cache_dir=tmp_path / 'cache')
        dataset.open(dataset.manifest.shards[0]).close()
        return dataset
    return read


def write_netrc(tmp_path: Path, *lines: str) -> None:
    (tmp_path / 'netrc').write_text('\n'.join(lines) + '\n')


def test_a_password_in_the_location_works(server, read, folder):
    host, seen = server
    assert read(f'http://alice:{QUOTED}@{host}/data').manifest == open_dataset(folder).manifest
    assert {login for *_, login in seen} == {LOGIN}


def test_a_token_in_the_query_goes_with_each_file(server, read):
    host, seen = server
    read(f'http://{host}/data/?sig=s3cr%2Ft')
    assert [path for _, path, _ in seen] == ['/data/dataset.json?sig=s3cr%2Ft', '/data/shard-00000.tar?sig=s3cr%2Ft']


@pytest.mark.parametrize('user', ['', 'alice@', 'alice:***@'])
def test_a_password_in_netrc_works(server, read, tmp_path, user):
    host, _ = server
    write_netrc(tmp_path, 'machine elsewhere login alice password no', 'machine 127.0.0.1 login alice password "s3cr/t é"')
    read(f'http://{user}{host}/data')


@pytest.mark.parametrize('user', ['alice', 'alice:***'])
def test_a_password_in_the_environment_is_for_the_user_that_the_location_names(server, read, monkeypatch, user):
    host, seen = server
    monkeypatch.setenv('IMAGO_DATA_PASSWORD', 's3cr/t é')
    read(f'http://{user}@{host}/data')
    with pytest.raises(ShardError, match='401.*https://user:password@host.*IMAGO_DATA_PASSWORD.*netrc'):
        read(f'http://{host}/data')
    assert seen[-1][2] is None


@pytest.mark.parametrize('lines', [[], ['machine elsewhere login alice password s3cr/t'], ['default login alice password s3cr/t'],
                                   ['machine 127.0.0.1 login bob password s3cr/t']])
def test_a_password_that_is_nowhere_is_asked_for(server, read, tmp_path, lines):
    host, seen = server
    write_netrc(tmp_path, *lines)
    for user in ('alice', 'alice:***'):
        with pytest.raises(ValueError, match="the password of 'alice'; give it in .*IMAGO_DATA_PASSWORD.* machine 127.0.0.1"):
            read(f'http://{user}@{host}/data')
    assert seen == []
    assert find_login('http://default/x') is None   # a name for any host is none of a host


def test_a_broken_netrc_is_named_and_not_quoted(server, read, tmp_path):
    write_netrc(tmp_path, 'machine 127.0.0.1 login alice password', 's3cr/t s3cr/t')
    with pytest.raises(ValueError, match='netrc cannot be read as .netrc, line [0-9]+') as caught:
        read(f'http://{server[0]}/data')
    assert 's3cr' not in str(caught.value)


def test_a_redirect_takes_the_password_to_no_other_host(server, read):
    host, seen = server
    read(f'http://alice:{QUOTED}@{host}/near')
    assert {login for *_, login in seen} == {LOGIN} and '/data/dataset.json' in {path for _, path, _ in seen}
    with pytest.raises(ShardError, match='401'):
        read(f'http://alice:{QUOTED}@{host}/away')
    assert seen[-2:] == [('127.0.0.1', '/away/dataset.json', LOGIN), ('localhost', '/data/dataset.json', None)]
    with pytest.raises(ShardError, match='redirects to ftp:, which is not followed'):
        read(f'http://{host}/ftp')


def test_the_hub_is_asked_with_the_users_token(server, monkeypatch):
    host, seen = server
    monkeypatch.setenv('HF_ENDPOINT', f'http://{host}')
    monkeypatch.setenv('HF_TOKEN', 's3cr')
    with pytest.raises(ShardError):
        open_dataset('hf://datasets/owner/name@v1/some/folder', attempts=1)
    assert seen == [('127.0.0.1', '/datasets/owner/name/resolve/v1/some/folder/dataset.json', 'Bearer s3cr')]


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob('*') if path.is_file() and text.encode() in path.read_bytes()]


def test_a_run_keeps_no_password_and_goes_on_when_it_is_given_again(server, folder, tmp_path, capfd, monkeypatch):
    host, _ = server
    location = f'http://alice:{QUOTED}@{host}/data'
    path, tree = tmp_path / 'c.yaml', tiny_tree(location, tmp_path / 'run') | {'total_kimg': 0.012}
    tree['data']['cache_dir'] = str(tmp_path / 'cache')
    path.write_text(yaml.safe_dump(tree))
    assert main([str(path)]) == 0
    seals = list((tmp_path / 'run').glob('checkpoints/0*/complete.json'))
    for written in (tmp_path / 'run' / 'config.yaml', *seals):
        assert f'http://alice:***@{host}/data' in written.read_text()
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert main([str(path), 'total_kimg=0.024']) == 0
    told = capfd.readouterr()
    assert f'resumed from {seals[0].parent}' in told.out and 'total_kimg: 0.012 there, 0.024 now\n' in told.out
    assert main([str(path), '--print-config']) == 0
    assert f'path: http://alice:***@{host}/data' in capfd.readouterr().out
    # the run's own location lacks the password: it is asked for, and what the advice says is then accepted
    assert evaluate.main([str(tmp_path / 'run'), '--images', '12', '--extractor', 'effnet_lite0', '--metrics', 'fid']) == 2
    asked = capfd.readouterr().err
    assert asked.count('\n') == 1 and f'alice:***@{host}' in asked and 'as --data, or the password in .netrc' in asked
    monkeypatch.setenv('IMAGO_DATA_PASSWORD', 's3cr/t é')   # which the run must not have sent wherever it likes
    assert evaluate.main([str(tmp_path / 'run')]) == 2
    assert main([str(tmp_path / 'run' / 'config.yaml'), 'total_kimg=0.036']) == 0
    monkeypatch.delenv('IMAGO_DATA_PASSWORD')
    write_netrc(tmp_path, 'machine 127.0.0.1 login alice password "s3cr/t é"')
    options = evaluate_options(tmp_path / 'run')
    assert settings(options)[1] == f'http://alice:***@{host}/data'
    assert scoring.find_pictures(settings(options)[1], settings(options)[0], 5).count == 5
    told = capfd.readouterr()
    assert files_with('s3cr', tmp_path / 'run') == [] and 's3cr' not in asked + told.out + told.err


def evaluate_options(run: Path):
    return type('Options', (), {'source': str(run), 'data': None, 'extractor': 'effnet_lite0'})()


@pytest.mark.parametrize('location, how', [
    ('pipe:fetch --token s3cr {}', 'reads its dataset by a command'),
    ('https://host/x?token=s3cr', 'give the whole location as --data\n'),
    ('https://ghp_0123456789s3cr0123456@host/x', 'give the whole location as --data\n'), ('PIPE:touch s3cr {}', 'no reader'),
    ('https://alice@host/x', 'as --data, or the password in .netrc')])
def test_what_a_run_lacks_is_asked_for_in_one_line(tmp_path, capsys, monkeypatch, location, how):
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    tree = tiny_tree('shards', tmp_path)
    masked = to_yaml(parse_config(tree | {'data': {'path': location, 'lanes': 12}}, 'test')) if 'PIPE' not in location else \
        yaml.safe_dump(tree | {'data': {'path': location, 'lanes': 12}})
    (tmp_path / 'config.yaml').write_text(masked)
    assert evaluate.main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert how in told and told.count('\n') == 1 and ('s3cr' not in told or 'PIPE' in location)


@pytest.mark.parametrize('location', ['https://alice:***@host/x?token=***', 'pipe:curl -u alice:*** {}'])
def test_a_masked_location_is_not_opened(location):
    with pytest.raises(ValueError, match='it was masked when it was written.*give the whole location'):
        open_dataset(location)


WRONG = ['data.path=htps://alice:s3cr@host/x', 'data.path=https://alice:s3cr/t@host/x', "data.path='pipe:curl -u alice:s3cr x'",
         'data.path=["https://alice:s3cr@host/x"]', 'data.path="https://alice:s3cr@host/x',
         'data={path: "https://alice:s3cr@host", x: 1}',
         'guard.data=sftp://alice:s3cr@host/x', 'data=https://alice:s3cr@host', 'data.cache_dir=https://alice:s3cr@host/x']


@pytest.mark.parametrize('override', WRONG)
def test_messages_about_wrong_locations_hide_their_secrets(shards, tmp_path, override):
    path = tmp_path / 'c.yaml'
    path.write_text(yaml.safe_dump(tiny_tree(shards, tmp_path / 'run')))
    with pytest.raises(ValueError) as caught:
        load_config(str(path), [override])
    assert 's3cr' not in str(caught.value) and '\n' not in str(caught.value)
    path.write_text('data:\n  path: "https://alice:s3cr@host/x" y\n')
    with pytest.raises(ValueError, match='not valid YAML') as caught:
        load_config(str(path))
    assert 's3cr' not in str(caught.value)


def test_a_password_that_may_change_is_no_change_of_the_configuration(tmp_path):
    one, other = (parse_config(tiny_tree(f'https://alice:{word}@host/x', tmp_path), 'test') for word in ('s3cr', 'new'))
    assert one.model_dump() == other.model_dump() and one.data.path != other.data.path
    assert 's3cr' not in repr(one) and json.loads(one.model_dump_json())['data']['path'] == 'https://alice:***@host/x'


LAUNCHERS = {'slurm': (slurm, []), 'kubernetes': (kubernetes, ['--image', 'imago', '--pvc', 'lab:/lab'])}


@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_launchers_write_no_password(tmp_path, capfd, launcher):
    module, more = LAUNCHERS[launcher]
    path, out = tmp_path / 'c.yaml', tmp_path / 'job'
    path.write_text(yaml.safe_dump(tiny_tree('/lab/x', '/lab/run')))
    command = [str(path), '--nodes', '1', '--gpus-per-node', '1', *more, '-o', str(out)]
    override = 'data.path=https://alice:s3cr@host/x'
    assert module.main([*command, override]) == 0
    assert 'https://alice:***@host/x' in out.read_text() and files_with('s3cr', tmp_path) == []
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    told = capfd.readouterr()
    assert re.search(r'password of data.path=https://alice:\*\*\*@host/x is not written down; .*netrc', told.err)
    out.unlink()
    for secret in ('data.path=https://host/x?token=s3cr', "guard.data='pipe:curl -u alice:s3cr {}'",
                   'data={path: "pipe:K_TOKEN=s3cr {}"}'):
        assert module.main([*command, secret]) == 2
        told = capfd.readouterr()
        assert 'has a secret in it' in told.err and 's3cr' not in told.out + told.err and not out.exists()
    assert module.main([*command, 'data.path=pipe:curl -u alice:$WORD {}']) == 0 and 'alice:$WORD' in out.read_text()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    out.unlink()
    assert module.main(command) == 0 and stat.S_IMODE(out.stat().st_mode) & 0o444


def test_pods_see_held_out_pictures_too(tmp_path, capfd):
    path = tmp_path / 'c.yaml'
    path.write_text(yaml.safe_dump(tiny_tree('/lab/x', '/lab/run')))
    assert kubernetes.main([str(path), '--nodes', '1', '--gpus-per-node', '1', *LAUNCHERS['kubernetes'][1],
                            'guard.data=/else/y']) == 2
    assert 'guard.data=/else/y lies on no --pvc' in capfd.readouterr().err
