"""Requirements on a model for its posterior to be fitted. Each check names the site, the problem and the next step."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro.primitives import Messenger

from numpyro_flows._jax import used_leaves
from numpyro_flows.arguments import as_array_advice, described
from numpyro_flows.modeling._numpyro import is_in_scan, mask_of

Site = dict[str, Any]


class RefuseUnfit(Messenger):
    """A handler around a model that refuses sites before NumPyro makes up values for them.

    Attributes:
        parameters: values that NumPyro made up for `numpyro.param` sites; `require_priors` checks these.

    Raises:
        ValueError: for a discrete site that is not observed.
    """

    def __init__(self, fn: Callable | None = None):
        super().__init__(fn)
        self.parameters: dict[str, Any] = {}

    def process_message(self, msg: Site) -> None:
        name = msg.get("name")
        if msg["type"] == "param" and msg["value"] is None:
            self.parameters[msg["name"]] = None
        if msg["type"] == "sample" and not msg["is_observed"] and is_discrete(msg["fn"]):
            advice = "give its data by obs=, or marginalise it, for example with dist.MixtureSameFamily"
            if str(name).endswith("_unobserved"):  # what NumPyro makes of obs_mask
                advice = (
                    "where obs_mask made it of missing discrete data, use numpyro.handlers.mask(mask=observed) around "
                    "the site in its place, with any numbers for the missing ones in obs="
                )
            raise ValueError(
                f"expected continuous latent sites, got the discrete {name!r} ({_name(msg['fn'])}): {advice}"
            )

    def postprocess_message(self, msg: Site) -> None:
        if msg["type"] == "param" and msg["name"] in self.parameters:
            self.parameters[msg["name"]] = jax.tree.map(_abstract, msg["value"])


def require_priors(density: Callable[[dict[str, Any]], Any], parameters: dict[str, Any]) -> None:
    """Raise a ValueError if a density depends on parameters; `random_eqx_module` puts samples in their place.

    `parameters` are their values by name, with shapes in place of arrays.
    """
    shapes, rest = eqx.partition(parameters, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    for name, used in used_leaves(lambda arrays: density(eqx.combine(arrays, rest)), shapes).items():
        if any(jax.tree.leaves(used)):
            raise ValueError(
                f"expected a model whose parameters have priors, got the numpyro.param site {name!r} (flax_module, "
                "eqx_module and haiku_module make such sites): give it a prior (random_flax_module, "
                "random_eqx_module), or a fitted value by numpyro.handlers.substitute(model, data={...}), or train "
                "an AutoFlow and the parameters together by NumPyro's SVI"
            )


def check_sites(sites: dict[str, Site]) -> None:
    """Raise a ValueError for a site larger than its plates, or observed values that are not finite."""
    for name, site in sites.items():
        if site["type"] == "sample" and not is_factor(site["fn"]):
            if site["is_observed"]:
                _check_observed(name, site)
            _check_shape(name, site)


@contextmanager
def naming_arguments(model: Callable, args: tuple, kwargs: dict[str, Any]) -> Iterator[None]:
    """If a model stops with an error of types or shapes, name the arguments that may be its cause.

    Raises:
        TypeError: for arguments that are not arrays, such as lists and pandas objects, with the model's own error.
        ValueError: for arguments that are empty, or whose shapes do not fit together.
    """
    try:
        yield
    except (TypeError, ValueError, AssertionError) as error:
        arguments = _bound(model, args, kwargs)
        if arguments is None:
            raise
        paths = jax.tree.leaves_with_path(arguments, is_leaf=lambda value: not isinstance(value, dict | tuple))
        leaves = [(_place(path), leaf) for path, leaf in paths]
        failed = f"the model then stopped with {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        for name, leaf in leaves:
            if isinstance(error, TypeError) and (advice := as_array_advice(leaf, name.strip("'"))):
                raise TypeError(
                    f"the model expected arrays of numbers, got the argument {name} as {described(leaf)}: {advice}; "
                    f"{failed}"
                ) from error
            if isinstance(error, AssertionError) and np.shape(leaf) and np.size(leaf) == 0:
                raise ValueError(f"the model expected data, got the empty argument {name}; {failed}") from error
        if isinstance(error, ValueError) and "broadcast" in str(error):
            shapes = ", ".join(f"{name} {np.shape(leaf)}" for name, leaf in leaves if hasattr(leaf, "shape"))
            raise ValueError(
                f"the model expected arguments whose shapes fit each other and its plates, got {shapes}; {failed}"
            ) from error
        raise


def named_arguments(model: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a model's call, by the model's names for them."""
    arguments = _bound(model, args, kwargs)
    return {"args": args, "kwargs": kwargs} if arguments is None else arguments


def nonfinite_entries(values: dict[str, Any]) -> str:
    """Text that names the arrays in `values` with NaN or infinite entries; empty if there are none."""
    counts = [(path, leaf, _count_nonfinite(leaf)) for path, leaf in jax.tree.leaves_with_path(values)]
    return ", ".join(f"{bad} of {np.size(leaf)} in {_place(path)}" for path, leaf, bad in counts if bad)


def is_masked(distribution: Any) -> bool:
    """Whether a mask may remove elements of a site from the density."""
    return any(isinstance(d, dist.MaskedDistribution) and mask_of(d) is not True for d in unwrapped(distribution))


