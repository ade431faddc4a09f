"""The published update rules of the optimizers in plain numpy: what operations and optimizers are tested against."""

from collections.abc import Callable
from typing import Any

import numpy as np

State = dict[str, np.ndarray[Any, Any]]

LR, MOMENTUM, RHO, EPSILON, BETA1, BETA2 = 0.1, 0.9, 0.8, 1e-3, 0.7, 0.95
L1, L2, L2_SHRINKAGE, LR_POWER = 0.05, 0.3, 0.02, -0.4


# ---- the formulas, on one array ``s["var"]`` and its slots; ``t`` counts steps from 1


def descent(s: State, g: Any, t: int) -> None:
    s["var"] = s["var"] - LR * g


def momentum(s: State, g: Any, t: int) -> None:
    s["accum"] = MOMENTUM * s["accum"] + g
    s["var"] = s["var"] - LR * s["accum"]


def nesterov(s: State, g: Any, t: int) -> None:
    s["accum"] = MOMENTUM * s["accum"] + g
    s["var"] = s["var"] - LR * (g + MOMENTUM * s["accum"])


def adagrad(s: State, g: Any, t: int) -> None:
    s["accum"] = s["accum"] + g**2
    s["var"] = s["var"] - LR * g * s["accum"] ** -0.5


def frozen_adagrad(s: State, g: Any, t: int) -> None:
    s["var"] = s["var"] - LR * g * s["accum"] ** -0.5


def adagrad_v2(s: State, g: Any, t: int) -> None:
    s["accum"] = s["accum"] + g**2
    s["var"] = s["var"] - LR * g / (s["accum"] ** 0.5 + EPSILON)


def adam(s: State, g: Any, t: int) -> None:
    s["m"] = BETA1 * s["m"] + (1 - BETA1) * g
    s["v"] = BETA2 * s["v"] + (1 - BETA2) * g**2
    rate = LR * (1 - BETA2**t) ** 0.5 / (1 - BETA1**t)
    s["var"] = s["var"] - rate * s["m"] / (s["v"] ** 0.5 + EPSILON)


def nadam(s: State, g: Any, t: int) -> None:
    s["m"] = BETA1 * s["m"] + (1 - BETA1) * g
    s["v"] = BETA2 * s["v"] + (1 - BETA2) * g**2
    rate = LR * (1 - BETA2**t) ** 0.5 / (1 - BETA1**t)
    s["var"] = s["var"] - rate * (BETA1 * s["m"] + (1 - BETA1) * g) / (s["v"] ** 0.5 + EPSILON)


def rms_prop(s: State, g: Any, t: int) -> None:
    s["ms"] = RHO * s["ms"] + (1 - RHO) * g**2
    s["mom"] = MOMENTUM * s["mom"] + LR * g / (s["ms"] + EPSILON) ** 0.5
    s["var"] = s["var"] - s["mom"]


def centered_rms_prop(s: State, g: Any, t: int) -> None:
    s["mg"] = RHO * s["mg"] + (1 - RHO) * g
    s["ms"] = RHO * s["ms"] + (1 - RHO) * g**2
    s["mom"] = MOMENTUM * s["mom"] + LR * g / (s["ms"] - s["mg"] ** 2 + EPSILON) ** 0.5
    s["var"] = s["var"] - s["mom"]


def adadelta(s: State, g: Any, t: int) -> None:
    s["accum"] = RHO * s["accum"] + (1 - RHO) * g**2
    update = (s["accum_update"] + EPSILON) ** 0.5 / (s["accum"] + EPSILON) ** 0.5 * g
    s["accum_update"] = RHO * s["accum_update"] + (1 - RHO) * update**2
    s["var"] = s["var"] - LR * update


def soft(x: Any, threshold: Any) -> Any:
    """The proximal map of ``threshold * |x|``, case by case."""
    return np.where(x > threshold, x - threshold, np.where(x < -threshold, x + threshold, 0.0))


def proximal_descent(s: State, g: Any, t: int) -> None:
    s["var"] = soft(s["var"] - LR * g, LR * L1) / (1 + LR * L2)


