"""Read an NPZ file that may be damaged or made to do harm."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_BYTES = 4 << 30
_UTF8_NAME = 0x800  # the one flag of a zip's entry that does not change how it is read


def read_npz(data: bytes, *, most_bytes: int = _MOST_BYTES) -> dict[str, NDArray[Any]]:
    """The arrays of an NPZ file, as `numpy.savez` and `savez_compressed` write it, by name.

    Sizes are compared before anything of that size is allocated, and nothing is unpickled.

    Raises ValueError where `data` is not such a file: cut off, altered, encrypted, with an array that does not hold
    plain numbers, or of more than `most_bytes` for all arrays together, once decompressed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > most_bytes:
                raise ValueError(f"its arrays would take more than {most_bytes:,} bytes")
            if len({entry.filename for entry in entries}) < len(entries):
                raise ValueError("it holds two arrays of one name")
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries}
    except Exception as error:  # zipfile and numpy have no bounded list of what they raise at damaged bytes
        raise ValueError(f"not a whole NPZ file of plain numbers: {error!s:.200}") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    if entry.flag_bits & ~_UTF8_NAME or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename!r:.60} is encrypted, or packed in a way that numpy does not use")
    content = archive.read(entry)
    file = io.BytesIO(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy warns of headers that it has to repair
        np.lib.format.read_magic(file)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "biuf" or min(shape, default=0) < 0:
        raise ValueError(f"{entry.filename!r:.60} holds {dtype!s:.60}, not plain numbers")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{entry.filename!r:.60} is not of the size that its header says")
    values = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if by_column else "C")
    return values.copy()
