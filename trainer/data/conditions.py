"""Conditions are float vectors [d], or sequences of them [T, d], that are packed with pictures, as `KEY.npy`."""

import base64
import io
from functools import lru_cache

import numpy as np

CONDITION = 'npy'
MOST_VALUES = 1 << 20     # in one condition


def to_bytes(condition: np.ndarray) -> bytes:
    """Return a condition, [d] or [T, d], as a NumPy file of float32."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(condition, '<f4'), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def from_bytes(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the condition that `to_bytes` wrote, float32 of that shape. Raises ValueError for anything else."""
    head, size = _head(shape)
    if not data.startswith(head) or len(data) != len(head) + size:
        raise ValueError(f'its condition is no NumPy file of float32 {list(shape)}')
    condition = np.frombuffer(data, '<f4', offset=len(head)).reshape(shape)
    if not np.isfinite(condition).all():
        raise ValueError('its condition is not finite')
    return condition


def to_text(conditions: np.ndarray) -> str:
    """Return conditions [K, d] as text that JSON can hold."""
    return base64.b64encode(np.ascontiguousarray(conditions, '<f4').tobytes()).decode()


def from_text(text: str, d: int) -> np.ndarray:
    """Return the conditions that `to_text` wrote, float32 [K, d]. Raises ValueError if it is no such text."""
    data = base64.b64decode(text, validate=True)
    if not data or len(data) % (4 * d):
        raise ValueError(f'{len(data)} bytes are no conditions of {d} float32 each')
    conditions = np.frombuffer(data, '<f4').reshape(-1, d)
    if not np.isfinite(conditions).all():
        raise ValueError('its conditions are not finite')
    return conditions


@lru_cache
def _head(shape: tuple[int, ...]) -> tuple[bytes, int]:
    """Return the bytes with which all files of this shape begin, and how many bytes follow."""
    empty = np.zeros(shape, '<f4')
    return to_bytes(empty)[:-empty.nbytes], empty.nbytes
