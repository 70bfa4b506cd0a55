"""A continuous flow on two moons, by flow matching: its score, how it was solved, and its way from base to data.

    uv run --group test examples/continuous_flow.py

Writes continuous_flow_paths.png and continuous_flow_density.png.
"""

import jax
import numpy as np
from sklearn.datasets import make_moons

from numpyro_flows import fit_density, flow_plots, flows

NUM, NOISE = 3000, 0.08


def main() -> None:
    data, _ = make_moons(NUM, noise=NOISE, random_state=0)
    flow = fit_density(jax.random.key(0), data, flow=flows.ffjord, objective="flow_matching", num_steps=10_000)
    fresh, _ = make_moons(NUM, noise=NOISE, random_state=1)
    log_prob = np.asarray(flow.log_prob(np.asarray(fresh)))
    print(f"negative log likelihood of fresh points: {-log_prob.mean():.3f} +- {log_prob.std() / np.sqrt(NUM):.3f}")
    print(f"evaluations of the field for a density: {flow.fit.solver.num_evaluations:.0f}")
    flow_plots.plot_trajectories(flow, jax.random.key(1)).savefig("continuous_flow_paths.png", dpi=200)
    flow_plots.plot_density_path(flow, jax.random.key(1)).savefig("continuous_flow_density.png", dpi=200)


if __name__ == "__main__":
    main()
