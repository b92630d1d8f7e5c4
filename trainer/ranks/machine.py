"""What this process may use of the machine."""

import os


def usable_cores() -> int:
    """Cores that this process may run on; all of the machine's on macOS, which has no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
