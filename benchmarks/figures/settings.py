"""Constants of a fit."""

import dataclasses

import numpy as np

from numpyro_flows.inference.judge_draws import MAX_RHAT, MIN_ESS
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.summary import MAX_KHAT_OF_SQUARES, NUM_DRAWS

SETTINGS = FlowVISettings()
SHARES = {"forward_ess", "target_ess", "min_ess", "sufficient_ess", "max_missed", "max_broken"}


def settings() -> dict[str, str]:
    numbers = {field.name: getattr(SETTINGS, field.name) for field in dataclasses.fields(SETTINGS)}
    counts = {name: f"{value:,}" for name, value in numbers.items() if isinstance(value, int)}
    others = {name: constant(name, value) for name, value in numbers.items() if name not in counts}
    return {
        **counts,
        **others,
        "first_rounds": ", ".join(f"{steps:,}" for steps in rounds()[:4]),
        "num_verdicts": str(1 + len(rounds())),
    }


def constant(name: str, value: float | tuple[float, ...]) -> str:
    if isinstance(value, tuple):
        return " to ".join(f"{end:,g}" for end in value)
    return f"{value:.3g}" if name not in SHARES else f"{100 * value:g}%"


def rounds() -> list[int]:
    """Steps of the rounds of a fit that uses all its budget."""
    lengths = [SETTINGS.first_round]
    while sum(lengths) < SETTINGS.num_steps:
        length = min(lengths[-1] * SETTINGS.round_growth, SETTINGS.longest_round)
        lengths.append(min(length, SETTINGS.num_steps - sum(lengths)))
    return lengths


def summary() -> dict[str, str]:
    return {"num_draws": f"{NUM_DRAWS:,}", "max_khat_of_squares": f"{MAX_KHAT_OF_SQUARES}"}


def chains() -> dict[str, str]:
    return {"max_rhat": f"{MAX_RHAT}", "min_ess": f"{MIN_ESS:.0f}"}


def precision() -> dict[str, str]:
    """The distance of a log density of this size to the next one in single precision."""
    sizes = {"of_ten_thousand": 1e4, "of_a_million": 1e6}
    return {name: f"{np.spacing(np.float32(size)):.1g}" for name, size in sizes.items()}
