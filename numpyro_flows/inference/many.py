"""Fits of one model to many data sets of the same shapes."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PRNGKeyArray
from tqdm.auto import tqdm

from numpyro_flows.arguments import require_key
from numpyro_flows.inference.posterior import FlowPosterior

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("certified", "by", "khat", "ess", "rhat", "log_evidence", "log_evidence_se")
InAxes = int | None | Sequence[int | None]


@dataclass(frozen=True, eq=False)
class ManyFits:
    """Fits of one model to many data sets; made by `FlowVI.run_many`.

    Attributes:
        posteriors: the fits in the order of the data sets; None for a fit that failed.
        table: a row for each data set: `certified`, `by`, `khat`, `ess`, `rhat`, `log_evidence`, `log_evidence_se`,
            `seconds`, and `why`: the reason if the fit is not certified, or the error if it failed.
        certified: whether each fit is certified, `(data sets,)`.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import FlowVI
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> data_sets = jax.random.normal(jax.random.key(0), (3, 20))
        >>> fits = FlowVI(model, progress_bar=False).run_many(jax.random.key(1), data_sets)
        >>> fits.certified.tolist()
        [True, True, True]
    """

    posteriors: tuple[FlowPosterior | None, ...]
    table: "pd.DataFrame"

    @property
    def certified(self) -> Bool[np.ndarray, " fits"]:
        return self.table["certified"].to_numpy(bool)

    def __repr__(self) -> str:
        failed = sum(posterior is None for posterior in self.posteriors)
        also = f", {failed} failed" if failed else ""
        return f"ManyFits({self.certified.sum()} of {len(self.posteriors)} certified{also})"


def run_many(
    run: Callable[..., FlowPosterior],
    rng_key: PRNGKeyArray,
    args: tuple,
    in_axes: InAxes,
    kwargs: dict[str, Any],
    progress_bar: bool,
) -> ManyFits:
    """Fit each data set by `run(key, args, kwargs)`."""
    import pandas as pd

    require_key(rng_key)
    data_sets = _data_sets(args, in_axes)
    posteriors, rows = [], []
    keys = jax.random.split(rng_key, len(data_sets))
    bar = tqdm(zip(keys, data_sets), total=len(data_sets), desc="data sets", disable=not progress_bar)
    for key, data_set in bar:
        posterior: FlowPosterior | None = None
        row: dict[str, Any] = {"certified": False}
        try:
            posterior = run(key, data_set, kwargs)
            row = _row(posterior)
        except (ValueError, RuntimeError) as error:  # also those that a model raises while it runs
            row["why"] = str(error)
        except KeyboardInterrupt:
            if not posteriors:
                raise
            break
        posteriors.append(posterior)
        rows.append(row)
        bar.set_postfix(certified=sum(row["certified"] for row in rows))
    fits = ManyFits(tuple(posteriors), pd.DataFrame(rows, columns=[*_COLUMNS, "seconds", "why"]))
    missing = f", {len(data_sets) - len(rows)} were not begun" if len(rows) < len(data_sets) else ""
    if not fits.certified.all() or missing:
        refused = np.flatnonzero(~fits.certified)
        which = ", ".join(map(str, refused[:10])) + (", ..." if refused.size > 10 else "")
        text = (
            f"{refused.size} of {len(rows)} fits are not certified ({which}){missing}: see the column `why` of `table`"
        )
        warnings.warn(text, UserWarning, stacklevel=3)
    return fits


def _row(posterior: FlowPosterior) -> dict[str, Any]:
    certificate = posterior.certificate
    row = {name: getattr(certificate, name) for name in _COLUMNS}
    return row | {"seconds": sum(posterior.seconds.values()), "why": certificate.why}


def _data_sets(args: tuple, in_axes: InAxes) -> list[tuple]:
    """The arguments of each data set, cut from the batched ones as `jax.vmap` cuts them."""
    axes = list(in_axes) if isinstance(in_axes, Sequence) else [in_axes] * len(args)
    if not all(axis is None or isinstance(axis, int | np.integer) for axis in axes):
        raise TypeError(f"in_axes expected an integer or None for each argument, got {in_axes!r}")
    if len(axes) != len(args):
        raise ValueError(f"in_axes expected one axis, or one for each of {len(args)} arguments, got {in_axes}")
    leaves = [(leaf, axis) for arg, axis in zip(args, axes) if axis is not None for leaf in jax.tree.leaves(arg)]
    sizes = {np.shape(leaf)[axis] if -np.ndim(leaf) <= axis < np.ndim(leaf) else 0 for leaf, axis in leaves}
    if len(sizes) != 1 or 0 in sizes:
        shapes = [np.shape(leaf) for leaf, _ in leaves]
        raise ValueError(
            f"args expected arrays with one number of data sets along in_axes={in_axes}, got the shapes {shapes} "
            "(keywords are shared by all data sets)"
        )
    (num,) = sizes

    def cut(arg: Any, axis: int | None, number: int) -> Any:
        return arg if axis is None else jax.tree.map(lambda leaf: jnp.asarray(np.take(leaf, number, axis)), arg)

    # NumPy slices at once; JAX would compile this
    on_host = tuple(arg if axis is None else jax.tree.map(np.asarray, arg) for arg, axis in zip(args, axes))
    return [tuple(map(cut, on_host, axes, [i] * len(args))) for i in range(num)]
