"""Adaptive integration of small flows and their tangent vectors, and delay equations: compiled loops.

The loop is the explicit Runge-Kutta method of order 8 of Dormand and Prince with its error of orders
5 and 3 and its interpolant of order 7; Hairer, Norsett & Wanner, Solving Ordinary Differential
Equations I (1993), section II.5. The coefficients are those scipy publishes.

A right-hand side is a compiled function `f(y, t, out) -> 0.0` of one fixed signature,
so that the loop is compiled once, whatever the flow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, objmode, types
from scipy.integrate import DOP853

VECTOR = types.float64[::1]
RHS = types.float64(VECTOR, types.float64, VECTOR)
DONE, TOO_MANY_STEPS, BROKEN = 0, 1, 2


def _heaviside(x, half):  # type: ignore[no-untyped-def]
    return 1.0 if x > 0 else 0.0 if x < 0 else 1.0 * half


def _least(x, axis):  # type: ignore[no-untyped-def]
    return np.array([x[i].min() for i in range(len(x))])


def _matmul(a, b):  # type: ignore[no-untyped-def]
    return np.array([(a[i] * b).sum() for i in range(len(a))])


def _hstack(parts):  # type: ignore[no-untyped-def]
    return np.concatenate((parts[0], parts[1]))


LACKING = {"heaviside": _heaviside, "matmul": _matmul, "min": _least, "hstack": _hstack}
"""Functions of NumPy that numba has not, as far as right-hand sides call them."""


def interpreted(derivative: Any) -> Any:
    """A right-hand side of the fixed signature that calls derivative(y, t) in the interpreter."""

    def f(y, t, out):  # type: ignore[no-untyped-def]
        with objmode():
            out[:] = derivative(y, t)
        return 0.0

    return njit(RHS)(f)


_A, _B, _C = (np.ascontiguousarray(part) for part in (DOP853.A, DOP853.B, DOP853.C))
_A_EXTRA, _C_EXTRA = np.ascontiguousarray(DOP853.A_EXTRA), np.ascontiguousarray(DOP853.C_EXTRA)
_E3, _E5, _D = (np.ascontiguousarray(part) for part in (DOP853.E3, DOP853.E5, DOP853.D))
_STAGES, _EXTRA = 12, 3
_MATRIX = types.float64[:, ::1]
_FUNCTION = types.FunctionType(RHS)


@njit(cache=True, nogil=True, error_model="numpy")
def _derivative(
    f: Any, y: Any, t: float, scale: Any, d: int, moved: Any, a: Any, b: Any, out: Any
) -> None:
    """dx/dt of the first d entries of y, J q of every further d: a central difference along q."""
    f(y[:d], t, out[:d])
    for k in range(1, y.size // d):
        size = 0.0
        for i in range(d):
            size += y[k * d + i] ** 2
        h = 1e-5 / np.sqrt(size)
        for i in range(d):
            moved[i] = y[i] + h * scale[i] * y[k * d + i]
        f(moved, t, a)
        for i in range(d):
            moved[i] = y[i] - h * scale[i] * y[k * d + i]
        f(moved, t, b)
        for i in range(d):
            out[k * d + i] = (a[i] - b[i]) / (2 * h * scale[i])


@njit(
    types.Tuple((types.int64, types.int64, types.float64))(
        _FUNCTION, VECTOR, VECTOR, VECTOR, *(types.float64,) * 3, types.int64, _MATRIX
    ),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def integrate(
    f: Any,
    y: Any,
    times: Any,
    scale: Any,
    first_step: float,
    rtol: float,
    atol: float,
    max_steps: int,
    out: Any,
) -> tuple[int, int, float]:
    """Fills `out` with the state at `times`, from `y` at the first of them; y ends at the last.

    Entries of y beyond the first `scale.size` are tangent vectors, in units of `scale`.

    Returns:
        Status, steps tried, and the step to go on with.
    """
    n, d = y.size, scale.size
    stages = np.empty((_STAGES + 1 + _EXTRA, n))
    new, mixed, terms = np.empty(n), np.empty(n), np.empty((7, n))
    moved, a, b = np.empty(d), np.empty(d), np.empty(d)
    t, end, h = times[0], times[-1], first_step
    out[0] = y
    at, steps, grow = 1, 0, 10.0
    _derivative(f, y, t, scale, d, moved, a, b, stages[0])
    while at < times.size:
        if steps >= max_steps:
            return TOO_MANY_STEPS, steps, h
        steps += 1
        last = t + h >= end
        step = end - t if last else h
        if step <= 1e-14 * abs(t) and not last:
            return BROKEN, steps, h
        for s in range(1, _STAGES):
            for i in range(n):
                total = 0.0
                for j in range(s):
                    total += _A[s, j] * stages[j, i]
                mixed[i] = y[i] + step * total
            _derivative(f, mixed, t + _C[s] * step, scale, d, moved, a, b, stages[s])
        for i in range(n):
            total = 0.0
            for j in range(_STAGES):
                total += _B[j] * stages[j, i]
            new[i] = y[i] + step * total
        _derivative(f, new, t + step, scale, d, moved, a, b, stages[_STAGES])
        five, three = 0.0, 0.0
        for i in range(n):
            e5, e3 = 0.0, 0.0
            for j in range(_STAGES + 1):
                e5 += _E5[j] * stages[j, i]
                e3 += _E3[j] * stages[j, i]
            allowed = atol + rtol * max(abs(y[i]), abs(new[i]))
            five += (e5 / allowed) ** 2
            three += (e3 / allowed) ** 2
        error = 0.0
        if five > 0 or not np.isfinite(five):
            error = step * five / np.sqrt((five + 0.01 * three) * n)
        if not error < 1:
            shrink = 0.9 * error**-0.125 if np.isfinite(error) else 0.2
            h, grow = step * max(0.2, shrink), 1.0
            continue
        if times[at] <= t + step or last:
            for s in range(_EXTRA):
                row = _STAGES + 1 + s
                for i in range(n):
                    total = 0.0
                    for j in range(row):
                        total += _A_EXTRA[s, j] * stages[j, i]
                    mixed[i] = y[i] + step * total
                _derivative(f, mixed, t + _C_EXTRA[s] * step, scale, d, moved, a, b, stages[row])
            for i in range(n):
                moved_by = new[i] - y[i]
                terms[0, i] = moved_by
                terms[1, i] = step * stages[0, i] - moved_by
                terms[2, i] = 2 * moved_by - step * (stages[_STAGES, i] + stages[0, i])
                for k in range(4):
                    total = 0.0
                    for j in range(_STAGES + 1 + _EXTRA):
                        total += _D[k, j] * stages[j, i]
                    terms[3 + k, i] = step * total
            while at < times.size and (times[at] <= t + step or last):
                x = (times[at] - t) / step if step > 0 else 1.0
                for i in range(n):
                    value = 0.0
                    for k in range(7):
                        value = (value + terms[6 - k, i]) * (x if k % 2 == 0 else 1 - x)
                    out[at, i] = y[i] + value
                at += 1
        t += step
        y[:] = new
        stages[0] = stages[_STAGES]
        # A step that ends where asked says nothing about how long the next may be.
        proposed = step * (min(grow, 0.9 * error**-0.125) if error > 0 else grow)
        h, grow = max(proposed, h) if last else proposed, 10.0
    out[-1] = y
    return DONE, steps, h


@njit(
    types.void(_FUNCTION, VECTOR, VECTOR, types.float64, types.float64, VECTOR, VECTOR),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def delay_interval(
    f: Any, x: Any, slope: Any, t: float, h: float, new: Any, new_slope: Any
) -> None:
    """One delay onwards by the method of steps: Runge-Kutta of order 4 on the history's own grid.

    `x` and `slope` are the last delay's values and derivatives, from t minus the delay to t; f takes
    (now, a delay ago). Between the grid's points the history is its cubic Hermite interpolant.

    Source: Bellen & Zennaro, Numerical Methods for Delay Differential Equations (2003), chapter 6.
    """
    y, out = np.empty(2), np.empty(1)
    new[0] = x[-1]
    y[0], y[1] = new[0], x[0]
    f(y, t, out)
    new_slope[0] = out[0]
    for i in range(x.size - 1):
        one = new_slope[i]
        y[0] = new[i] + 0.5 * h * one
        y[1] = 0.5 * (x[i] + x[i + 1]) + 0.125 * h * (slope[i] - slope[i + 1])
        f(y, t + (i + 0.5) * h, out)
        two = out[0]
        y[0] = new[i] + 0.5 * h * two
        f(y, t + (i + 0.5) * h, out)
        three = out[0]
        y[0], y[1] = new[i] + h * three, x[i + 1]
        f(y, t + (i + 1) * h, out)
        new[i + 1] = new[i] + h / 6 * (one + 2 * two + 2 * three + out[0])
        y[0] = new[i + 1]
        f(y, t + (i + 1) * h, out)
        new_slope[i + 1] = out[0]


@njit(cache=True, nogil=True, error_model="numpy")
def pair_histogram(x: Any, window: int, low: float, per_octave: float, counts: Any) -> None:
    """Adds pairs of rows at least `window` rows apart to logarithmic bins of their distance."""
    n, d = x.shape
    for i in range(n):
        for j in range(i + window, n):
            square = 0.0
            for k in range(d):
                square += (x[i, k] - x[j, k]) ** 2
            place = 0
            if square > low * low:
                place = int(0.5 * per_octave * np.log2(square / (low * low))) + 1
            if place < counts.size:
                counts[place] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def fuzzy_matches(x: Any, m: int, radius: float) -> tuple[float, float]:
    """Mean membership exp(-(distance / radius)^2) of pairs of m and m + 1 points, each about its mean."""
    n = x.size - m
    short, long = 0.0, 0.0
    means = np.zeros((2, n))
    for i in range(n):
        for k in range(m):
            means[0, i] += x[i + k] / m
        means[1, i] = (means[0, i] * m + x[i + m]) / (m + 1)
    for i in range(n):
        for j in range(i + 1, n):
            first, second = means[0, i] - means[0, j], means[1, i] - means[1, j]
            near, far = 0.0, 0.0
            for k in range(m):
                difference = x[i + k] - x[j + k]
                near = max(near, abs(difference - first))
                far = max(far, abs(difference - second))
            far = max(far, abs(x[i + m] - x[j + m] - second))
            short += np.exp(-((near / radius) ** 2))
            long += np.exp(-((far / radius) ** 2))
    pairs = n * (n - 1) / 2
    return short / pairs, long / pairs
