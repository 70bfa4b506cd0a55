"""Training steps per second, without compilation, compared with other libraries with the same architecture.

    uv run --group benchmarks python -m benchmarks.flows.speed [--repeats 3]

Both sides have the same number of layers, widths, activation (SiLU), batch, gradient estimator, and Adam, and run in
turns. Each is driven by its own loop: `train_chunk` in compiled chunks; FlowJAX's `fit_to_key_based_loss` and
`fit_to_data`; NumPyro's `SVI.run` without a progress bar. A ratio above 1 means that ours takes more steps in a second.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import paramax
from flowjax import bijections as flowjax_bijections
from flowjax import flows as flowjax_flows
from flowjax.distributions import Normal, Transformed
from flowjax.train import fit_to_data, fit_to_key_based_loss
from flowjax.train.losses import ElboLoss, MaximumLikelihoodLoss
from jax.example_libraries import stax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoContinuous, AutoIAFNormal

from benchmarks.flows.common import (
    BATCH,
    RATE,
    Gradient,
    Run,
    geometric_mean,
    log_density,
    num_parameters,
    seconds_per_step,
    target_draws,
    training,
)
from benchmarks.results import save
from numpyro_flows import flows
from numpyro_flows.bijections import AbstractBijection, Invert

FLOWS = ("affine coupling", "spline coupling", "affine autoregressive", "spline autoregressive", "BNAF", "planar")
DIMS = (10, 64, 256)
BINS, BLOCK = 8, (8, 8)
VALIDATION = 16  # rows that FlowJAX is to validate on, at least one


class Case(NamedTuple):
    flow: str
    gradient: Gradient
    dim: int

    @property
    def reverse(self) -> bool:
        return self.gradient != "likelihood"

    @property
    def num_layers(self) -> int:
        return {"coupling": 6, "autoregressive": 4, "BNAF": 2, "planar": 16}[self.flow.split()[-1]]

    @property
    def width(self) -> int:
        # a masked network needs as many units as there are coordinates, and NumPyro's insists
        return 64 if "coupling" in self.flow else max(64, self.dim)

    @property
    def chunk(self) -> int:
        """Training steps in a chunk; fewer if a step is slow."""
        heavy = self.flow.startswith("spline") or self.flow == "BNAF"
        return 100 if not heavy or self.dim < 64 else 20 if self.dim < 256 else 5


def cases(names: list[str], dims: list[int]) -> Iterator[Case]:
    for name in names:
        for gradient in ("total", "path", "likelihood"):
            # only of couplings both directions are cheap, which FlowJAX's path gradient needs
            if gradient != "path" or "coupling" in name:
                yield from (Case(name, gradient, dim) for dim in dims)


def our_flow(case: Case) -> AbstractBijection:
    make: dict[str, Callable[..., AbstractBijection]] = {
        "affine coupling": partial(flows.realnvp, hidden=(case.width,) * 2),
        "spline coupling": partial(flows.nsf_coupling, hidden=(case.width,) * 2, num_bins=BINS),
        "affine autoregressive": partial(flows.iaf if case.reverse else flows.maf, hidden=(case.width,) * 2),
        "spline autoregressive": partial(
            flows.nsf_autoregressive,
            fast="sampling" if case.reverse else "density",
            hidden=(case.width,) * 2,
            num_bins=BINS,
        ),
        "BNAF": partial(flows.bnaf, fast="sampling" if case.reverse else "density", hidden=BLOCK),
        "planar": flows.planar,
    }
    flow = make[case.flow](jax.random.key(0), case.dim, num_layers=case.num_layers)
    # the recipe is for drawing; FlowJAX's turns the same map round for data
    return Invert(flow) if case.flow == "planar" and not case.reverse else flow


def flowjax_flow(case: Case) -> Transformed:
    base: dict[str, Any] = {
        "base_dist": Normal(jnp.zeros(case.dim)),
        "flow_layers": case.num_layers,
        "invert": not case.reverse,
    }
    network: dict[str, Any] = {"nn_width": case.width, "nn_depth": 2, "nn_activation": jax.nn.silu}
    affine = flowjax_bijections.Affine()
    # `knots` counts the inner ones: one fewer than bins
    spline = flowjax_bijections.RationalQuadraticSpline(knots=BINS - 1, interval=5)
    coupling = partial(flowjax_flows.coupling_flow, **base, **network)
    autoregressive = partial(flowjax_flows.masked_autoregressive_flow, **base, **network)
    make: dict[str, Callable[..., Transformed]] = {
        "affine coupling": partial(coupling, transformer=affine),
        "spline coupling": partial(coupling, transformer=spline),
        "affine autoregressive": partial(autoregressive, transformer=affine),
        "spline autoregressive": partial(autoregressive, transformer=spline),
        "BNAF": partial(
            flowjax_flows.block_neural_autoregressive_flow, **base, nn_depth=len(BLOCK), nn_block_dim=BLOCK[0]
        ),
        "planar": partial(flowjax_flows.planar_flow, **base),
    }
    flow = make[case.flow](jax.random.key(0))
    # the base has nothing to train, as ours
    return eqx.tree_at(lambda flow: flow.base_dist, flow, replace_fn=paramax.non_trainable)


def flowjax_training(case: Case, flow: Transformed, data: jax.Array) -> Run:
    optimizer = optax.adam(RATE)  # one object, as the loss is: FlowJAX compiles again for another one
    if case.reverse:
        loss = ElboLoss(log_density, BATCH, stick_the_landing=case.gradient == "path")

        def variational(num_chunks: int) -> object:
            trained, _ = fit_to_key_based_loss(
                jax.random.key(1),
                flow,
                loss_fn=loss,
                steps=num_chunks * case.chunk,
                optimizer=optimizer,
                show_progress=False,
            )
            return eqx.filter(trained, eqx.is_array)

        return variational

    likelihood = MaximumLikelihoodLoss()

    def maximum_likelihood(num_chunks: int) -> object:
        trained, _ = fit_to_data(
            jax.random.key(1),
            flow,
            data,
            loss_fn=likelihood,
            optimizer=optimizer,
            max_epochs=num_chunks,
            max_patience=num_chunks,
            batch_size=BATCH,
            val_prop=VALIDATION / len(data),
            show_progress=False,
        )
        return eqx.filter(trained, eqx.is_array)

    return maximum_likelihood


def numpyro_guide(case: Case) -> AutoContinuous | None:
    def model():
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (case.dim,)))
        numpyro.factor("target", log_density(x))

    if case.gradient == "total" and case.flow == "affine autoregressive":
        silu = stax.elementwise(jax.nn.silu)
        return AutoIAFNormal(model, num_flows=case.num_layers, hidden_dims=[case.width] * 2, nonlinearity=silu)
    if case.gradient == "total" and case.flow == "BNAF":
        return AutoBNAFNormal(model, num_flows=case.num_layers, hidden_factors=list(BLOCK))
    return None


def numpyro_training(case: Case, guide: AutoContinuous) -> tuple[Run, int]:
    """Training by `SVI.run`, and the number of parameters."""
    svi = SVI(guide.model, guide, numpyro.optim.Adam(RATE), Trace_ELBO(num_particles=BATCH))
    start = svi.init(jax.random.key(0))
    # called by itself `run` compiles each time; from a state, within jit, it is one compiled loop
    train = jax.jit(lambda state: svi.run(state.rng_key, case.chunk, progress_bar=False, init_state=state).state)

    def run(num_chunks: int) -> object:
        state = start
        for _ in range(num_chunks):
            state = train(state)
        return state

    return run, num_parameters(svi.get_params(start))


def compare(case: Case, repeats: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each peer."""
    data = target_draws(jax.random.key(2), case.chunk * BATCH + VALIDATION, case.dim)
    ours, theirs = our_flow(case), flowjax_flow(case)
    trainable = eqx.filter(theirs, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable))
    sizes = {"ours": num_parameters(ours), "FlowJAX": num_parameters(trainable)}
    sides = {
        "ours": training(case.gradient, ours, case.chunk, data),
        "FlowJAX": flowjax_training(case, theirs, data),
    }
    if (guide := numpyro_guide(case)) is not None:
        sides["NumPyro"], sizes["NumPyro"] = numpyro_training(case, guide)
    speed = {name: 1 / value for name, value in seconds_per_step(sides, case.chunk, repeats, seconds).items()}
    rows = [
        {
            "flow": case.flow,
            "kl": "reverse" if case.reverse else "forward",
            "gradient": case.gradient,
            "dim": case.dim,
            "ours_steps_per_second": f"{speed['ours']:.4g}",
            "peer": peer,
            "peer_steps_per_second": f"{speed[peer]:.4g}",
            "ratio": f"{speed['ours'] / speed[peer]:.2f}",
            "ours_parameters": sizes["ours"],
            "peer_parameters": sizes[peer],
        }
        for peer in list(sides)[1:]
    ]
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.7, help="of one timing")
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--dims", nargs="+", type=int, default=list(DIMS))
    parser.add_argument("--quick", action="store_true", help="one short timing, nothing written")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.seconds = 1, 0.2
    rows, ratios = [], []
    for case in cases(options.flows, options.dims):
        rows += (found := compare(case, options.repeats, options.seconds))
        ratios.append(min(float(row["ratio"]) for row in found))
    summary = {
        "flow": "against the best peer",
        "peer": f"geometric mean {geometric_mean(ratios):.2f}, minimum {min(ratios):.2f}",
        "ratio": f"{geometric_mean(ratios):.2f}",
    }
    rows.append({key: summary.get(key, "") for key in rows[0]})
    if options.quick:
        print(summary)
    else:
        save("flows_speed", rows)


if __name__ == "__main__":
    main()
