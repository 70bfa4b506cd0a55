"""Rows in blocks, so that functions of all rows need little memory."""

from collections.abc import Iterator

_BLOCK = 65_536  # rows


def blocks(num: int) -> Iterator[slice]:
    """Slices of `range(num)`, one after the other."""
    return (slice(start, min(start + _BLOCK, num)) for start in range(0, num, _BLOCK))
