"""Train what `make demo` might train for equal times, score each by KID, and print the table of docs/demo.md.

python tests/bench/demo.py OUT [--seconds S] [--only NAME ...]     about 2 minutes and S CPU seconds a candidate

Each candidate runs on one thread, and its speed is counted in CPU seconds, so that other work on the machine changes nothing:
it is shown speed x S pictures. The instructions are kept to AVX2, which is what the slowest machines in use have. Another call
with more seconds goes on from where the first one ended.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {'OMP_NUM_THREADS': '1', 'ATEN_CPU_CAPABILITY': 'avx2', 'ONEDNN_MAX_CPU_ISA': 'AVX2',
                            'MKL_ENABLE_INSTRUCTIONS': 'AVX2'}
COMMON = ['data.path=tests/data/fluent-emoji', 'data.resolution=32', 'data.conditional=true', 'data.workers=1', 'device=cpu',
          'batch=16', 'micro_batch=16', 'ema.half_life_kimg=1', 'ema.start_kimg=0', 'guard.action=off', 'log.grid_kimg=1000',
          'checkpoint.interval_minutes=null', 'checkpoint.interval_kimg=1000']
STYLEGAN2 = ['network.z_dim=128', 'network.w_dim=128', 'network.mapping_layers=2', 'regularizers.r1=0.2']
NARROW = [*STYLEGAN2, 'network.channel_base=512', 'network.channel_max=64']
SNGAN = ['loss.d_steps=1']
BIGGAN = ['network.z_dim=80', 'network.shared_dim=32', 'network.attention=16', 'loss.d_steps=1', 'network.low_precision=none',
          'log.singular_values=false']
R3GAN = ['network.group_size=8', 'network.low_precision=none', 'augment.name=none']
R3GAN_NARROW = [*R3GAN, 'network.channel_base=256', 'network.channel_max=32', 'network.label_dim=16']
R3GAN_FAST = ['regularizers={r1: 0.05, r2: 0.05}', 'optim={g_lr: 0.002, d_lr: 0.002, beta2_ramp: null}']
DIFFAUGMENT = 'augment.name=diffaugment'
CANDIDATES = {  # name: configuration and overrides; without an lr those of its paper
    'stylegan2': ('stylegan2-64', [*STYLEGAN2, 'network.channel_base=1024', 'network.channel_max=128', 'batch=12',
                                   'micro_batch=12']),
    'stylegan2-narrow': ('stylegan2-64', NARROW),
    'stylegan2-narrow-ada': ('stylegan2-64', [*NARROW, 'augment={name: ada, speed_kimg: 10}']),
    'stylegan2-narrow-r1': ('stylegan2-64', [*NARROW, 'regularizers.r1=0.02']),
    'stylegan2-narrow-lr': ('stylegan2-64', [*NARROW, 'optim={g_lr: 0.005, d_lr: 0.005}']),
    'stylegan2-narrow-batch8': ('stylegan2-64', [*NARROW, 'batch=8', 'micro_batch=8']),
    'sngan': ('sngan-64', [*SNGAN, 'network.channels=32']),
    'sngan-diffaugment': ('sngan-64', [*SNGAN, 'network.channels=32', DIFFAUGMENT]),
    'sngan-narrow': ('sngan-64', [*SNGAN, 'network.channels=12', 'optim={g_lr: 0.0004, d_lr: 0.0004}']),
    'dcgan': ('dcgan-64', ['network.channels=32']),
    'dcgan-wide-hinge': ('dcgan-64', ['network.channels=64', 'loss.name=hinge']),
    'dcgan-hinge-diffaugment': ('dcgan-64', ['network.channels=32', 'loss.name=hinge', DIFFAUGMENT, 'batch=32',
                                             'micro_batch=32']),
    'biggan': ('biggan-128', [*BIGGAN, 'network.channels=16']),
    'biggan-narrow': ('biggan-128', [*BIGGAN, 'network.channels=8', 'optim={g_lr: 0.0004, d_lr: 0.0004}']),
    'r3gan': ('r3gan-256', [*R3GAN, 'network.channel_base=512', 'network.channel_max=64', 'regularizers={r1: 0.5, r2: 0.5}']),
    'r3gan-narrow': ('r3gan-256', [*R3GAN_NARROW, *R3GAN_FAST]),
    'r3gan-narrow-seed1': ('r3gan-256', [*R3GAN_NARROW, *R3GAN_FAST, 'seed=1']),
    'r3gan-narrow-lr': ('r3gan-256', [*R3GAN_NARROW, R3GAN_FAST[0], 'optim={g_lr: 0.004, d_lr: 0.004, beta2_ramp: null}']),
    'r3gan-narrow-batch8': ('r3gan-256', [*R3GAN_NARROW, *R3GAN_FAST, 'batch=8', 'micro_batch=8']),
    'r3gan-narrow-r1': ('r3gan-256', [*R3GAN_NARROW, R3GAN_FAST[1], 'regularizers={r1: 0.01, r2: 0.01}']),
    'r3gan-narrow-r1-more': ('r3gan-256', [*R3GAN_NARROW, R3GAN_FAST[1], 'regularizers={r1: 0.2, r2: 0.2}']),
    'r3gan-one-block': ('r3gan-256', [*R3GAN_NARROW, *R3GAN_FAST, 'network.blocks=1']),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--seconds', type=float, default=75, help='CPU seconds of training')
    parser.add_argument('--only', nargs='+', default=list(CANDIDATES), choices=CANDIDATES)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f'All: imago train CONFIGURATION {" ".join(COMMON)} ...')
    for name in arguments.only:
        print(compete(name, arguments.out, arguments.seconds), flush=True)


def compete(name: str, out: Path, seconds: float) -> str:
    """Train, score and sample a candidate. Returns its line of the table."""
    speed, folder = measured(name, out), out / name
    kimg = round(speed * seconds / 1000, 1)
    run([*training(name, folder), f'total_kimg={kimg}', f'log.interval_kimg={kimg / 8}'])
    scored = run(['evaluate', folder, '--extractor', 'effnet_lite0', '--metrics', 'kid', '--images', '1000', '--device', 'cpu',
                  '--json'])
    scores = json.loads(scored.splitlines()[-1])
    run(['sample', folder, '--grid', '--seeds', '0-31', '--out', out / f'{name}-{kimg}'])
    low, high = scores['intervals']['kid_effnet_lite0']
    source, overrides = CANDIDATES[name]
    return (f'| {name} | {speed:.0f} | {kimg} | {scores["values"]["kid_effnet_lite0"]:.3f} [{low:.3f}, {high:.3f}] '
            f'| `{" ".join([source, *overrides])}` |')


def measured(name: str, out: Path, seconds: float = 10) -> float:
    """Return pictures a CPU second on one thread, from a short run or from the last call's file."""
    kept = out / 'speeds.json'
    speeds = json.loads(kept.read_text()) if kept.exists() else {}
    if name in speeds:
        return speeds[name]
    command = [*training(name, out / f'speed-{name}')[1:], 'total_kimg=1000', 'log.interval_kimg=0.048']
    process = subprocess.Popen([sys.executable, '-m', 'imago.trainer', *map(str, command)], cwd=ROOT, env=ENVIRONMENT, text=True,
                               stdout=subprocess.PIPE)
    clock, shown = psutil.Process(process.pid), []    # of each report: CPU seconds, pictures
    for line in process.stdout:
        if 'img/s' in line:
            times = clock.cpu_times()
            shown.append((times.user + times.system, 1000 * float(line.partition('/')[0])))
            if shown[-1][0] - shown[0][0] > seconds:
                break
    process.send_signal(signal.SIGINT)
    process.communicate()
    speeds[name] = (shown[-1][1] - shown[0][1]) / (shown[-1][0] - shown[0][0])
    kept.write_text(json.dumps(speeds))
    return speeds[name]


def training(name: str, folder: Path) -> list:
    source, overrides = CANDIDATES[name]
    return ['train', source, *COMMON, *overrides, f'run_dir={folder.absolute()}']


def run(command: list) -> str:
    done = subprocess.run([sys.executable, '-m', 'imago.launch.cli', *map(str, command)], cwd=ROOT, env=ENVIRONMENT, text=True,
                          stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f'{" ".join(map(str, command))} ended with status {done.returncode}')
    return done.stdout


if __name__ == '__main__':
    main()
