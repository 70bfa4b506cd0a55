"""A NumPyro model and its data as a density on unconstrained vectors."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, Scalar
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.initialization import init_to_sample, init_to_uniform
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn

from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.fingerprint import Fingerprint, fingerprint
from numpyro_flows.inference.impossible import Impossible
from numpyro_flows.inference.masked import find_free, free_coordinates, with_normals
from numpyro_flows.inference.model_arguments import require_densities_of_tables, run_with_arguments
from numpyro_flows.inference.model_checks import (
    RefuseUnfit,
    check_sites,
    has_sampler,
    is_masked,
    named_arguments,
    naming_arguments,
    nonfinite_entries,
    require_priors,
)
from numpyro_flows.inference.one_period import log_share_of_copy
from numpyro_flows.inference.rows import RowNumbers, Rows, WithRows, depending_on_rows, require_seen_plates
from numpyro_flows.inference.traced_density import with_gradient_of
from numpyro_flows.modeling.model_run import model_run


class Target:
    """The unnormalized posterior `p(x, data)` of a model on `x` in `R^dim`, its latent sites unconstrained and raveled.

    The sites follow each other in the order of the trace, as in NumPyro's continuous autoguides. The model is traced
    abstractly, without compilation. A mask, such as `obs_mask`, may remove entries of latent sites from the density;
    these entries get a standard normal density. `rng_key` is for the draws that the model itself makes.

    Attributes:
        args: the model's arguments, with arrays in place of pandas and xarray objects, and `kwargs`.
        shapes: unconstrained shapes of the latent sites.
        site_shapes: shapes of the latent sites in the model.
        model: the model, with standard normal densities for masked entries, and some rows of a subsampled plate.
        free: which coordinates belong to masked entries.
        free_entries: number of masked entries by site.
        rows: the subsampled plate, whose rows are read in blocks, one after the other; None if there is none.

    Raises:
        ValueError: if the model has no latent site, a discrete one, or a `numpyro.param` site without a prior or given
            value. Also if it has several subsampled plates, a latent site in one, or a log density that is not a sum
            over its rows. Also if a site is larger than its plates, or observed values are not finite.
    """

    def __init__(self, model: Callable, rng_key: PRNGKeyArray, args: tuple = (), kwargs: dict[str, Any] | None = None):
        self.args, self.kwargs = args, kwargs or {}
        self.rows: Rows | None = None
        self._centre: Float[Array, " dim"] | None = None
        self._rng_key, self._whole_model = rng_key, model
        self.model: Callable = WithRows(model)
        self._model = seed(self.model, rng_key)
        self._densities: dict[Any, Callable] = {}
        masked: list[str] = []
        samplers: dict[str, bool] = {}
        parts: list[Coordinates] = []
        unfit = RefuseUnfit()

        def run(args: tuple, kwargs: dict[str, Any]) -> dict[str, dict[str, Any]]:
            self.args, self.kwargs = args, kwargs
            with naming_arguments(model, args, kwargs), unfit:
                sites = self._trace(self._model, init_to_uniform)
            require_densities_of_tables(sites)
            return sites

        def shapes() -> tuple[dict[str, Array], dict[str, Array]]:
            self.args, self.kwargs, sites = run_with_arguments(run, model, self.args, self.kwargs)
            check_sites(sites)
            require_seen_plates(sites)
            self.rows = Rows.of(sites)
            latents = {
                name: site for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]
            }
            parts.extend(Coordinates.of(name, site) for name, site in latents.items())
            samplers.update({name: has_sampler(site["fn"]) for name, site in latents.items()})
            masked.extend(name for name, site in latents.items() if is_masked(site["fn"]))
            return _unconstrained(latents), {name: site["value"] for name, site in latents.items()}

        with model_run():
            self.shapes, self.site_shapes = _ordered_shapes(shapes)
        # JAX's own arrays cannot change
        changes = any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((self.args, self.kwargs)))
        self._fingerprint = fingerprint(self.args, self.kwargs) if changes else None
        self._samplers = samplers
        self._sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        self.dim = sum(self._sizes)
        if self.dim == 0:
            raise ValueError("the model expected at least one continuous latent site, got none")
        self.coordinates = Coordinates(*(np.concatenate(arrays) for arrays in zip(*parts)))
        if unfit.parameters:
            with model_run():
                require_priors(self._density_of_parameters, unfit.parameters)
        if self.rows is not None:
            with model_run():
                inside = self.rows.inside | depending_on_rows(self._run_with, self.rows, self.dim)
            self.rows = self.rows._replace(inside=inside)
        free = find_free(self, masked) if masked else {}
        self.free: Bool[np.ndarray, " dim"] = np.zeros(self.dim, bool)
        self.free_entries = {name: int(entries.sum()) for name, (entries, _) in free.items()}
        if free:
            self.free = free_coordinates(self.shapes, free)
            self._whole_model = with_normals(model, free)
            self.model = WithRows(self._whole_model)
            self._model = seed(self.model, rng_key)
            self._densities = {}
        if self.free.all():
            raise ValueError(f"the model expected a latent site that no mask takes out, got only {list(self.shapes)}")

    def unchanged_fingerprint(self) -> Fingerprint:
        """The fingerprint of the model's arguments; a ValueError if they have changed since the target was made."""
        now = fingerprint(self.args, self.kwargs)
        if self._fingerprint is not None and self._fingerprint != now:
            raise ValueError(
                "expected the data that were fitted, got other data: an array or a file has changed. Fit again"
            )
        return now

    def with_arguments(self, args: tuple, kwargs: dict[str, Any]) -> "Target":
        """The same model on other data of the same shapes, which may be traced."""
        other = copy.copy(self)
        other.args, other.kwargs, other._fingerprint, other._densities = args, kwargs, None, {}
        return other

    def of_one_period(self, centre: Float[ArrayLike, " dim"]) -> "Target":
        """The target with one copy of each angle on the line, around a centre; the target itself without angles."""
        target = copy.copy(self)
        target._centre = jnp.asarray(centre) if self.coordinates.periodic.any() else None
        return target

    @property
    def fitted(self) -> "Fitted":
        """The target without its free coordinates."""
        return Reduced(self) if self.free.any() else self

    def log_density(self, x: Float[Array, " dim"]) -> Scalar:
        """`log p(x, data)`, with the Jacobian of the constraints.

        It is NaN if a runtime check of the model fires or a probability of discrete data is above one. It is also NaN
        if `log p` is so large that its rounding error reaches one nat.
        """
        kind = (x.dtype, jnp.result_type(float))
        with model_run():
            if kind not in self._densities:
                like = jax.ShapeDtypeStruct((self.dim,), x.dtype)
                self._densities[kind] = with_gradient_of(self._log_density, self._value_and_gradient, like)
        return self._densities[kind](x) + self._log_share(x)

    @model_run()
    def log_density_with(self, x: Float[Array, " dim"], rows: RowNumbers) -> Scalar:
        """The log density with these rows of the subsampled plate in place of all."""
        return self._log_density_with(x, rows) + self._log_share(x)

    @model_run()
    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Array]:
        """The values of the latent and deterministic sites at `x`, without those in a subsampled plate."""
        sites = constrain_fn(self._model, self.args, self.kwargs, self.unravel(x), return_deterministic=True)
        return {name: value for name, value in sites.items() if self.rows is None or name not in self.rows.inside}

    @model_run()
    def unconstrain(self, sites: Mapping[str, ArrayLike]) -> Float[Array, " dim"]:
        """The vector `x` of latent sites' values; a ValueError if one is missing."""
        missing = sorted(self.shapes.keys() - sites.keys())
        if missing:
            raise ValueError(f"expected a value for every latent site, missing {missing}")
        values = {name: sites[name] for name in self.shapes}
        unconstrained = unconstrain_fn(self._model, self.args, self.kwargs, values)
        return jnp.concatenate([jnp.ravel(unconstrained[name]) for name in self.shapes])

    @model_run()
    def start(self, rng_key: PRNGKeyArray, init_loc_fn: Callable) -> Float[Array, " dim"]:
        """One point `x` to start from, by a NumPyro initialisation strategy."""
        return self._ravel(self._trace(seed(self.model, rng_key), init_loc_fn))

    def has_prior(self) -> bool:
        """Whether `prior_draw` draws from anything but uniform distributions."""
        return any(self._samplers.values()) and not self.free.any()

    @model_run()
    def prior_draw(self, rng_key: PRNGKeyArray) -> tuple[Float[Array, " dim"], Scalar]:
        """A draw `x` of the prior and its log density; improper sites are uniform in `(-2, 2)`."""
        sites = self._trace(seed(self.model, rng_key), init_to_sample)
        log_probs = []
        for name in self.shapes:
            site, to_support = sites[name], biject_to(sites[name]["fn"].support)
            x = to_support.inv(site["value"])
            if not self._samplers[name]:
                log_probs.append(-x.size * jnp.log(4.0))
            else:
                log_prob = jnp.sum(site["fn"].log_prob(site["value"]))
                log_probs.append(log_prob + jnp.sum(to_support.log_abs_det_jacobian(x, site["value"])))
        return self._ravel(sites), jnp.sum(jnp.stack(log_probs))

    def _ravel(self, sites: dict[str, dict[str, Any]]) -> Float[Array, " dim"]:
        latents = _unconstrained({name: sites[name] for name in self.shapes})
        return jnp.concatenate([jnp.ravel(value) for value in latents.values()])

    def log_det(self, x: Float[Array, " dim"]) -> Scalar:
        """`log |det dsites/dx|` of the constraints at `x`."""
        sites = self.sites(x)
        log_dets = [
            jnp.sum(biject_to(sites[name]["fn"].support).log_abs_det_jacobian(value, sites[name]["value"]))
            for name, value in self.unravel(x).items()
        ]
        return jnp.sum(jnp.stack(log_dets))

    def supports(self) -> dict[str, constraints.Constraint]:
        """The support of every latent site; a ValueError if one depends on the values of other sites."""
        low, high = (self.sites(jnp.full(self.dim, value)) for value in (-1.0, 1.0))
        # by `eq`: for NumPyro's `==`, two constraints with equal arrays differ
        moving = [name for name in self.shapes if not np.all(low[name]["fn"].support.eq(high[name]["fn"].support))]
        if moving:
            raise ValueError(f"expected supports that do not depend on other sites, got supports that do for {moving}")
        return {name: low[name]["fn"].support for name in self.shapes}

    def require_finite(self, starts: Float[Array, "starts dim"]) -> None:
        """Raise a ValueError if no start has a finite log density, and name the sites and data that are not finite."""
        if np.isfinite(jax.vmap(self.log_density)(starts)).any():
            return

        def details(x: Array) -> tuple[dict[str, Array], dict[str, Array]]:
            sites = {name: site for name, site in self.sites(x).items() if site["type"] == "sample"}
            observed = {n: s["value"] for n, s in sites.items() if s["is_observed"] and not is_masked(s["fn"])}
            return {name: site["fn"].log_prob(site["value"]) for name, site in sites.items()}, observed

        log_probs, observed = jax.jit(details)(starts[0])  # within jit NumPyro does not check for NaN and infinity
        bad = [name for name, value in log_probs.items() if not np.isfinite(value).all()]
        infinite = [name for name in bad if np.isposinf(log_probs[name]).any()]
        causes = [f"the log density is not finite at the sites {bad or list(self.shapes)}"]
        causes += [f"{infinite} are +inf, which is not a valid density"] if infinite else []
        causes += [f"observed values are NaN or infinite: {found}"] if (found := nonfinite_entries(observed)) else []
        arguments = nonfinite_entries(named_arguments(self.model, self.args, self.kwargs))
        causes += [f"entries of the model's arguments are NaN or infinite: {arguments}"] if arguments else []
        raise ValueError(
            f"expected a density that is finite somewhere near a start, got none at {len(starts)} starts: "
            + "; ".join(causes)
        )

    @model_run()
    def sites(self, x: Float[Array, " dim"]) -> dict[str, dict[str, Any]]:
        """The trace of the model at `x`."""
        values = constrain_fn(self._model, self.args, self.kwargs, self.unravel(x))
        return trace(substitute(self._model, data=values)).get_trace(*self.args, **self.kwargs)

    def unravel(self, x: Float[Array, " dim"]) -> dict[str, Array]:
        """The unconstrained value of every latent site."""
        parts = jnp.split(x, np.cumsum(self._sizes)[:-1])
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, self.shapes.items())}

    def _log_density(self, x: Float[Array, " dim"]) -> Scalar:
        if self.rows is None:
            return self._log_density_of(self._model, x)
        return self.rows.mean(lambda rows: self._log_density_with(x, rows))

    def _value_and_gradient(self, x: Float[Array, " dim"]) -> tuple[Scalar, Float[Array, " dim"]]:
        if self.rows is None:
            return jax.value_and_grad(self._log_density)(x)
        return self.rows.mean(lambda rows: jax.value_and_grad(self._log_density_with)(x, rows))

    def _log_density_with(self, x: Float[Array, " dim"], rows: RowNumbers) -> Scalar:
        return self._log_density_of(seed(WithRows(self._whole_model, rows), self._rng_key), x)

    def _log_share(self, x: Float[Array, " dim"]) -> Scalar | float:
        return 0.0 if self._centre is None else log_share_of_copy(x, self._centre, self.coordinates.periodic)

    def _run_with(self, x: Float[Array, " dim"], rows: RowNumbers) -> tuple[Scalar, dict[str, Array]]:
        model = seed(WithRows(self._whole_model, rows), self._rng_key)
        sites = constrain_fn(model, self.args, self.kwargs, self.unravel(x), return_deterministic=True)
        outside = {name: value for name, value in sites.items() if self.rows and name not in self.rows.inside}
        return self._log_density_of(model, x), outside

    def _log_density_of(self, model: Callable, x: Float[Array, " dim"]) -> Scalar:
        impossible = Impossible()
        with impossible:
            value = jnp.asarray(-potential_energy(model, self.args, self.kwargs, self.unravel(x)))
        # a log density of 1e141 was certified: differences of log-gamma functions at a concentration of 1e100
        broken = jnp.any(jnp.stack([value > 1.0 / jnp.finfo(value.dtype).eps, *impossible.found]))
        return jnp.where(broken, jnp.nan, value)

    def _density_of_parameters(self, parameters: dict[str, Any]) -> Scalar:
        model = substitute(self._model, data=parameters)
        return -jnp.asarray(potential_energy(model, self.args, self.kwargs, self.unravel(jnp.zeros(self.dim))))

    def _trace(self, model: Callable, init_loc_fn: Callable) -> dict[str, dict[str, Any]]:
        return trace(substitute(model, substitute_fn=init_loc_fn)).get_trace(*self.args, **self.kwargs)


