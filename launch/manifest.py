"""What each API of Kubernetes is told of a run: its pods, and which of them start again."""

import argparse

from imago.launch.torchrun import STOPPED
from imago.trainer.config.load import Config

PORT = 23456             # where the nodes meet; the training operator opens this one
KILLED = 137             # by SIGKILL, as for memory
MOST_KILLED = 3          # of the pods of a run, before it ends
CONFIG_FOLDER = '/etc/imago'
NODE = 'node'            # Trainer's names for what trains, of the job and of its container
TRAINS = {'trainer.kubeflow.org/trainjob-ancestor-step': 'trainer'}


def train_job(options: argparse.Namespace, config: Config, metadata: dict) -> list[dict]:
    """For Kubeflow Trainer v2. No runtime of the cluster's own knows our volumes or exit statuses, so one goes with the job."""
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
    """For JobSet alone."""
    template = pod(options, config, metadata['name'], NODE, f'{NODE}-0-0.{metadata["name"]}')
    job = {'completionMode': 'Indexed', 'completions': options.nodes, 'parallelism': options.nodes, **restarting(template)}
    return [{'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet', 'metadata': metadata,
             'spec': {'replicatedJobs': [{'name': NODE, 'replicas': 1, 'template': {'spec': job}}]}}]


def pytorch_job(options: argparse.Namespace, config: Config, metadata: dict) -> list[dict]:
    """For the training operator, which Kubeflow Trainer v2 replaces. It starts pods again whose status is 128 or more."""
    template = {'spec': pod(options, config, metadata['name'], 'pytorch', 'master-0')}   # the operator looks for this container
    container, = template['spec']['containers']
    container['ports'] = [{'name': 'pytorchjob-port', 'containerPort': PORT}]
    replicas = {'Master': {'replicas': 1, 'restartPolicy': 'ExitCode', 'template': template}}
    if options.nodes > 1:
        replicas['Worker'] = {'replicas': options.nodes - 1, 'restartPolicy': 'ExitCode', 'template': template}
    return [{'apiVersion': 'kubeflow.org/v1', 'kind': 'PyTorchJob', 'metadata': metadata,
             'spec': {'runPolicy': {'cleanPodPolicy': 'Running'}, 'pytorchReplicaSpecs': replicas}}]


APIS = {'trainjob': train_job, 'jobset': job_set, 'v1': pytorch_job}


def restarting(template: dict) -> dict:
    """A Job's specification. The first rule that fits a pod counts: Ignore starts it again, FailJob ends all.

    A pod that fits none, as it was killed, starts again too, but is counted. Rules are only for pods that Kubernetes leaves as
    they ended.
    """
    return {
        'backoffLimit': MOST_KILLED,
        'podFailurePolicy': {'rules': [
            {'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]},   # evicted, preempted
            {'action': 'Ignore', 'onExitCodes': {'containerName': NODE, 'operator': 'In', 'values': [STOPPED]}},
            {'action': 'FailJob', 'onExitCodes': {'containerName': NODE, 'operator': 'NotIn', 'values': [KILLED, STOPPED]}}]},
        'template': {'spec': {'restartPolicy': 'Never', **template}}}


def pod(options: argparse.Namespace, config: Config, name: str, container: str, head: str) -> dict:
    """The same for all nodes, under torchrun with c10d rendezvous at NAME-HEAD."""
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
