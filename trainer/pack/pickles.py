"""This module reads pickles of plain containers and bytes of numpy, as CIFAR has them. Nothing in a stranger's pickle is run."""

import io
import pickle

import numpy as np

OPCODES = (   # they make containers, numbers, texts and arrays of numpy
    'PROTO STOP FRAME MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 STRING BINSTRING '
    'SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS '
    'LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT '
    'MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD').split()


class _Encoded:
    """This class stands for `_codecs.encode`, by which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> bytes:
        if type(text) is not str or encoding not in ('latin1', b'latin1'):
            raise ValueError('a text is encoded in another way than as bytes')
        return text.encode('latin1')


class _Dtype:
    """This class stands for `numpy.dtype`, of bytes alone."""

    __slots__ = ()

    def __init__(self, code: str | bytes, *_: object) -> None:
        if code not in ('u1', b'u1', '|u1', b'|u1'):
            raise ValueError('an array is not of bytes (u1)')

    def __setstate__(self, state: object) -> None:
        pass   # it tells the order of bytes in a value, and values have one


class _Array:
    """This class stands for `numpy.ndarray`: numpy itself sees the content once all of it is checked."""

    __slots__ = ('pixels',)

    def __init__(self, *_: object) -> None:
        self.pixels: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, columns_first, data = state
        if type(shape) is not tuple or not all(type(side) is int for side in shape) or type(dtype) is not _Dtype \
                or type(data) is not bytes:
            raise ValueError('an array is malformed')
        self.pixels = np.frombuffer(data, np.uint8).reshape(shape, order='F' if columns_first else 'C')


class _Keyed(dict):
    """A dictionary whose keys are texts and numbers: the hash of nested tuples may take for ever."""

    def __setitem__(self, key: object, value: object) -> None:
        if type(key) not in (str, bytes, int):
            raise ValueError(f'a key is a {type(key).__name__}')
        super().__setitem__(key, value)


_ADMITTED = {('numpy', 'ndarray'): _Array, ('numpy', 'dtype'): _Dtype, ('_codecs', 'encode'): _Encoded,
             ('numpy.core.multiarray', '_reconstruct'): _Array, ('numpy._core.multiarray', '_reconstruct'): _Array}


class _Unpickler(pickle._Unpickler):
    """This is the unpickler in Python, as the one in C makes room for as many objects as a number in the pickle claims."""

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in (ord(getattr(pickle, name)) for name in OPCODES)}

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f'it names {module}.{name}, which no data does')
        return _ADMITTED[module, name]

    def load_empty_dictionary(self) -> None:
        self.append(_Keyed())

    def load_build(self) -> None:
        if type(self.stack[-2]) not in (_Array, _Dtype):
            raise pickle.UnpicklingError('it changes what is no array')
        super().load_build()

    dispatch |= {ord(pickle.EMPTY_DICT): load_empty_dictionary, ord(pickle.BUILD): load_build}


def unpickle(data: bytes) -> dict:
    """Return a dictionary of containers, texts, numbers, bytes and arrays of uint8; texts of Python 2 are bytes.

    ValueError for all else.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding='bytes').load())
    except Exception as error:   # a forged pickle can make the unpickler raise anything
        raise ValueError(f'no pickle of plain data: {" ".join(str(error).split())[:200] or type(error).__name__}') from error


def _plain(found: object) -> dict:
    """Return the dictionary with arrays in place of what stands for them."""
    if not isinstance(found, dict):
        raise ValueError(f'a {type(found).__name__} in place of a dictionary')
    keys = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    return {key: value.pixels if isinstance(value, _Array) else value for key, value in keys.items()}
