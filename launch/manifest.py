"""A manifest tells an API of Kubernetes how the pods of a run look, and which of them start again."""

import argparse

from imago.launch.torchrun import STOPPED
from imago.trainer.config.load import Config

PORT = 23456             # the nodes meet here; the training operator opens this one
KILLED = 137             # exit status after SIGKILL, as for memory
MOST_KILLED = 3          # a run ends when more of its pods were killed
CONFIG_FOLDER = '/etc/imago'
NODE = 'node'            # Trainer finds the job that trains, and its container, by this name and label
TRAINS = {'trainer.kubeflow.org/trainjob-ancestor-step': 'trainer'}


def train_job(options: argparse.Namespace, config: Config, metadata: dict) -> list[dict]:
    """Return a TrainJob for Kubeflow Trainer v2, after the runtime that it refers to.

    The runtimes that come with Trainer know neither our volumes nor our exit statuses, and a TrainJob cannot add the rules.
    """
    template = pod(options, config, metadata['name'], NODE, f'{NODE}-0-0.{metadata["name"]}')
    container, = template['containers']
    trainer = {'numNodes': options.nodes, **{key: container.pop(key) for key in ('image', 'command', 'env')},
               'resourcesPerNode': container.pop('resources')}
    jobs = [{'name': NODE, 'template': {'metadata': {'labels': TRAINS}, 'spec': restarting(template)}}]
    api = 'trainer.kubeflow.org/v1alpha1'
    return [
        {'apiVersion': api, 'kind': 'TrainingRuntime', 'metadata': metadata,
         'spec': {'mlPolicy': {'numNodes': options.nodes}, 'template': {'spec': {'replicatedJobs': jobs}}}},
        {'apiVersion': api, 'kind': 'TrainJob', 'metadata': metadata,
         'spec': {'runtimeRef': {'kind': 'TrainingRuntime', 'name': metadata['name']}, 'trainer': trainer}}]


def job_set(options: argparse.Namespace, config: Config, metadata: dict) -> list[dict]:
    """Return a JobSet, for clusters without Kubeflow."""
    template = pod(options, config, metadata['name'], NODE, f'{NODE}-0-0.{metadata["name"]}')
    job = {'completionMode': 'Indexed', 'completions': options.nodes, 'parallelism': options.nodes, **restarting(template)}
    return [{'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet', 'metadata': metadata,
             'spec': {'replicatedJobs': [{'name': NODE, 'replicas': 1, 'template': {'spec': job}}]}}]


def pytorch_job(options: argparse.Namespace, config: Config, metadata: dict) -> list[dict]:
    """Return a PyTorchJob for the training operator, which starts pods again that end with 128 or more."""
    template = {'spec': pod(options, config, metadata['name'], 'pytorch', 'master-0')}   # the operator finds the container so
    container, = template['spec']['containers']
    container['ports'] = [{'name': 'pytorchjob-port', 'containerPort': PORT}]
    replicas = {'Master': {'replicas': 1, 'restartPolicy': 'ExitCode', 'template': template}}
    if options.nodes > 1:
        replicas['Worker'] = {'replicas': options.nodes - 1, 'restartPolicy': 'ExitCode', 'template': template}
    return [{'apiVersion': 'kubeflow.org/v1', 'kind': 'PyTorchJob', 'metadata': metadata,
             'spec': {'runPolicy': {'cleanPodPolicy': 'Running'}, 'pytorchReplicaSpecs': replicas}}]


APIS = {'trainjob': train_job, 'jobset': job_set, 'v1': pytorch_job}


def restarting(template: dict) -> dict:
    """Return the specification of a Job whose pods start again after some exit statuses.

    The first rule that fits a pod decides: Ignore starts it again, FailJob ends the Job. A pod that was killed fits none: it
    starts again too, but is counted. Kubernetes takes rules only with the restart policy Never.
    """
    return {
        'backoffLimit': MOST_KILLED,
        'podFailurePolicy': {'rules': [
            {'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]},  # evicted, or preempted
            {'action': 'Ignore', 'onExitCodes': {'containerName': NODE, 'operator': 'In', 'values': [STOPPED]}},
            {'action': 'FailJob', 'onExitCodes': {'containerName': NODE, 'operator': 'NotIn', 'values': [KILLED, STOPPED]}}]},
        'template': {'spec': {'restartPolicy': 'Never', **template}}}


def pod(options: argparse.Namespace, config: Config, name: str, container: str, head: str) -> dict:
    """Return the pod, which is the same for all nodes. They meet at the pod NAME-HEAD, by torchrun's c10d rendezvous."""
    gpus, claims = options.gpus_per_node, list(enumerate(options.pvc))
    limits = {} if config.device == 'cpu' else {'limits': {'nvidia.com/gpu': gpus}}
    volumes = [{'name': f'storage-{number}', 'persistentVolumeClaim': {'claimName': pvc}} for number, (pvc, _) in claims]
    mounts = [{'name': f'storage-{number}', 'mountPath': where} for number, (_, where) in claims]
    return {
        'terminationGracePeriodSeconds': options.grace,
        'containers': [{
            'name': container,
            'image': options.image,
            'workingDir': options.pvc[0][1],
            'command': ['python', '-m', 'imago.launch.node', f'{CONFIG_FOLDER}/config.yaml', f'--nodes={options.nodes}',
                        f'--gpus-per-node={gpus}', f'--rendezvous={name}-{head}:{PORT}', f'--id={name}'],
            'env': [{'name': 'PYTHONSAFEPATH', 'value': '1'}],
            'resources': {'requests': {'cpu': options.cpus_per_gpu * gpus}, **limits},
            'volumeMounts': [*mounts, {'name': 'config', 'mountPath': CONFIG_FOLDER}, {'name': 'shm', 'mountPath': '/dev/shm'}]}],
        'volumes': [*volumes, {'name': 'config', 'configMap': {'name': f'{name}-config'}},
                    {'name': 'shm', 'emptyDir': {'medium': 'Memory', 'sizeLimit': options.shm}}]}
