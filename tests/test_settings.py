"""What `FlowVISettings` refuses: values by which a stage would fail or estimate nothing."""

import dataclasses
from typing import Any

import pytest

from numpyro_flows import FlowVISettings

DEFAULTS = FlowVISettings()
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "draws of a verdict as a float": ({"certificate_draws": 2e4}, TypeError, "write 20000"),
    "a few draws": ({"certificate_draws": 10}, ValueError, "certificate_draws expected at least 1000, got 10"),
    "one draw, which has no opposite": ({"refine_draws": 1}, ValueError, "refine_draws expected at least 2, got 1"),
    "a share in percent": ({"max_missed": 5}, ValueError, r"max_missed .* in \(0, 1\], got 5"),
    "a number for two": ({"dispersion": 3.0}, TypeError, r"dispersion .* such as \(3.0, 300.0\)"),
    "one for two": ({"dispersion": (3.0,)}, ValueError, r"dispersion expected two numbers, .* got \(3.0,\)"),
    "the larger one first": ({"tail_distances": (1e4, 1e2)}, ValueError, "the smaller one first, got"),
    "one of several": ({"ladder": (-1.0, 0.0, 2.0)}, ValueError, r"each number of ladder expected .* got -1.0"),
    "no length": ({"newton_lengths": ()}, ValueError, r"newton_lengths expected at least one number, got \(\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    values, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        FlowVISettings(**values)


@pytest.mark.parametrize("field", dataclasses.fields(DEFAULTS), ids=lambda field: field.name)
@pytest.mark.parametrize("value", ["a", -1, float("nan"), None, True])
def test_each_is_checked(field, value):
    value = 1 if value is True and isinstance(field.default, bool) else value
    with pytest.raises((TypeError, ValueError), match=f"{field.name} expected"):
        dataclasses.replace(DEFAULTS, **{field.name: value})


def test_what_makes_a_certificate_looser():
    assert FlowVISettings().loosened() == ""
    assert FlowVISettings(max_khat=0.5, min_ess=0.9, certificate_draws=50_000).loosened() == ""  # stricter
    assert FlowVISettings(max_khat=1.0, dispersed_starts=2).loosened() == "max_khat=1.0, dispersed_starts=2"
    assert FlowVISettings(max_cut=0.1, particles=10, profiled=20).loosened() == "max_cut=0.1, particles=10"
