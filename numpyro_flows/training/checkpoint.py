"""Checkpoints: a run is written to a file after each round, and the same fit continues from it."""

import hashlib
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_flows.files.tree import load_tree, save_tree
from numpyro_flows.training.state import State

_KIND = "Checkpoint"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_COUNTS = ("step", "part", "num_rounds", "num_skipped")


class _Stored(NamedTuple):
    """A state without its structure, which the continuing fit has itself."""

    identity: dict[str, str]
    leaves: list[Any]
    losses: list[Any]
    scores: list[Any]
    counts: dict[str, int]


class Checkpoint:
    """The file at `path` with the state of one fit; without a path it does nothing.

    Args:
        path: path of the file, or None.
        parts: function that returns what identifies this fit, by name: trees of arrays and text.
    """

    def __init__(self, path: str | os.PathLike | None, parts: Callable[[], dict[str, Any]]):
        self.path = None if path is None else os.path.abspath(path)
        self.identity = {} if path is None else {name: _digest(part) for name, part in parts().items()}
        self._latest: State | None = None  # not written yet
        self._writing = self._terminated = False

    def resume(self, state: State) -> State:
        """The state in the file; if there is no file, `state`, which is then written to one.

        Raises:
            OSError: if the file cannot be written.
            ValueError: if it belongs to another fit, or is damaged.
        """
        if self.path is None:
            return state
        if not os.path.exists(self.path):
            self._save(state)
            return state
        stored = load_tree(self.path, _KIND, _Stored, trusted=(_Stored,))
        names = stored.identity.keys() | self.identity.keys()
        if other := sorted(name for name in names if stored.identity.get(name) != self.identity.get(name)):
            raise self._refusal(f"of a fit with another {', another '.join(other)}")
        leaves, structure = jax.tree.flatten(state[:4])
        if list(map(_form, _data(leaves))) != list(map(_form, stored.leaves)) or stored.counts.keys() != set(_COUNTS):
            raise self._refusal("of another version of numpyro_flows")
        found = iter(stored.leaves)
        trees = jax.tree.unflatten(structure, [leaf if callable(leaf) else next(found) for leaf in leaves])
        return State(*trees, **stored.counts, losses=tuple(stored.losses), scores=tuple(stored.scores))

    def keep(self, state: State) -> None:
        """Remember a state to write."""
        self._latest = state

    def write(self) -> None:
        """Write the last state; if the file cannot be written, the fit continues with a warning."""
        if self.path is None or self._latest is None:
            return
        self._writing = True
        try:
            self._save(self._latest)
        except OSError as error:
            warnings.warn(f"the checkpoint {self.path!r} could not be written: {error}", stacklevel=2)
        finally:
            self._writing = False
        self._latest = None
        if self._terminated:
            self._terminated = False
            signal.raise_signal(signal.SIGTERM)

    @contextmanager
    def written_on_sigterm(self) -> Iterator[None]:
        """Write the checkpoint before SIGTERM takes effect; only in the main thread, which alone receives signals."""
        if self.path is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

        def write_first(number: int, frame: Any) -> None:
            if self._writing:  # once that is done
                self._terminated = True
                return
            self.write()
            signal.signal(number, before)
            signal.raise_signal(number)
            signal.signal(number, write_first)  # one's own handler has returned

        signal.signal(signal.SIGTERM, write_first)
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGTERM) is write_first:
                signal.signal(signal.SIGTERM, before)

    def _save(self, state: State) -> None:
        assert self.path is not None
        leaves = _data(jax.tree.leaves(state[:4]))  # of `train`, `fixed`, `best` and `plan`
        counts = {name: int(getattr(state, name)) for name in _COUNTS}
        save_tree(self.path, _KIND, _Stored(self.identity, leaves, list(state.losses), list(state.scores), counts))

    def _refusal(self, got: str) -> ValueError:
        return ValueError(
            f"checkpoint expected a file of this fit, got {self.path!r} {got}: remove the file, or give another path"
        )


def program(jaxpr: Any) -> tuple[list[str], list[Any]]:
    """The computation of a closed jaxpr, without callbacks to the host: its equations, and its constants.

    They have no order and no names of variables, because with ODE solvers these differ from process to process. So the
    text does not show where a value is used. An identity therefore also contains the numbers that the program gave.
    """
    return sorted(_equations(jaxpr.jaxpr)), jaxpr.consts


def _equations(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        params = []
        for name, value in sorted(equation.params.items()):
            inner = [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, "eqns")]
            for each in inner:
                yield from _equations(getattr(each, "jaxpr", each))
                yield _digest(getattr(each, "consts", []))
            params += [] if inner else [f"{name}={value}"]
        inputs = [str(getattr(variable, "val", variable.aval)) for variable in equation.invars]
        outputs = [str(variable.aval) for variable in equation.outvars]
        yield _ADDRESS.sub("", f"{equation.primitive} {params} {inputs} {outputs}")


def _digest(part: Any) -> str:
    """A hash of a tree, the same in every process."""
    leaves, structure = jax.tree.flatten(part)
    digest = hashlib.sha256(_ADDRESS.sub("", f"{jnp.result_type(float)} {structure}").encode())
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        numeric = array.dtype.kind in "biufcV"  # V: bfloat16
        digest.update(f"{_form(leaf)} {np.shape(leaf)} ".encode())
        digest.update(array.tobytes() if numeric else _ADDRESS.sub("", str(leaf)).encode())
    return digest.hexdigest()


def _data(leaves: list[Any]) -> list[Any]:
    """All leaves except functions, which the continuing fit has itself."""
    return [leaf for leaf in leaves if not callable(leaf)]


def _form(leaf: Any) -> str:
    """Type and number of axes of an array or a number; a file may store one as the other."""
    if isinstance(leaf, str):
        return "str"
    return f"{np.ndim(leaf)} {leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype}"
