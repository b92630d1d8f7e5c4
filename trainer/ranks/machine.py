"""This module tells what this process may use of the machine."""

import os


def usable_cores() -> int:
    """Return how many cores this process may run on; on macOS, which has no affinity, these are all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
