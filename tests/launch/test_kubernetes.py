"""The manifest must be as the published schema of each API wants it; the schemas are written down as far as they are used."""

import pytest
import yaml
from runs_for_tests import write_tiny

from imago.launch.kubernetes import main
from imago.trainer.config.load import load_config, parse_config

OBJECT = {'metadata!': {'name!': str, 'namespace': str}, 'apiVersion!': str, 'kind!': str}
LABELLED = {'metadata': {'labels': {str: str}, 'annotations': {str: str}}}
RESOURCES = {'limits': {str: (int, str)}, 'requests': {str: (int, str)}}
VARIABLES = [{'name!': str, 'value': str}]
# a key with ! is required, an unknown one is an error; [x] is a list of x, {str: x} a map
POD = {
    'restartPolicy': {'Always', 'OnFailure', 'Never'}, 'terminationGracePeriodSeconds': int, 'hostNetwork': bool,
    'nodeSelector': {str: str},
    'containers!': [{
        'name!': str, 'image': str, 'workingDir': str, 'command': [str], 'args': [str], 'env': VARIABLES,
        'ports': [{'name': str, 'containerPort!': int}], 'resources': RESOURCES,
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
JOB = {   # batch/v1, of Kubernetes 1.31
    'completions': int, 'parallelism': int, 'completionMode': {'Indexed', 'NonIndexed'}, 'backoffLimit': int,
    'podReplacementPolicy': {'TerminatingOrFailed', 'Failed'},
    'podFailurePolicy': {'rules!': [{
        'action!': {'FailJob', 'FailIndex', 'Ignore', 'Count'},
        'onExitCodes': {'containerName': str, 'operator!': {'In', 'NotIn'}, 'values!': [int]},
        'onPodConditions': [{'type!': str, 'status!': {'True', 'False', 'Unknown'}}]}]},
    'template!': LABELLED | {'spec': POD}}
JOB_SET_SPEC = {
    'replicatedJobs': [{'name!': str, 'replicas': int, 'groupName': str, 'template!': LABELLED | {'spec': JOB}}],
    'network': {'enableDNSHostnames': bool, 'subdomain': str, 'publishNotReadyAddresses': bool},
    'failurePolicy': {'maxRestarts': int, 'restartStrategy': {'Recreate', 'BlockingRecreate', 'InPlaceRestart'}},
    'suspend': bool, 'ttlSecondsAfterFinished': int}
JOB_SET = OBJECT | {'spec': JOB_SET_SPEC}
RUNTIME = OBJECT | {'spec': {
    'mlPolicy': {'numNodes': int, 'torch': {'numProcPerNode': (int, str)}}, 'template': LABELLED | {'spec': JOB_SET_SPEC}}}
TRAIN_JOB = OBJECT | {'spec': {
    'runtimeRef!': {'name!': str, 'kind': {'TrainingRuntime', 'ClusterTrainingRuntime'}, 'apiGroup': str},
    'suspend': bool, 'managedBy': str,
    'trainer': {'image': str, 'command': [str], 'args': [str], 'env': VARIABLES, 'numNodes': int, 'numProcPerNode': int,
                'resourcesPerNode': RESOURCES}}}
CONFIG_MAP = OBJECT | {'data': {str: str}}
SCHEMAS = {('v1', 'ConfigMap'): CONFIG_MAP, ('kubeflow.org/v1', 'PyTorchJob'): PYTORCH_JOB,
           ('jobset.x-k8s.io/v1alpha2', 'JobSet'): JOB_SET, ('trainer.kubeflow.org/v1alpha1', 'TrainingRuntime'): RUNTIME,
           ('trainer.kubeflow.org/v1alpha1', 'TrainJob'): TRAIN_JOB}
APIS = ('trainjob', 'jobset', 'v1')


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
    """Write the manifest of a tiny configuration with these arguments, check it, and return the documents by their kind."""
    tmp_path.mkdir(exist_ok=True)
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', data={'path': '/lab/shards', 'lanes': 12})
    out = tmp_path / 'job.yaml'
    assert main([str(config), 'run_dir=/lab/runs/Tiny_Run', '--gpus-per-node', '2', '--image', 'registry:5000/imago:1',
                 '--pvc', 'claim:/lab', '-o', str(out), *arguments]) == 0
    documents = list(yaml.safe_load_all(out.read_text()))
    for document in documents:
        assert problems(document, SCHEMAS[document['apiVersion'], document['kind']]) == []
    return {document['kind']: document for document in documents}


def job_of(documents):
    """Return the Job that JobSet makes; for a TrainJob, do first what Trainer does with its runtime."""
    if 'JobSet' in documents:
        replicated, = documents['JobSet']['spec']['replicatedJobs']
        return replicated['template']['spec']
    runtime, trainer = documents['TrainingRuntime']['spec'], documents['TrainJob']['spec']['trainer']
    replicated, = runtime['template']['spec']['replicatedJobs']
    assert replicated['template']['metadata']['labels'] == {'trainer.kubeflow.org/trainjob-ancestor-step': 'trainer'}
    job = replicated['template']['spec']
    container, = job['template']['spec']['containers']
    assert container['name'] == replicated['name'] == 'node'    # by which Trainer finds them
    container |= {key: trainer[key] for key in ('image', 'command', 'env')} | {'resources': trainer['resourcesPerNode']}
    return job | {'completionMode': 'Indexed', 'completions': trainer['numNodes'], 'parallelism': trainer['numNodes']}


def pod_of(documents):
    if 'PyTorchJob' in documents:
        return documents['PyTorchJob']['spec']['pytorchReplicaSpecs']['Master']['template']['spec']
    return job_of(documents)['template']['spec']


@pytest.mark.parametrize('nodes', [1, 2])
def test_v1_is_a_pytorch_job(shards, tmp_path, nodes):
    documents = write(shards, tmp_path, '--nodes', str(nodes), 'device=auto', '--api', 'v1')
    assert list(documents) == ['ConfigMap', 'PyTorchJob']
    replicas = documents['PyTorchJob']['spec']['pytorchReplicaSpecs']
    assert replicas['Master']['replicas'] == 1 and sum(replica['replicas'] for replica in replicas.values()) == nodes
    for replica in replicas.values():
        assert replica['restartPolicy'] == 'ExitCode'
        container, = replica['template']['spec']['containers']
        assert container['name'] == 'pytorch'   # by which the operator finds it


@pytest.mark.parametrize('api, kinds', [('trainjob', ['ConfigMap', 'TrainingRuntime', 'TrainJob']),
                                        ('jobset', ['ConfigMap', 'JobSet'])])
def test_jobs_have_a_pod_a_node(shards, tmp_path, api, kinds):
    documents = write(shards, tmp_path, '--nodes', '2', '--api', api)
    assert list(documents) == kinds    # a runtime before the job that refers to it
    job = job_of(documents)
    assert (job['completions'], job['parallelism'], job['completionMode']) == (2, 2, 'Indexed')


def test_a_train_job_is_the_default_and_refers_to_the_runtime_beside_it(shards, tmp_path):
    documents = write(shards, tmp_path, '--nodes', '2', '--namespace', 'lab')
    assert documents['TrainJob']['spec']['runtimeRef'] == {'kind': 'TrainingRuntime', 'name': 'imago-tiny-run'}
    assert documents['TrainingRuntime']['metadata'] == {'name': 'imago-tiny-run', 'namespace': 'lab'}


@pytest.mark.parametrize('api, head', [('trainjob', 'imago-tiny-run-node-0-0.imago-tiny-run'),
                                       ('jobset', 'imago-tiny-run-node-0-0.imago-tiny-run'), ('v1', 'imago-tiny-run-master-0')])
def test_nodes_meet_at_the_first_pod(shards, tmp_path, api, head):
    documents = write(shards, tmp_path, '--nodes', '2', 'device=auto', '--namespace', 'lab', '--api', api)
    assert {document['metadata']['namespace'] for document in documents.values()} == {'lab'}
    container, = pod_of(documents)['containers']
    assert container['resources'] == {'requests': {'cpu': 16}, 'limits': {'nvidia.com/gpu': 2}}
    assert container['image'] == 'registry:5000/imago:1'
    assert {'--nodes=2', '--gpus-per-node=2', f'--rendezvous={head}:23456'} <= set(container['command'])


@pytest.mark.parametrize('api', ['trainjob', 'jobset'])
@pytest.mark.parametrize('status, disrupted, wanted', [
    (143, False, 'Ignore'), (143, True, 'Ignore'), (137, True, 'Ignore'), (2, True, 'Ignore'),    # it starts again, and ends then
    (1, False, 'FailJob'), (2, False, 'FailJob'), (3, False, 'FailJob'), (139, False, 'FailJob'), (137, False, 'Count')])
def test_what_a_pod_ended_with_decides_whether_it_starts_again(shards, tmp_path, api, status, disrupted, wanted):
    job = job_of(write(shards, tmp_path, '--nodes', '2', '--api', api))
    assert job['template']['spec']['restartPolicy'] == 'Never'    # Kubernetes takes rules with no other policy
    assert job['backoffLimit'] == 3
    conditions = [{'type': 'DisruptionTarget', 'status': 'True'}] if disrupted else []

    def fits(rule):
        if 'onPodConditions' in rule:
            return any(condition in conditions for condition in rule['onPodConditions'])
        codes = rule['onExitCodes']
        assert codes['containerName'] == job['template']['spec']['containers'][0]['name']
        assert codes['values'] == sorted(set(codes['values']))    # Kubernetes refuses others
        return (status in codes['values']) == (codes['operator'] == 'In')
    assert next((rule['action'] for rule in job['podFailurePolicy']['rules'] if fits(rule)), 'Count') == wanted


@pytest.mark.parametrize('api', APIS)
def test_each_mount_has_its_volume_and_memory_is_shared(shards, tmp_path, api):
    documents = write(shards, tmp_path, '--nodes', '2', '--pvc', 'other:/cache', '--shm', '64Gi', '--grace', '600', '--api', api)
    pod = pod_of(documents)
    volumes = {volume.pop('name'): volume for volume in pod['volumes']}
    mounts = {mount['mountPath']: volumes[mount['name']] for mount in pod['containers'][0]['volumeMounts']}
    assert mounts == {
        '/lab': {'persistentVolumeClaim': {'claimName': 'claim'}},
        '/cache': {'persistentVolumeClaim': {'claimName': 'other'}},
        '/etc/imago': {'configMap': {'name': documents['ConfigMap']['metadata']['name']}},
        '/dev/shm': {'emptyDir': {'medium': 'Memory', 'sizeLimit': '64Gi'}}}
    assert pod['terminationGracePeriodSeconds'] == 600


@pytest.mark.parametrize('api', APIS)
def test_pods_read_the_very_configuration(shards, tmp_path, api):
    documents = write(shards, tmp_path, '--nodes', '2', 'optim.g_lr=0.5', '--api', api)
    expected = load_config(tmp_path / 'c.yaml', ['run_dir=/lab/runs/Tiny_Run', 'optim.g_lr=0.5'])
    assert parse_config(yaml.safe_load(documents['ConfigMap']['data']['config.yaml']), 'manifest') == expected
    assert '/etc/imago/config.yaml' in pod_of(documents)['containers'][0]['command']


@pytest.mark.parametrize('arguments', [
    ['--shm', '1.5Gi'], ['--shm', '500M'], ['--shm', '2e9'], ['--namespace', 'lab-1'], ['--pvc', 'my.claim-2:/mnt/x'],
    ['--image', 'registry:5000/lab/imago:1'], ['--image', 'imago@sha256:' + 'a' * 64], ['run_dir=runs/../runs/x'],
    ['data.path=https://host/shards'],
])
def test_what_kubernetes_takes_is_taken(shards, tmp_path, arguments):
    write(shards, tmp_path, '--nodes', '2', *arguments)


def test_the_schema_refuses(shards, tmp_path):
    job = write(shards, tmp_path, '--nodes', '2', '--api', 'v1')['PyTorchJob']
    job['spec']['pytorchReplicaSpecs']['Master']['restartPolicy'] = 'Sometimes'
    job['spec']['replicas'] = 2
    del job['metadata']['name']
    assert len(problems(job, PYTORCH_JOB)) == 3
    job_set = write(shards, tmp_path / 'other', '--nodes', '2', '--api', 'jobset')['JobSet']
    job = job_set['spec']['replicatedJobs'][0]['template']['spec']
    job['podFailurePolicy']['rules'][0] |= {'action': 'Restart', 'onPodConditions': [{'type': 'DisruptionTarget'}]}
    job['template']['spec']['restartPolicy'] = 'ExitCode'
    assert len(problems(job_set, JOB_SET)) == 3


@pytest.mark.parametrize('arguments, message', [
    (['--nodes', '5'], 'data.lanes=12 is not a multiple of the 5 ranks'),
    (['--pvc', 'claim'], 'argument --pvc: claim is not of the form NAME:/PATH'),
    (['--pvc', 'claim:lab'], 'argument --pvc: claim:lab is not of the form NAME:/PATH'),
    (['run_dir=/elsewhere/run'], 'run_dir=/elsewhere/run lies on no --pvc'),
    (['--name', 'x' * 46], 'take at most 45 small letters'),
    (['--api', 'v2'], "argument --api: invalid choice: 'v2' (choose from"),
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
