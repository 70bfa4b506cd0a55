"""The outer layer of a file: safetensors, which any of its readers opens, with our structure in its metadata.

Layout: 8 bytes with the header's length; the header, in JSON; the arrays, one after the other. Everything is checked
    here before it is used: a file must be exactly what `pack` writes.
"""

import hashlib
import json
import math
from typing import Any

import numpy as np
from safetensors.numpy import save

FORMAT = "2"
"""Version of the files. A change that older code would misread raises it."""

DTYPES = {
    "BOOL": np.bool_,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
"""Element types of safetensors that our files have: bfloat16 is stored as its bits, complex numbers as pairs."""

_KEYS = {"format", "kind", "structure", "checksum"}
_MAX_DIMS = 32


class BrokenFile(ValueError):
    """The error for a file that `pack` cannot have written; the text says where it differs."""


def pack(kind: str, structure: Any, arrays: dict[str, np.ndarray]) -> bytes:
    """A file's bytes."""
    text = json.dumps(structure, allow_nan=False)
    metadata = {"format": FORMAT, "kind": kind, "structure": text, "checksum": _checksum(kind, text)}
    return save(arrays, metadata)


def unpack(data: bytes) -> tuple[str, Any, dict[str, np.ndarray]]:
    """Kind, structure and arrays (views of `data`) of a file; a `BrokenFile` if `pack` does not write such bytes."""
    if data[:4] == b"PK\x03\x04":
        raise BrokenFile("this is an .npz or other zip archive; numpyro_flows no longer reads its old .npz files")
    if len(data) < 8:
        raise BrokenFile(f"expected at least 8 bytes, got {len(data)}")
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise BrokenFile(f"expected a header within the file, got one of {length} bytes in a file of {len(data)}")
    header = parse(data[8 : 8 + length], "the header")
    if not isinstance(header, dict):
        raise BrokenFile("expected a header that is an object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or "structure" not in metadata:
        raise BrokenFile("the file is not one of numpyro_flows: its metadata has no structure")
    if metadata.get("format") != FORMAT:
        raise BrokenFile(
            f"expected format {FORMAT}, got format {metadata.get('format')!r}: "
            "a file of another version of numpyro_flows; load it with that version"
        )
    if metadata.keys() != _KEYS or not all(isinstance(value, str) for value in metadata.values()):
        raise BrokenFile(f"expected the metadata {sorted(_KEYS)}, all strings, got {sorted(metadata)}")
    if metadata["checksum"] != _checksum(metadata["kind"], metadata["structure"]):
        raise BrokenFile("the checksum of the structure is wrong: the file was changed or damaged")
    structure = parse(metadata["structure"], "the structure")
    return metadata["kind"], structure, _arrays(header, data, 8 + length)


def parse(text: str | bytes, what: str) -> Any:
    """Strict JSON; a `BrokenFile` if it is not JSON, has a key twice, or has NaN or Infinity."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise BrokenFile(f"{what} is not valid JSON: {error}") from error


def checksum_of(array: np.ndarray) -> str:
    """The checksum of an array's type, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _checksum(kind: str, structure: str) -> str:
    return hashlib.sha256(f"{FORMAT} {kind} {structure}".encode(errors="surrogatepass")).hexdigest()


def _arrays(header: dict[str, Any], data: bytes, start: int) -> dict[str, np.ndarray]:
    """The arrays, which must fill the rest of the file without gap or overlap."""
    spans = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise BrokenFile(f"array {name!r} expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise BrokenFile(f"array {name!r} expected a dtype of {list(DTYPES)}, got {dtype!r}")
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > _MAX_DIMS:
            raise BrokenFile(f"array {name!r} expected a shape and two offsets of whole numbers >= 0")
        size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if offsets[1] - offsets[0] != size:
            raise BrokenFile(f"array {name!r} expected {size} bytes for its shape, got {offsets[1] - offsets[0]}")
        spans[name] = (*offsets, DTYPES[dtype], shape)
    end, arrays = 0, {}
    for name, (first, last, dtype, shape) in sorted(spans.items(), key=lambda span: span[1][:2]):
        if first != end:
            raise BrokenFile(f"array {name!r} expected to begin where the one before it ends, got a gap or overlap")
        end = last
        if start + end > len(data):
            raise BrokenFile(f"array {name!r} ends beyond the end of the file: the file is truncated")
        try:
            count = math.prod(shape)
            flat = np.frombuffer(data, dtype, count, start + first) if count else np.zeros(0, dtype)
            arrays[name] = flat.reshape(shape)
        except (ValueError, OverflowError) as error:  # an empty array whose other dimensions are absurd
            raise BrokenFile(f"array {name!r}: {error}") from error
    if start + end != len(data):
        raise BrokenFile(f"expected a file of {start + end} bytes, got {len(data)}")
    return arrays


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
