"""The published update rules of the optimizers in plain numpy: what operations and optimizers are tested against."""

from collections.abc import Callable
from typing import Any

import numpy as np

State = dict[str, np.ndarray[Any, Any]]

LR, MOMENTUM, RHO, EPSILON, BETA1, BETA2 = 0.1, 0.9, 0.8, 1e-3, 0.7, 0.95


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
    "centered rmsprop": ("CenteredRMSProp", {"mg": 0.0, "ms": 1.0, "mom": 0.0}, centered_rms_prop, {}),
}
