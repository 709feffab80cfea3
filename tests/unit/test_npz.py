"""An NPZ file is read as it was written, or refused by a ValueError, whatever its bytes are."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manytune.utils.npz import read_npz

ARRAYS = {"ids": np.arange(12, dtype=np.int32).reshape(3, 4), "truncated": np.array(7), "none": np.zeros((0, 2), "f4")}


def saved(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(header: dict[str, Any], content: bytes = b"", **zip_settings: Any) -> bytes:
    """An NPZ of one array whose header says anything."""
    array, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(array, header)
    with zipfile.ZipFile(file, "w", **zip_settings) as archive:
        archive.writestr("ids.npy", array.getvalue() + content)
    return file.getvalue()


def header(shape: tuple[int, ...], descr: str = "<i4") -> dict[str, Any]:
    return {"descr": descr, "fortran_order": False, "shape": shape}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(save: Any) -> None:
    file = io.BytesIO()
    save(file, **ARRAYS, columns=np.asfortranarray(ARRAYS["ids"]))
    found = read_npz(file.getvalue())
    assert found.keys() == {*ARRAYS, "columns"}
    for name, array in (ARRAYS | {"columns": ARRAYS["ids"]}).items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert found[name].flags.writeable


def with_flags(data: bytes, flags: int, method: int = 0) -> bytes:
    """The flags and the compression of every entry changed, in both places that a zip has for them."""
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = data.split(magic)
        fields = struct.pack("<HH", flags, method)
        data = magic.join([parts[0], *(part[: at - 4] + fields + part[at:] for part in parts[1:])])
    return data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not a whole NPZ"),
        (b"PK\x05\x06", "not a whole NPZ"),
        (saved(**ARRAYS)[:-40], "not a whole NPZ"),
        (saved(**ARRAYS)[40:], "not a whole NPZ"),
        (saved(**ARRAYS).replace(b"\x05\0\0\0", b"\x06\0\0\0"), "CRC"),
        (with_flags(saved(**ARRAYS), 0x1), "encrypted"),
        (with_flags(saved(**ARRAYS), 0x20), "numpy does not use"),
        (with_flags(saved(**ARRAYS), 0, 99), "numpy does not use"),
        (zipped(header((3,)), b"\0" * 12, compression=zipfile.ZIP_LZMA), "numpy does not use"),
        (saved(ids=np.array([1, None])), "holds .*, not plain numbers"),
        (saved(ids=np.array(["a"])), "holds .*, not plain numbers"),
        (zipped(header((1 << 50,))), "size that its header says"),
        (zipped(header((-1, -3)), b"\0" * 12), "not plain numbers"),
        (zipped(header((3,)), b"\0" * 11), "size that its header says"),
        (zipped(header((3,)), b"\0" * 13), "size that its header says"),
    ],
)
def test_anything_else_is_refused(data: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        read_npz(data)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zipped(header((1 << 20,)), bytes(4 << 20), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10_000
    assert read_npz(bomb)["ids"].size == 1 << 20
    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        read_npz(bomb, most_bytes=1_000_000)


def test_two_arrays_of_one_name() -> None:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ids.npy", b"")
        archive.writestr("ids.npy", b"")
    with pytest.raises(ValueError, match="two arrays of one name"):
        read_npz(file.getvalue())


@given(st.data())
def test_no_damage_raises_anything_else(data: st.DataObject) -> None:
    whole = bytearray(saved(**ARRAYS))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings(action="error"), contextlib.suppress(ValueError):
        read_npz(bytes(whole))
