"""The manifest against the published schema of PyTorchJob (kubeflow.org/v1), written down as far as it is used."""

import pytest
import yaml
from runs_for_tests import write_tiny

from imago.launch.kubernetes import main
from imago.trainer.config.load import load_config, parse_config

OBJECT = {'metadata!': {'name!': str, 'namespace': str}, 'apiVersion!': str, 'kind!': str}
# a key with ! is required, an unknown one is an error; [x] is a list of x, {str: x} a map
POD = {
    'restartPolicy': str, 'terminationGracePeriodSeconds': int, 'hostNetwork': bool, 'nodeSelector': {str: str},
    'containers!': [{
        'name!': str, 'image!': str, 'workingDir': str, 'command': [str], 'args': [str],
        'env': [{'name!': str, 'value': str}], 'ports': [{'name': str, 'containerPort!': int}],
        'resources': {'limits': {str: (int, str)}, 'requests': {str: (int, str)}},
        'volumeMounts': [{'name!': str, 'mountPath!': str, 'readOnly': bool, 'subPath': str}]}],
    'volumes': [{'name!': str, 'persistentVolumeClaim': {'claimName!': str, 'readOnly': bool},
                 'configMap': {'name!': str}, 'emptyDir': {'medium': str, 'sizeLimit': (int, str)}}]}
REPLICA = {'replicas': int, 'restartPolicy': {'Always', 'OnFailure', 'Never', 'ExitCode'}, 'template': {'spec': POD}}
PYTORCH_JOB = OBJECT | {'spec!': {
    'runPolicy': {'cleanPodPolicy': {'Running', 'All', 'None'}, 'backoffLimit': int, 'ttlSecondsAfterFinished': int,
                  'activeDeadlineSeconds': int, 'suspend': bool},
    'nprocPerNode': str,
    'elasticPolicy': {'minReplicas': int, 'maxReplicas': int, 'rdzvBackend': str, 'maxRestarts': int},
    'pytorchReplicaSpecs!': {'Master': REPLICA, 'Worker': REPLICA}}}
CONFIG_MAP = OBJECT | {'data': {str: str}}


