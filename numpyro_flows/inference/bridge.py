"""The evidence by bridge sampling, from draws of Markov chains and of a distribution with a known density."""

import numpy as np
from scipy.special import expit, logsumexp

from numpyro_flows.inference.certificate import Draws
from numpyro_flows.inference.draws import Chains
from numpyro_flows.inference.judge_draws import Agreement
from numpyro_flows.inference.mixture import Mixture


def bridged(chains: Chains, mixture: Mixture, draws: Draws) -> tuple[float, float]:
    """Log evidence `log Z`, and its standard error, from chains and from draws of a mixture with their weights.

    With `l = p / q`, the optimal bridge of `n` draws of `p` and `m` of `q` is the root `Z` of
    `sum_q l / (n l + m Z) = sum_p Z / (n l + m Z)`. Chains count as their effective sample size.

    Source: Meng, Wong 1996; the error: Fruhwirth-Schnatter 2004.
    """
    x = chains.x.reshape(-1, chains.x.shape[2])
    of_chains = chains.log_density.ravel() - mixture.log_prob(x)
    of_draws = np.where(np.isnan(draws.log_weight), -np.inf, draws.log_weight)
    effective = float(np.clip(np.nanmin(Agreement.of(chains.x).ess_bulk), 1.0, of_chains.size))
    log_odds = np.log(effective) - np.log(of_draws.size)

    def gap(log_z: float) -> float:
        # each mean is that of one density's share, at the draws of the other
        up = logsumexp(np.log(expit(log_odds + of_draws - log_z) + 1e-300)) - np.log(of_draws.size) - log_odds
        down = logsumexp(np.log(expit(-(log_odds + of_chains - log_z)) + 1e-300)) - np.log(of_chains.size)
        return float(up - down)

    log_z = float(np.median(of_chains))
    for _ in range(200):
        step = gap(log_z)
        log_z += step
        if abs(step) < 1e-8:
            break
    share_of_p = expit(log_odds + of_draws - log_z)  # over draws of q
    share_of_q = expit(-(log_odds + of_chains - log_z))  # over draws of p
    error = share_of_p.var() / share_of_p.mean() ** 2 / of_draws.size
    error += share_of_q.var() / share_of_q.mean() ** 2 / effective
    return log_z, float(np.sqrt(error))