def unwrapped(distribution: Any) -> Iterator[Any]:
    """A distribution and, one inside the other, those that it expands, masks or declares independent."""
    yield distribution
    while isinstance(distribution, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        distribution = distribution.base_dist
        yield distribution


def _abstract(leaf: Any) -> Any:
    is_array = eqx.is_array_like(leaf)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) if is_array else leaf


def _bound(model: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments by name; None if they do not fit the signature, or there is no signature."""
    try:
        return dict(inspect.signature(model).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return None


def _check_observed(name: str, site: Site) -> None:
    advice = as_array_advice(site["value"], name)
    if advice and not _scores(site):
        raise TypeError(
            f"expected an array of numbers as the data of {name!r}, got {described(site['value'])}: {advice}"
        )
    bad = 0 if is_masked(site["fn"]) else _count_nonfinite(site["value"])
    if bad:
        raise ValueError(
            f"expected observed values that are finite, got {bad} of {np.size(site['value'])} NaN or infinite at "
            f"{name!r}: leave them out, or mark them as missing by numpyro.sample(..., obs_mask=...)"
        )


def _scores(site: Site) -> bool:
    """Whether a distribution accepts its data as they are; some user-defined ones accept lists."""
    try:
        return jnp.isrealobj(site["fn"].log_prob(site["value"]))
    except Exception:  # whatever a distribution makes of them
        return False


def _check_shape(name: str, site: Site) -> None:
    """Check that broadcasting has not made a site larger than its data or its plates."""
    if is_in_scan(site):  # a scan has axes of its own
        return
    data = np.shape(site["value"])
    data = data[: max(len(data) - site["fn"].event_dim, 0)]  # of the batch alone
    own, batch = _own_batch(site["fn"]), tuple(site["fn"].batch_shape)
    try:
        terms = np.broadcast_shapes(batch, data)
    except ValueError as error:
        raise ValueError(
            f"expected data of {name!r} of shape {site['fn'].shape()}, got shape {np.shape(site['value'])}"
        ) from error
    plates = {frame.dim: frame for frame in site["cond_indep_stack"]}
    beyond = [dim for dim in range(-len(terms), 0) if terms[dim] > 1 and dim not in plates]
    if not beyond:
        return
    inside = ", ".join(f"{frame.name!r} of size {frame.size} in dimension {dim}" for dim, frame in plates.items())
    if not site["is_observed"]:
        stretched = any(own[dim] == 1 and frame.size > 1 for dim, frame in plates.items() if -dim <= len(own))
        if stretched and any(_size(own, dim) > 1 for dim in beyond):
            raise ValueError(
                f"expected the site {name!r} to have the shape of its plates ({inside}), got {terms}: its "
                f"distribution of batch shape {own} was broadcast against them; give it their shape, for example by "
                "squeeze(-1)"
            )
        return
    if data == () or all(_size(data, dim) == size for dim, size in zip(range(-len(terms), 0), terms)):
        return  # one number may stand for all
    advice = "give both the same shape, for example by y.squeeze(-1) or mu.squeeze(-1)"
    if plates:
        raise ValueError(
            f"expected the likelihood {name!r} to have the shape of its plates ({inside}), got {terms}: its "
            f"distribution of batch shape {own} and its data of shape {np.shape(site['value'])} were broadcast against "
            f"each other; {advice}"
        )
    warnings.warn(
        f"the likelihood {name!r} has more terms, {terms}, than its data, of shape {np.shape(site['value'])}: they "
        f"were broadcast against its distribution, of batch shape {batch}; {advice}",
        UserWarning,
        stacklevel=2,
    )


def _own_batch(distribution: Any) -> tuple[int, ...]:
    """The batch shape that a distribution had before it was expanded, for example by its plates."""
    if isinstance(distribution, dist.ExpandedDistribution | dist.MaskedDistribution):
        return _own_batch(distribution.base_dist)
    if isinstance(distribution, dist.Independent):
        shape = _own_batch(distribution.base_dist)
        return shape[: max(len(shape) - distribution.reinterpreted_batch_ndims, 0)]
    return tuple(distribution.batch_shape)


def _size(shape: tuple[int, ...], dim: int) -> int:
    return shape[dim] if -dim <= len(shape) else 1


def is_discrete(distribution: Any) -> bool:
    """Whether its values are discrete; False if it has no support, such as a factor."""
    support = getattr(distribution, "support", None)
    return support is not None and support.is_discrete


def is_factor(distribution: Any) -> bool:
    """Whether a site was made by `numpyro.factor`, possibly in plates and masks."""
    return any(isinstance(d, dist.Unit) for d in unwrapped(distribution))


def _name(distribution: Any) -> str:
    *_, innermost = unwrapped(distribution)
    return type(innermost).__name__


def _count_nonfinite(value: Any) -> int:
    dtype = getattr(value, "dtype", None)
    if isinstance(value, Tracer) or not isinstance(dtype, np.dtype) or not np.issubdtype(dtype, np.floating):
        return int(isinstance(value, float) and not np.isfinite(value))
    if isinstance(value, jax.Array) and not value.is_fully_addressable:  # of which each process has a part
        with jax.ensure_compile_time_eval():
            return int((~jnp.isfinite(value)).sum())
    return int((~np.isfinite(np.asarray(value))).sum())


def _place(path: Any) -> str:
    return repr(jax.tree_util.keystr(path, simple=True, separator="."))


def has_sampler(distribution: Any) -> bool:
    """Whether it can be sampled from; an improper prior cannot."""
    try:
        jax.eval_shape(distribution.sample, jax.random.key(0))
    except NotImplementedError:
        return False
    return True