def problems(value, schema, where='manifest'):
    """Say in words what in `value` is not as `schema` demands."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f'{where} is no mapping']
        if str in schema:
            return [problem for key in value for problem in problems(value[key], schema[str], f'{where}.{key}')]
        fields = {key.rstrip('!'): kind for key, kind in schema.items()}
        return ([f'{where}.{key} is missing' for key in fields if f'{key}!' in schema and key not in value]
                + [f'{where}.{key} is unknown' for key in value if key not in fields]
                + [problem for key in value.keys() & fields
                   for problem in problems(value[key], fields[key], f'{where}.{key}')])
    if isinstance(schema, list):
        return [problem for number, entry in enumerate(value)
                for problem in problems(entry, schema[0], f'{where}[{number}]')]
    fits = value in schema if isinstance(schema, set) else isinstance(value, schema)
    return [] if fits else [f'{where}={value!r} is not of {schema}']


def write(shards, tmp_path, *arguments):
    """Write the manifest of a tiny configuration with these arguments, and return (ConfigMap, PyTorchJob)."""
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', data={'path': '/lab/shards', 'lanes': 12})
    out = tmp_path / 'job.yaml'
    assert main([str(config), 'run_dir=/lab/runs/Tiny_Run', '--gpus-per-node', '2', '--image', 'registry:5000/imago:1',
                 '--pvc', 'claim:/lab', '-o', str(out), *arguments]) == 0
    return list(yaml.safe_load_all(out.read_text()))


@pytest.mark.parametrize('nodes', [1, 2])
def test_the_manifest_is_a_pytorch_job(shards, tmp_path, nodes):
    config_map, job = write(shards, tmp_path, '--nodes', str(nodes), 'device=auto', '--namespace', 'lab')
    assert problems(config_map, CONFIG_MAP) == [] and problems(job, PYTORCH_JOB) == []
    assert (job['apiVersion'], job['kind']) == ('kubeflow.org/v1', 'PyTorchJob')
    assert job['metadata'] == config_map['metadata'] == {'name': 'imago-tiny-run', 'namespace': 'lab'}
    replicas = job['spec']['pytorchReplicaSpecs']
    assert replicas['Master']['replicas'] == 1 and sum(replica['replicas'] for replica in replicas.values()) == nodes
    for replica in replicas.values():
        container, = replica['template']['spec']['containers']
        assert container['name'] == 'pytorch'   # by which the operator finds it
        assert container['resources']['limits'] == {'nvidia.com/gpu': 2}
        assert {f'--nodes={nodes}', '--gpus-per-node=2',
                '--rendezvous=imago-tiny-run-master-0:23456'} <= set(container['command'])


def test_each_mount_has_its_volume_and_memory_is_shared(shards, tmp_path):
    _, job = write(shards, tmp_path, '--nodes', '2', '--pvc', 'other:/cache', '--shm', '64Gi', '--grace', '600')
    pod = job['spec']['pytorchReplicaSpecs']['Worker']['template']['spec']
    volumes = {volume.pop('name'): volume for volume in pod['volumes']}
    mounts = {mount['mountPath']: volumes[mount['name']] for mount in pod['containers'][0]['volumeMounts']}
    assert mounts == {
        '/lab': {'persistentVolumeClaim': {'claimName': 'claim'}},
        '/cache': {'persistentVolumeClaim': {'claimName': 'other'}},
        '/etc/imago': {'configMap': {'name': 'imago-tiny-run'}},
        '/dev/shm': {'emptyDir': {'medium': 'Memory', 'sizeLimit': '64Gi'}}}
    assert pod['terminationGracePeriodSeconds'] == 600


def test_pods_read_the_very_configuration(shards, tmp_path):
    config_map, job = write(shards, tmp_path, '--nodes', '2', 'optim.g_lr=0.5')
    expected = load_config(tmp_path / 'c.yaml', ['run_dir=/lab/runs/Tiny_Run', 'optim.g_lr=0.5'])
    assert parse_config(yaml.safe_load(config_map['data']['config.yaml']), 'manifest') == expected
    command = job['spec']['pytorchReplicaSpecs']['Master']['template']['spec']['containers'][0]['command']
    assert '/etc/imago/config.yaml' in command


@pytest.mark.parametrize('arguments', [
    ['--shm', '1.5Gi'], ['--shm', '500M'], ['--shm', '2e9'], ['--namespace', 'lab-1'], ['--pvc', 'my.claim-2:/mnt/x'],
    ['--image', 'registry:5000/lab/imago:1'], ['--image', 'imago@sha256:' + 'a' * 64], ['run_dir=runs/../runs/x'],
    ['data.path=https://host/shards'],
])
def test_what_kubernetes_takes_is_taken(shards, tmp_path, arguments):
    write(shards, tmp_path, '--nodes', '2', *arguments)


def test_the_schema_refuses(shards, tmp_path):
    _, job = write(shards, tmp_path, '--nodes', '2')
    job['spec']['pytorchReplicaSpecs']['Master']['restartPolicy'] = 'Sometimes'
    job['spec']['replicas'] = 2
    del job['metadata']['name']
    assert len(problems(job, PYTORCH_JOB)) == 3


@pytest.mark.parametrize('arguments, message', [
    (['--nodes', '5'], 'data.lanes=12 is not a multiple of the 5 ranks'),
    (['--pvc', 'claim'], 'argument --pvc: claim is not of the form NAME:/PATH'),
    (['--pvc', 'claim:lab'], 'argument --pvc: claim:lab is not of the form NAME:/PATH'),
    (['run_dir=/elsewhere/run'], 'run_dir=/elsewhere/run lies on no --pvc'),
    (['--name', 'x' * 51], 'take at most 50 small letters'),
    (['--grace', '0'], 'argument --grace: 0 is no whole number from 1 to 86400'),
    (['--pvc', 'A B:/x'], 'argument --pvc: A B:/x is not of the form'),
    (['--pvc', 'a..b:/x'], 'is not of the form'),
    (['--pvc', 'a:/'], 'no volume goes there; choose a plain folder of its own, e.g. a:/mnt/a'),
    (['--pvc', 'a:/etc'], 'no volume goes there'),
    (['--pvc', 'a:/dev/shm'], 'no volume goes there'),
    (['--pvc', 'a:/x/../etc/imago'], 'no volume goes there'),
    (['--pvc', 'a:/x:y'], 'no volume goes there'),
    (['--pvc', 'a:/x\ny'], 'control characters'),
    (['--pvc', 'other:/lab'], '--pvc: two claims at /lab'),
    (['run_dir=/lab/../../etc/r'], 'run_dir=/lab/../../etc/r lies on no --pvc'),
    (['run_dir=../r'], 'run_dir=../r lies on no --pvc'),
    (['guard.data=/elsewhere'], 'guard.data=/elsewhere lies on no --pvc'),
    (['--image', ''], "argument --image: '': write it as"),
    (['--image', 'a b'], 'argument --image: a b: write it as'),
    (['--image', 'x\n'], r'argument --image: x\n: write it as'),
    (['--namespace', ''], "argument --namespace: '': take small letters"),
    (['--namespace', 'a b'], 'argument --namespace: a b: take small letters'),
    (['--namespace', 'Lab'], 'argument --namespace: Lab: take small letters'),
    (['--namespace', 'x' * 64], 'take small letters'),
    (['--shm', 'lots'], 'argument --shm: lots is no amount of memory'),
    (['--shm', ''], "argument --shm: '' is no amount of memory"),
    (['--shm', '0'], 'argument --shm: 0 is no amount of memory'),
    (['--shm', '16'], 'argument --shm: 16 is no amount of memory from 1Mi'),
    (['--shm', '500m'], 'is no amount of memory'),
    (['--shm', '9e99'], 'is no amount of memory'),
    (['--nodes', '100000000'], 'argument --nodes: 100000000 is no whole number'),
])
def test_bad_input_is_one_line_and_status_2(shards, tmp_path, capsys, arguments, message):
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', data={'path': '/lab/shards', 'lanes': 12})
    try:
        status = main([str(config), 'run_dir=/lab/run', '--nodes', '2', '--gpus-per-node', '1', '--image', 'imago',
                       '--pvc', 'claim:/lab', *arguments])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err
    assert status == 2 and message in told and told.startswith('imago launch kubernetes: error: ') and told.count('\n') == 1
