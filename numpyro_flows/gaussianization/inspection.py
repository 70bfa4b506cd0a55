"""The effect of each layer of a flow on data on their way to the base."""

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from numpyro_flows.arguments import as_numbers, described, require_finite_rows
from numpyro_flows.bijections.compose import layers_of
from numpyro_flows.bijections.composition import Part
from numpyro_flows.gaussianization.entropies import neighbour_entropy, spacing_entropies
from numpyro_flows.precision import full_precision

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = 6  # of panels in a picture
_MAX_POINTS = 2_000  # in a panel


class LayerTable(NamedTuple):
    """The result of `inspect_layers`: a row for the data, then one after each part of each layer, towards the base.

    Attributes:
        layers: number of the layer, 0 for the data; several rows if a layer has several parts.
        parts: name of the part.
        samples: samples after the part, `(rows, num, dim)`.
        correlation: correlation of the coordinates, `(rows, dim, dim)`.
        skew: skewness, `(rows, dim)`.
        kurtosis: excess kurtosis, `(rows, dim)`.
        negentropy: negentropy of each coordinate, in nats, `(rows, dim)`; 0 for a Gaussian.
        total_correlation: total correlation in nats, `(rows,)`; 0 for independent coordinates.
        log_det: mean log-determinant of the part, from data to base, `(rows,)`; they sum to that of the flow.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine
        >>> from numpyro_flows.gaussianization import inspect_layers
        >>> table = inspect_layers(Affine(jnp.zeros(2), 2.0), jax.random.normal(jax.random.key(0), (100, 2)))
        >>> table.parts, table.log_det.round(2).tolist()
        (['data', 'Affine'], [0.0, -1.39])
    """

    layers: list[int]
    parts: list[str]
    samples: Float[np.ndarray, "rows num dim"]
    correlation: Float[np.ndarray, "rows dim dim"]
    skew: Float[np.ndarray, "rows dim"]
    kurtosis: Float[np.ndarray, "rows dim"]
    negentropy: Float[np.ndarray, "rows dim"]
    total_correlation: Float[np.ndarray, " rows"]
    log_det: Float[np.ndarray, " rows"]

    def table(self) -> "pd.DataFrame":
        """One line for each row: of values for each coordinate the largest size, of negentropies the sum."""
        import pandas as pd

        dim = self.samples.shape[2]
        off_diagonal = np.abs(self.correlation - np.eye(dim)).max((1, 2))
        return pd.DataFrame(
            {
                "layer": self.layers,
                "part": self.parts,
                "log_det": self.log_det,
                "total_correlation": self.total_correlation,
                "negentropy": self.negentropy.sum(1),
                "max_correlation": off_diagonal,
                "max_skew": np.abs(self.skew).max(1),
                "max_kurtosis": np.abs(self.kurtosis).max(1),
            }
        )

    def plot(self, path: str | os.PathLike | None = None) -> "Figure":
        """Plot the first two coordinates after every part, and below them the numbers of the table as curves.

        Args:
            path: path of a file to write the plot to; its ending gives the format.
        """
        from numpyro_flows.picture import Picture

        num_rows = -(-len(self.parts) // _COLUMNS)
        figure = Picture(figsize=(2 * _COLUMNS, 2 * num_rows + 3), layout="constrained")
        grid = figure.add_gridspec(num_rows + 1, _COLUMNS, height_ratios=[2] * num_rows + [3])
        for i, (layer, part, x) in enumerate(zip(self.layers, self.parts, self.samples[:, :_MAX_POINTS])):
            panel = figure.add_subplot(grid[divmod(i, _COLUMNS)])
            if x.shape[1] == 1:
                panel.hist(x[:, 0], bins=40)
            else:
                panel.scatter(x[:, 0], x[:, 1], s=1, linewidths=0)
            panel.set_title(f"{layer} {part}", fontsize="small")
            panel.tick_params(labelsize="x-small")
        curves = {
            "total correlation": self.total_correlation,
            "sum of negentropies": self.negentropy.sum(1),
            "log-determinant so far": self.log_det.cumsum(),
        }
        width = _COLUMNS // len(curves)
        for i, (name, values) in enumerate(curves.items()):
            panel = figure.add_subplot(grid[num_rows, i * width : (i + 1) * width])
            panel.plot(values, marker=".")
            panel.axhline(0.0, color="grey", linewidth=0.5)
            panel.set(title=f"{name} (nats)", xlabel="part")
        if path is not None:
            figure.savefig(path)
        return figure


def inspect_layers(flow: Any, data: ArrayLike, condition: ArrayLike | None = None) -> LayerTable:
    """Samples and their statistics after every layer, on the way from the data to the base.

    A layer is one step of a `Scan`, or a part of the outermost `Chain`. The parts of a chain within a layer have their
    own rows. In a Gaussianization flow these are two: the rotation does not change the divergence from a Gaussian, but
    moves it to the marginals, and the marginal map removes it. The function looks into `Invert`, `Frozen` and
    `StandardizedCondition`; any other bijection is one part.

    The total correlation after a part is the sum of the marginal entropies, by spacings, minus the joint entropy. The
    latter is that at the base, by nearest neighbours, minus the log-determinants from there to the base. Use data that
    the flow was not trained on, because overfitting looks like information.

    Args:
        flow: a bijection, or an object with one as its attribute `bijection`, such as a `FlowDistribution`.
        data: events `(num, *shape)`, laid out as vectors.
        condition: one condition for all events, or one for each; by default the flow's own.

    Raises:
        TypeError: if `flow` has no bijection, or data are not numbers.
        ValueError: if data have another shape, have fewer than 16 rows or are not finite. Also if the condition is
            missing or has another shape.

    Example:
        >>> from numpyro_flows import flows  # doctest: +SLOW
        >>> data = jax.random.normal(jax.random.key(0), (500, 2))
        >>> table = inspect_layers(flows.gaussianization(jax.random.key(1), 2, num_layers=2), data)
        >>> table.parts
        ['data', 'Affine', 'Householder', 'Elementwise', 'Householder', 'Elementwise']
    """
    bijection = flow if hasattr(flow, "inverse_and_log_det") else getattr(flow, "bijection", None)
    if bijection is None:
        raise TypeError(f"flow expected a bijection or a FlowDistribution, got {described(flow)}")
    given = getattr(flow, "condition", None) if condition is None else condition
    x = jnp.asarray(as_numbers(data, "data"), float)
    if x.shape[1:] != tuple(bijection.shape) or x.ndim == 0 or len(x) < 16:
        raise ValueError(f"expected data of shape (num, *{bijection.shape}) with num >= 16, got {x.shape}")
    require_finite_rows("data", np.asarray(x))
    of_each = None
    if given is None and bijection.cond_shape is not None:
        raise ValueError(f"condition expected an array of shape (..., *{bijection.cond_shape}), got None")
    if given is not None and bijection.cond_shape is not None:
        of_each = jnp.asarray(as_numbers(given, "condition"), float)
        expected = (len(x), *bijection.cond_shape)
        if of_each.shape not in (expected, expected[1:]):
            raise ValueError(f"condition expected the shape {expected[1:]} or {expected}, got {of_each.shape}")
        of_each = jnp.broadcast_to(of_each, expected)
    layers, parts, samples, log_dets = [0], ["data"], [x], [np.zeros(len(x))]
    for number, layer in enumerate(reversed(layers_of(Part(bijection, of_each))), start=1):
        for part in reversed(layer):
            x, log_det = _step(part, x)
            layers.append(number)
            parts.append(type(part.bijection).__name__)
            samples.append(x)
            log_dets.append(np.asarray(log_det))
    rows = np.stack([np.asarray(s, dtype=float).reshape(len(s), -1) for s in samples])
    log_det = np.mean(np.asarray(log_dets, dtype=float), axis=1)
    centred = rows - rows.mean(1, keepdims=True)
    deviation = centred.std(1)
    standard = centred / deviation[:, None]
    marginal = np.stack([spacing_entropies(row).mean(0) for row in rows])
    to_come = log_det[::-1].cumsum()[::-1] - log_det  # log-determinants that are added after each row
    joint = neighbour_entropy(rows[-1]) - to_come
    return LayerTable(
        layers,
        parts,
        rows,
        correlation=np.einsum("rni,rnj->rij", standard, standard) / rows.shape[1],
        skew=(standard**3).mean(1),
        kurtosis=(standard**4).mean(1) - 3,
        negentropy=0.5 * np.log(2 * np.pi * np.e) + np.log(deviation) - marginal,
        total_correlation=marginal.sum(1) - joint,
        log_det=log_det,
    )


@eqx.filter_jit
@full_precision()  # a bijection of FlowJAX does not ask for it
def _step(part: Part, x: Array) -> tuple[Array, Array]:
    return jax.vmap(lambda x, condition: part._replace(condition=condition).move(x, to_base=True))(x, part.condition)
