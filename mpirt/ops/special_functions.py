"""Special functions over an array namespace: erf, erfc, erfinv, the logarithm of gamma, its derivatives, Hurwitz zeta.

numpy has none of them and cupy keeps them elsewhere, so one vectorised float64 body serves both; callers cast. Relative
errors are a few 1e-16 (erf, erfc, erfinv, ndtri, zeta), the others are right to 1e-13 of max(1, |value|).
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

# W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23 (1969) 631-637; the
# coefficients as in his CALERF (netlib specfun). Highest power first, as Horner's rule reads them.
_ERF_P = (
    1.85777706184603153e-1,
    3.16112374387056560e00,
    1.13864154151050156e02,
    3.77485237685302021e02,
    3.20937758913846947e03,
)
_ERF_Q = (1.0, 2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03, 2.84423683343917062e03)
_ERFC_P = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e00, 6.61191906371416295e01,
    2.98635138197400131e02,
           8.81952221241769090e02, 1.71204761263407058e03, 2.05107837782607147e03, 1.23033935479799725e03)  # fmt: skip
_ERFC_Q = (1.0, 1.57449261107098347e01, 1.17693950891312499e02, 5.37181101862009858e02, 1.62138957456669019e03,
           3.29079923573345963e03, 4.36261909014324716e03, 3.43936767414372164e03, 1.23033935480374942e03)  # fmt: skip
_TAIL_P = (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
    1.60837851487422766e-2,
           6.58749161529837803e-4)  # fmt: skip
_TAIL_Q = (1.0, 2.56852019228982242e00, 1.87295284992346047e00, 5.27905102951428412e-1, 6.05183413124413191e-2,
           2.33520497626869185e-3)  # fmt: skip

# Bernoulli numbers B2, B4, ... for the asymptotic series (Abramowitz & Stegun 6.1.40, 6.3.18, 23.2).
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
_SHIFT = 10  # the series are used from here on; smaller arguments are brought there by the recurrence


def _horner(coefficients: tuple[float, ...], x: Any) -> Any:
    value = coefficients[0]
    for c in coefficients[1:]:
        value = value * x + c
    return value


def _erf_near_0(x: Any) -> Any:
    square = x * x
    return x * _horner(_ERF_P, square) / _horner(_ERF_Q, square)


def _erfc_positive(xp: ModuleType, y: Any) -> Any:
    """Complementary error function for y > 0.46875."""
    middle = xp.clip(y, 0.46875, 4.0)
    tail = xp.clip(y, 4.0, 30.0)
    inverse = 1.0 / (tail * tail)
    scaled_tail = (1 / math.sqrt(math.pi) - inverse * _horner(_TAIL_P, inverse) / _horner(_TAIL_Q, inverse)) / tail
    scaled = xp.where(y > 4.0, scaled_tail, _horner(_ERFC_P, middle) / _horner(_ERFC_Q, middle))
    # exp(-y*y) in two factors: the square of y cut to 1/16 is exact, and nothing is lost in the rest.
    cut = xp.floor(y * 16.0) / 16.0
    return xp.exp(-cut * cut) * xp.exp(-(y - cut) * (y + cut)) * scaled


def erf(xp: ModuleType, x: Any) -> Any:
    """Error function of a float64 array."""
    y = abs(x)
    far = xp.sign(x) * (1.0 - _erfc_positive(xp, xp.clip(y, 0.46875, 30.0)))
    return xp.where(y <= 0.46875, _erf_near_0(xp.clip(x, -0.5, 0.5)), far)


def erfc(xp: ModuleType, x: Any) -> Any:
    """Complementary error function of a float64 array."""
    y = abs(x)
    far = _erfc_positive(xp, xp.clip(y, 0.46875, 30.0))
    return xp.where(y <= 0.46875, 1.0 - _erf_near_0(xp.clip(x, -0.5, 0.5)), xp.where(x < 0, 2.0 - far, far))


# M. J. Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Appl. Statist. 37 (1988) 477-484
# (PPND16), highest power first.
_NDTRI_A = (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
            1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0)  # fmt: skip
_NDTRI_B = (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
            5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0)  # fmt: skip
_NDTRI_C = (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
            3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0)  # fmt: skip
_NDTRI_D = (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
            6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0)  # fmt: skip
_NDTRI_E = (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
            2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0,
            6.65790464350110377720e0)  # fmt: skip
_NDTRI_F = (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
            1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0)  # fmt: skip


def _quantile(xp: ModuleType, centred: Any, tail: Any) -> Any:
    """Normal quantile from p - 1/2 and min(p, 1 - p), each given without cancellation."""
    inner = xp.clip(centred, -0.425, 0.425)
    r = 0.180625 - inner * inner
    central = inner * _horner(_NDTRI_A, r) / _horner(_NDTRI_B, r)
    depth = xp.sqrt(-xp.log(tail))
    near, far = xp.clip(depth, 0.0, 5.0) - 1.6, xp.clip(depth, 5.0, 40.0) - 5.0
    outer = xp.where(depth <= 5.0, _horner(_NDTRI_C, near) / _horner(_NDTRI_D, near), _horner(_NDTRI_E, far) / _horner(_NDTRI_F, far))
    outer = xp.where(tail > 0, outer, xp.where(tail == 0, math.inf, math.nan))
    return xp.where(abs(centred) <= 0.425, central, xp.sign(centred) * outer)


def ndtri(xp: ModuleType, p: Any) -> Any:
    """Quantile of the standard normal distribution of a float64 array."""
    return _quantile(xp, p - 0.5, xp.minimum(p, 1.0 - p))


def erfinv(xp: ModuleType, x: Any) -> Any:
    """Inverse of the error function of a float64 array."""
    return _quantile(xp, 0.5 * x, 0.5 * (1.0 - abs(x))) / math.sqrt(2.0)


def lgamma(xp: ModuleType, x: Any) -> Any:
    """Logarithm of the absolute value of the gamma function of a float64 array."""
    reflected = x < 0.5
    z = xp.where(reflected, 1.0 - x, x)
    small = z < _SHIFT
    product = xp.ones_like(z)
    low = xp.where(small, z, 1.0)
    for i in range(_SHIFT):
        product = product * (low + i)
    product = xp.where(small, product, 1.0)
    z = xp.where(small, z + _SHIFT, z)
    series = sum(b / ((2 * k + 1) * (2 * k + 2)) * z ** -(2.0 * k + 1) for k, b in enumerate(_BERNOULLI[:8]))
    value = (z - 0.5) * xp.log(z) - z + 0.5 * math.log(2 * math.pi) + series - xp.log(product)
    value = xp.where(xp.isinf(z), math.inf, value)
    sine = abs(xp.sin(math.pi * (x - xp.rint(x))))
    return xp.where(reflected & xp.isfinite(x), math.log(math.pi) - xp.log(sine) - value, value)


def digamma(xp: ModuleType, x: Any) -> Any:
    """Logarithmic derivative of the gamma function of a float64 array; NaN at negative integers, -inf at 0."""
    reflected = x < 0
    z = xp.where(reflected, 1.0 - x, x)
    small = z < _SHIFT
    low = xp.where(small, z, 1.0)
    steps = sum(1.0 / (low + i) for i in range(_SHIFT))
    z = xp.where(small, z + _SHIFT, z)
    square = 1.0 / (z * z)
    series = sum(b / (2 * k + 2) * square ** (k + 1.0) for k, b in enumerate(_BERNOULLI[:8]))
    value = xp.log(z) - 0.5 / z - series - xp.where(small, steps, 0.0)
    fraction = x - xp.rint(x)
    return xp.where(reflected, xp.where(fraction == 0, math.nan, value - math.pi / xp.tan(math.pi * fraction)), value)


def zeta(xp: ModuleType, s: Any, q: Any) -> Any:
    """Hurwitz zeta function of float64 arrays (Euler-Maclaurin, Abramowitz & Stegun 23.1.30).

    For s > 1 and q > 0; also for q in (-1000, 0) where s is a whole number, infinite at the poles q = 0, -1, ...
    """
    whole = s == xp.rint(s)
    below = xp.where((q <= 0) & (q > -1000) & whole, xp.floor(-q) + 1.0, 0.0)  # terms up to the first positive one
    start, negative_terms = q + below, 0.0
    for i in range(int(below.max()) if below.size else 0):
        negative_terms = negative_terms + xp.where(i < below, xp.where(i < below, q + i, 1.0) ** -s, 0.0)
    total = sum((start + i) ** -s for i in range(_SHIFT))
    a = start + _SHIFT
    power = a**-s
    total = total + power * a / (s - 1.0) + 0.5 * power
    factor, factorial = s, 2.0
    for k, b in enumerate(_BERNOULLI):
        power = power / a
        total = total + b / factorial * factor * power
        factor = factor * (s + 2 * k + 1) * (s + 2 * k + 2)
        factorial *= (2 * k + 3) * (2 * k + 4)
        power = power / a
    total = xp.where((q <= 0) & (q == xp.floor(q)), math.inf, total + negative_terms)
    return xp.where((s > 1) & (start > 0), total, xp.where(s == 1, math.inf, math.nan))


def polygamma(xp: ModuleType, n: Any, x: Any) -> Any:
    """The ``n``-th derivative of digamma of float64 arrays, for x > -1000."""
    order = xp.maximum(n, 1.0)
    sign = xp.where(xp.remainder(n, 2.0) == 0, -1.0, 1.0)
    value = sign * xp.exp(lgamma(xp, order + 1.0)) * zeta(xp, order + 1.0, x)
    return xp.where(n == 0, digamma(xp, x), xp.where((n > 0) & (n == xp.rint(n)), value, math.nan))