def proximal_adagrad(s: State, g: Any, t: int) -> None:
    s["accum"] = s["accum"] + g**2
    rate = LR / s["accum"] ** 0.5
    s["var"] = soft(s["var"] - rate * g, rate * L1) / (1 + rate * L2)


def adagrad_da(s: State, g: Any, t: int) -> None:
    s["gradient_accumulator"] = s["gradient_accumulator"] + g
    s["gradient_squared_accumulator"] = s["gradient_squared_accumulator"] + g**2
    mean = s["gradient_accumulator"] / t  # Duchi et al. 2011, equation (25)
    s["var"] = -LR * t * soft(mean, L1) / (LR * t * L2 + s["gradient_squared_accumulator"] ** 0.5)


def ftrl(s: State, g: Any, t: int, shrinkage: float = 0.0) -> None:
    """McMahan et al. 2013, algorithm 1, with a power of the rate in place of the square root and twice their l2."""
    sigma = ((s["accum"] + g**2) ** -LR_POWER - s["accum"] ** -LR_POWER) / LR
    s["linear"] = s["linear"] + g + 2 * shrinkage * s["var"] - sigma * s["var"]
    s["accum"] = s["accum"] + g**2
    s["var"] = -soft(s["linear"], L1) / (s["accum"] ** -LR_POWER / LR + 2 * L2)


def ftrl_v2(s: State, g: Any, t: int) -> None:
    ftrl(s, g, t, L2_SHRINKAGE)


def scaled_ftrl(s: State, g: Any, t: int) -> None:
    """The same with ``linear`` kept times the rate."""
    s["linear"] = s["linear"] / LR
    ftrl(s, g, t)
    s["linear"] = s["linear"] * LR


def scaled_ftrl_v2(s: State, g: Any, t: int) -> None:
    s["linear"] = s["linear"] / LR
    ftrl_v2(s, g, t)
    s["linear"] = s["linear"] * LR


_FTRL = {"accum": 0.1, "linear": 0.0}
_TOTALS = {"gradient_accumulator": 0.0, "gradient_squared_accumulator": 0.1}

# name of the rule: (operation, slots and their start, formula, attributes)
RULES: dict[str, tuple[str, dict[str, float], Callable[[State, Any, int], None], dict[str, Any]]] = {
    "descent": ("GradientDescent", {}, descent, {}),
    "momentum": ("Momentum", {"accum": 0.0}, momentum, {}),
    "nesterov": ("Momentum", {"accum": 0.0}, nesterov, {"use_nesterov": True}),
    "adagrad": ("Adagrad", {"accum": 0.1}, adagrad, {}),
    "frozen adagrad": ("Adagrad", {"accum": 0.1}, frozen_adagrad, {"update_slots": False}),
    "adagrad v2": ("AdagradV2", {"accum": 0.1}, adagrad_v2, {}),
    "adam": ("Adam", {"m": 0.0, "v": 0.0}, adam, {}),
    "nadam": ("Adam", {"m": 0.0, "v": 0.0}, nadam, {"use_nesterov": True}),
    "rmsprop": ("RMSProp", {"ms": 1.0, "mom": 0.0}, rms_prop, {}),
    "adadelta": ("Adadelta", {"accum": 0.0, "accum_update": 0.0}, adadelta, {}),
    "proximal descent": ("ProximalGradientDescent", {}, proximal_descent, {}),
    "proximal adagrad": ("ProximalAdagrad", {"accum": 0.1}, proximal_adagrad, {}),
    "adagrad da": ("AdagradDA", _TOTALS, adagrad_da, {}),
    "ftrl": ("Ftrl", _FTRL, ftrl, {}),
    "ftrl v2": ("FtrlV2", _FTRL, ftrl_v2, {}),
    "scaled ftrl": ("Ftrl", _FTRL, scaled_ftrl, {"multiply_linear_by_lr": True}),
    "scaled ftrl v2": ("FtrlV2", _FTRL, scaled_ftrl_v2, {"multiply_linear_by_lr": True}),
    "centered rmsprop": ("CenteredRMSProp", {"mg": 0.0, "ms": 1.0, "mom": 0.0}, centered_rms_prop, {}),
}
