"""A flow as a NumPyro distribution."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, ForwardRef, NamedTuple, Union

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray
from numpyro.distributions.transforms import Transform
from numpyro.distributions.util import sum_rightmost, validate_sample

from numpyro_flows.arguments import require_key
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.files.rules import InFiles
from numpyro_flows.files.tree import load_tree, save_tree
from numpyro_flows.sites import Sites
from numpyro_flows.transforms import FlowTransform


class LogProbParts(NamedTuple):
    """What a log density is made of: `log_prob = base + log_det`, each of the batch's shape, in nats.

    base: log density of the base distribution at `x = f^-1(y)`.
    log_det: `log |det dx/dy|`.
    """

    base: Float[Array, "*batch"]
    log_det: Float[Array, "*batch"]


class FlowDistribution(dist.TransformedDistribution, InFiles):
    """The distribution of `y = f(x | condition)` for `x ~ base_dist`, with density `p(f^-1(y)) |det dx/dy|`.

    To sample from, to score, and to put in `numpyro.sample` as a prior or a likelihood: gradients flow through values,
    parameters and the condition. `log_prob` is one inverse pass; a density that follows a draw of
    `sample_with_intermediates` needs none.

    Where `constrain` is one of several sites, `sample` gives a dict of them and `log_prob` takes one. To NumPyro such a
    distribution must be one event, the vector of all sites' values, which `vector` is: `sample_sites` makes it sites of
    a model.

    Args:
        bijection: of this library or of FlowJAX.
        base_dist: a NumPyro distribution with the bijection's event shape; standard normal by default.
        condition: array of shape `(*batch, *cond_shape)`, whose batch shape becomes one of the distribution. Where the
            bijection has a condition and none is given, the distribution can only be told one: `given(condition)`.
        constrain: NumPyro transform of the flow's real vectors onto the support of the events, for example
            `biject_to(constraints.positive)`, or `SitesTransform`.

    Attributes:
        fit: how `fit_density` fitted it; None for all others.

    Raises:
        TypeError: where `bijection` is none.
        ValueError: where the condition or the base distribution has the wrong shape.

    Example:
        >>> import jax
        >>> from numpyro_flows import FlowDistribution, flows
        >>> flow = FlowDistribution(flows.realnvp(jax.random.key(0), 2))
        >>> flow.log_prob(flow.sample(jax.random.key(1), (5,))).shape
        (5,)
    """

    FILE_KINDS: ClassVar = {
        "bijection": AbstractBijection,
        "base_dist": dist.Distribution,
        "condition": Array | None,
        "constrain": Transform | None,
        "fit": Union[ForwardRef("numpyro_flows.DensityFit"), None],  # noqa: UP007
        "is_vector": bool,
    }
    fit: Any = None
    pytree_data_fields = ("_single_base",)
    pytree_aux_fields = ("_is_vector",)

    def __init__(
        self,
        bijection: AbstractBijection,
        base_dist: dist.Distribution | None = None,
        condition: ArrayLike | None = None,
        *,
        constrain: Transform | None = None,
        validate_args: bool | None = None,
    ):
        transform = FlowTransform(bijection, condition)
        event_shape = tuple(bijection.shape)
        base = base_dist or dist.Normal(jnp.zeros(event_shape), 1.0).to_event(len(event_shape))
        if base.event_shape != event_shape:
            raise ValueError(f"expected a base distribution with event shape {event_shape}, got {base.event_shape}")
        self._single_base = base  # before a batch of conditions expands it
        self._is_vector = False
        transforms: list[Transform] = [transform] if constrain is None else [transform, constrain]
        super().__init__(base, transforms, validate_args=validate_args)

    @property
    def bijection(self) -> AbstractBijection:
        return self._flow.bijection

    @property
    def condition(self) -> Array | None:
        return self._flow.condition

    @property
    def constrain(self) -> Transform | None:
        return self.transforms[1] if len(self.transforms) > 1 else None

    @property
    def sites(self) -> Sites | None:
        """Names, shapes and supports of the sites; None where an event is an array."""
        return self.support if isinstance(self.support, Sites) else None

    @property
    def vector(self) -> "FlowDistribution":
        """The same distribution with arrays for events, the vectors of the sites' values, as NumPyro expects them."""
        vector = FlowDistribution(self.bijection, self._single_base, self.condition, constrain=self.constrain)
        vector._is_vector = True
        return vector

    @property
    def _flow(self) -> FlowTransform:
        return self.transforms[0]  # pyright: ignore[reportReturnType]

    def given(self, condition: ArrayLike) -> "FlowDistribution":
        """The distribution under another condition, of shape `(*batch, *cond_shape)`.

        Raises:
            ValueError: where the bijection has no condition, or one of another shape.
        """
        if self.bijection.cond_shape is None:
            raise ValueError("expected a conditional flow, got one without condition")
        given = FlowDistribution(self.bijection, self._single_base, condition, constrain=self.constrain)
        given.fit = self.fit
        return given

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Any:  # pyright: ignore
        """Draws of shape `(*sample_shape, *batch, *event)`; of several sites a dict of them."""
        require_key(key, "key")
        value = self.sample_with_intermediates(key, sample_shape)[0]
        return value if self.sites is None or self._is_vector else self.sites.unpack(value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.sites is not None and not self._is_vector:
            raise TypeError("expected a distribution of arrays, got one of sites: use sample_sites(name, flow)")
        return super().__call__(*args, **kwargs)

    def log_prob(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, value: ArrayLike | Mapping[str, ArrayLike], intermediates: list[Any] | None = None
    ) -> Float[Array, "*batch"]:
        """Log density, of shape `(*sample, *batch)`, of an array `(*sample, *batch, *event)` or a dict of sites."""
        return self._log_prob(self._packed(value), intermediates)

    def log_prob_parts(self, value: ArrayLike | Mapping[str, ArrayLike]) -> LogProbParts:
        """The two terms of `log_prob`: of the base's density and of the volume.

        A flow whose base term is far from `-dim / 2 (1 + log 2 pi)`, the mean of a standard normal's own, does not map
        the data to its base.
        """
        return self._parts(self._packed(value), None)

    @validate_sample
    def _log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        base, log_det = self._parts(value, intermediates)
        return base + log_det

    def _packed(self, value: ArrayLike | Mapping[str, ArrayLike]) -> Array:
        if not isinstance(value, Mapping):
            return jnp.asarray(value)
        if self.sites is None:
            raise ValueError(f"expected an array of shape (..., *{self.event_shape}), got a dict of {list(value)}")
        return self.sites.pack(value)

    def _parts(self, y: Array, intermediates: list[Any] | None) -> LogProbParts:
        log_det = jnp.zeros(())
        if self.constrain is not None:
            x = jnp.asarray(self.constrain.inv(y) if intermediates is None else intermediates[1][0])
            found = None if intermediates is None else intermediates[1][1]
            each = jnp.asarray(self.constrain.log_abs_det_jacobian(x, y, found))
            log_det = -sum_rightmost(each, each.ndim - (x.ndim - len(self.bijection.shape)))
            y = x
        if intermediates is None:
            x, increment = self._flow.inverse_and_log_det(y)
            log_det = log_det + increment
        else:
            x, increment = intermediates[0]
            log_det = log_det - increment
        base = jnp.asarray(self.base_dist.log_prob(x))
        return LogProbParts(base, jnp.broadcast_to(log_det, base.shape))

    def save(self, path: str | os.PathLike) -> None:
        """Write the distribution to one file: arrays and settings, no code; its `fit` too.

        The file at `path` is whole at every moment: the old one, or the new one.

        Raises:
            TypeError: where the flow holds a function of your own, or anything that is neither an array, a plain value,
                an Equinox module nor one of NumPyro's distributions, transforms and constraints.
        """
        save_tree(path, "FlowDistribution", self)

    @classmethod
    def load(cls, path: str | os.PathLike, *, trusted: tuple[type, ...] = ()) -> "FlowDistribution":
        """Read what `save` wrote. No file can run code: you may load a stranger's.

        Args:
            path: the file.
            trusted: your own classes, or FlowJAX's, that are in the flow: `trusted=(MyBijection, MyNetwork)`. A file
                may have no others than those of this library and of NumPyro.

        Raises:
            TypeError: where `trusted` is no tuple of classes.
            ValueError: where anything is wrong with the file: it says what, and where in the flow.
        """
        return load_tree(path, "FlowDistribution", FlowDistribution, trusted=trusted)

    def file_fields(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("bijection", "condition", "constrain", "fit")}
        return own | {"base_dist": self._single_base, "is_vector": self._is_vector}

    @classmethod
    def from_file_fields(cls, fields: dict[str, Any]) -> "FlowDistribution":
        names = ("bijection", "base_dist", "condition", "constrain")
        flow = cls(**{name: fields[name] for name in names})
        flow.fit, flow._is_vector = fields["fit"], fields["is_vector"]
        _require_coherent(flow)
        return flow


def _require_coherent(flow: FlowDistribution) -> None:
    """Score one event abstractly, which computes nothing.

    Raises:
        Exception: any, where the shapes of the flow's parts do not fit together.
    """

    def score(value: Array, condition: Array | None) -> Array:
        return (flow if condition is None else flow.given(condition)).vector.log_prob(value)

    dtype = jnp.result_type(float)
    condition = None
    if flow.bijection.cond_shape is not None and flow.condition is None:
        condition = jax.ShapeDtypeStruct(flow.bijection.cond_shape, dtype)
    jax.eval_shape(score, jax.ShapeDtypeStruct(flow.event_shape, dtype), condition)


def sample_sites(name: str, flow: FlowDistribution, obs: Mapping[str, ArrayLike] | None = None) -> dict[str, Array]:
    """Sample the sites of a flow in a NumPyro model: one joint latent `name`, and every site as a deterministic one.

    Args:
        name: of the joint site, whose value is the vector of all of them.
        flow: a distribution of several sites, as `FlowPosterior.as_prior` and `fit_density` of a dict give it.
        obs: values of all sites where they are observed.

    Raises:
        ValueError: where the flow is not one of several sites.

    Example:
        >>> import jax, numpyro  # doctest: +SLOW
        >>> import numpyro.distributions as dist
        >>> from numpyro_flows import fit_density, flows, sample_sites
        >>> mu, b = jax.random.normal(jax.random.key(0), (200,)), jax.random.normal(jax.random.key(1), (200, 2))
        >>> draws = {"mu": mu, "b": b}
        >>> prior = fit_density(jax.random.key(2), draws, num_steps=50, progress_bar=False)
        >>> def model():
        ...     sites = sample_sites("prior", prior)
        ...     numpyro.sample("y", dist.Normal(sites["mu"] + sites["b"].sum(), 1.0), obs=0.3)
    """
    if flow.sites is None:
        raise ValueError(f"expected a flow of several sites, got one of event shape {flow.event_shape}")
    value = numpyro.sample(name, flow.vector, obs=None if obs is None else flow.sites.pack(obs))
    sites = flow.sites.unpack(jnp.asarray(value))
    return {site: jnp.asarray(numpyro.deterministic(site, part)) for site, part in sites.items()}