class Reduced:
    """The density of a target on all but its free coordinates, on which it does not depend: this is fitted."""

    def __init__(self, target: Target):
        self._target = target
        self.index = np.flatnonzero(~target.free)
        self.coordinates = Coordinates(*(leaf[self.index] for leaf in target.coordinates))
        self.dim, self.rows = self.index.size, target.rows
        self._constant = 0.5 * target.free.sum() * np.log(2 * np.pi)  # subtracts the normals' density at zero

    def of_one_period(self, centre: Float[ArrayLike, " dim"]) -> "Reduced":
        return Reduced(self._target.of_one_period(self._whole(jnp.asarray(centre))))

    def log_density(self, x: Float[Array, " dim"]) -> Scalar:
        return self._target.log_density(self._whole(x)) + self._constant

    def log_density_with(self, x: Float[Array, " dim"], rows: RowNumbers) -> Scalar:
        return self._target.log_density_with(self._whole(x), rows) + self._constant

    def start(self, rng_key: PRNGKeyArray, init_loc_fn: Callable) -> Float[Array, " dim"]:
        return self._target.start(rng_key, init_loc_fn)[self.index]

    def require_finite(self, starts: Float[Array, "starts dim"]) -> None:
        self._target.require_finite(jax.vmap(self._whole)(starts))

    def _whole(self, x: Float[Array, " dim"]) -> Float[Array, " whole"]:
        return jnp.zeros(self._target.dim, x.dtype).at[self.index].set(x)


Fitted = Target | Reduced
"""What the stages of a fit know of a target: its `dim`, `log_density` and `start`."""


def _unconstrained(latents: dict[str, dict[str, Any]]) -> dict[str, Array]:
    return {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in latents.items()}


def _ordered_shapes(trees: Callable) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of the dicts that `trees` would return; JAX itself would sort them by name."""
    result: list[dict[str, tuple[int, ...]]] = []
    jax.eval_shape(lambda: result.extend({k: jnp.shape(v) for k, v in tree.items()} for tree in trees()))
    return result
