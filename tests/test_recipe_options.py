"""Every option of every recipe, of a wrong kind or size: one sentence with its name, before anything is made."""

import collections.abc
import inspect
import re
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

from numpyro_flows import flows

KEY = jax.random.key(0)
RECIPES: dict[str, Callable[..., Any]] = {
    name: recipe
    for name, recipe in vars(flows).items()
    if inspect.isfunction(recipe) and "key" in inspect.signature(recipe).parameters
}
NAN, INF = float("nan"), float("inf")
NO_INTEGERS = ("a", NAN, INF, 2.5, 2.0, True, (2,), [], -1)
NO_NUMBERS = ("a", NAN, INF, -INF, True, (1.0,), 1j)
NO_WIDTHS = ("a", 32, 2.5, True, (2.5,), (-1,), (0,), (NAN,), (None,), ("a",))
NO_TIMES = ("a", 1.0, (1.0,), (0.0, "a"), (0.0, NAN), (INF, 0.0), (0.0, True), (1.0, 1.0), (0.0, None))
NO_ADJACENCY = ("a", 3, np.ones((3, 2)), [[1, 2], [3]], np.full((2, 2), NAN), np.full((2, 2), "a"), object())
WRONG_BY_KIND: dict[Any, tuple[Any, ...]] = {
    int: NO_INTEGERS,
    float: NO_NUMBERS,
    bool: ("a", NAN, 1, 2.5, [], INF),
    typing.Literal: ("a", NAN, 3, [], True),
    collections.abc.Sequence: NO_WIDTHS,
    tuple: NO_TIMES,
}
AT_LEAST_ONE = ("dim", "num_layers", "num_levels", "num_bins", "num_units", "degree", "num_components", "passes")
WRONG_BY_NAME: dict[str, tuple[Any, ...]] = {
    "adjacency": NO_ADJACENCY,
    **dict.fromkeys(("max_log_scale", "bound", "max_lipschitz"), (*NO_NUMBERS, 0.0, -1.0)),
    **dict.fromkeys((*AT_LEAST_ONE, "block_size", "width", "num_heads", "num_blocks", "patch_size"), (*NO_INTEGERS, 0)),
}
OTHERS = ("a", NAN, 3, 2.5)  # of objects


def options_of(recipe: Callable[..., Any]) -> dict[str, Any]:
    """What kind each option is of, also those that a family of recipes shares."""
    hints = {name: option.annotation for name, option in inspect.signature(recipe).parameters.items() if name != "key"}
    shared = hints.pop("options", None)
    return hints if shared is None else hints | typing.get_type_hints(*typing.get_args(shared))


def wrong_values(name: str, hint: Any) -> list[Any]:
    """What the option cannot be, by its name and its annotation."""
    optional = type(None) in typing.get_args(hint)
    kinds = typing.get_args(hint) if optional else (hint,)
    by_kind = [WRONG_BY_KIND.get(typing.get_origin(kind) or kind) for kind in kinds]
    wrong = WRONG_BY_NAME.get(name) or next(filter(None, by_kind), OTHERS)
    return [*wrong] if optional else [*wrong, None]


def told(recipe: Callable[..., Any], name: str, value: Any) -> str:
    """What calling the recipe with this option says."""
    try:
        eqx.filter_eval_shape(partial(recipe, KEY, **({"dim": 2} | {name: value})))
    except (TypeError, ValueError) as error:
        return str(error)
    return "nothing"


@pytest.fixture
def unfiltered():
    """Tracebacks as they are: JAX takes longer to shorten one than all else here takes."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


@pytest.mark.unchecked
@pytest.mark.usefixtures("unfiltered")
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_options(recipe):
    unclear = {}
    for name, hint in options_of(recipe).items():
        for value in wrong_values(name, hint):
            message = told(recipe, name, value)
            if not re.search(rf"^(each \w+ of )?{name} expected .*, got ", message):
                unclear[f"{name}={value!r}"] = message
    assert not unclear


@pytest.mark.parametrize(("general", "family"), [(flows.coupling, flows.realnvp), (flows.autoregressive, flows.maf)])
def test_families_share_the_options_of_the_general_recipe(general, family):
    """All but the univariate map, which they are about, and the direction, which some of them are about."""
    shared = options_of(family).keys() - {"dim", "max_log_scale"}
    assert options_of(general).keys() - {"dim", "univariate", "fast"} == shared
    assert all(options_of(general)[name] == options_of(family)[name] for name in shared)


@pytest.mark.unchecked
def test_of_conditions_and_of_tails():
    with pytest.raises(TypeError, match=r"^cond_dim expected an integer or None, got \(1,\): write cond_dim=1"):
        flows.realnvp(KEY, 2, cond_dim=(1,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"^univariate expected an object such as"):
        flows.with_tails(flows.realnvp, "heavy")(KEY, 2)  # pyright: ignore[reportArgumentType]
