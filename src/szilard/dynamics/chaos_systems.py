"""Chaotic flows: their equations and metadata, and trajectories of any length and granularity.

Definitions, default starts, periods and published annotations are those of the package dysts (Gilpin,
NeurIPS 2021, arXiv:2110.05266); what integrates them is ours: Dormand-Prince of order 8 compiled once
for all flows, and scipy's LSODA, then Radau, where a flow is so stiff that the explicit method would
need `STIFF_STEPS` steps a period. Delay equations go by the method of steps on a grid that is halved
until the solution settles.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import math
import os
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from szilard._extras import require

STIFF_STEPS = 3000
"""Steps a period above which the explicit method gives way to an implicit one."""
POINTS_PER_PERIOD = {"coarse": 15, "fine": 100}


class Trajectory(NamedTuple):
    """Times (time,) and states (time, coordinates) of a flow, and who integrated it."""

    t: Float[np.ndarray, " time"]
    x: Float[np.ndarray, "time coordinates"]
    method: str


@dataclass(frozen=True, eq=False)
class ChaoticSystem:
    """A flow with its defaults and published annotations.

    Attributes:
        name: as in the database.
        start: default initial condition, (coordinates,).
        period: dominant period of its spectrum, in its own unit of time.
        published: the annotations it was published with, unchanged.
        rhs: compiled right-hand side `f(x, t, out) -> 0.0`.
        bound: takes raw states (time, coordinates) to bounded ones (an angle to its sine, say).
        delay: of a delay equation, whose one coordinate was `start` ever before; 0 for a flow, and
            otherwise `rhs` takes (now, a delay ago) for x.
    """

    name: str
    start: Float[np.ndarray, " coordinates"]
    period: float
    published: dict[str, Any]
    rhs: Any
    bound: Callable[[np.ndarray], np.ndarray] | None
    delay: float = 0.0

    @property
    def dimension(self) -> int:
        return len(self.start)

    def velocity(
        self, x: Float[np.ndarray, " coordinates"], t: float = 0.0
    ) -> Float[np.ndarray, " coordinates"]:
        """dx/dt at one point of a flow.

        Raises:
            ValueError: another number of coordinates, or a delay equation.
        """
        if self.delay or np.shape(x) != self.start.shape:
            raise ValueError(f"x: got {np.shape(x)}, must be {self.start.shape} of a flow")
        out = np.empty(self.dimension)
        self.rhs(np.array(x, dtype=float), float(t), out)
        return out


@cache
def _definitions() -> dict[str, Any]:
    flows, base = require("dysts.flows", "dynamics"), require("dysts.base", "dynamics")
    return {
        name: kind
        for name, kind in sorted(vars(flows).items())
        if isinstance(kind, type)
        and issubclass(kind, base.DynSys | base.DynSysDelay)
        and kind not in (base.DynSys, base.DynSysDelay)
    }


@cache
def _metadata() -> dict[str, dict[str, Any]]:
    with open(require("dysts.base", "dynamics").DATAPATH_CONTINUOUS, encoding="utf-8") as file:
        return dict(json.load(file))


def chaotic_systems(*, delay: bool = True) -> list[str]:
    """Names of all systems of the database, in alphabetical order.

    Args:
        delay: includes the delay equations.

    Examples:
        >>> len(chaotic_systems()), len(chaotic_systems(delay=False))
        (135, 129)
    """
    stored = _metadata()
    return [name for name in _definitions() if delay or not stored[name]["delay"]]


def published_annotations(name: str) -> dict[str, Any]:
    """Metadata of a system exactly as published.

    Raises:
        ValueError: unknown name.
    """
    check_name(name)
    return dict(_metadata()[name])


@cache
def chaotic_system(name: str) -> ChaoticSystem:
    """A flow of the database, its equations compiled.

    Args:
        name: one of `chaotic_systems()`.

    Raises:
        ValueError: unknown name.
        ImportError: the extra `dynamics` is not installed.

    Examples:
        >>> lorenz = chaotic_system("Lorenz")
        >>> lorenz.dimension, lorenz.period
        (3, 1.5008)

    Source: Gilpin, NeurIPS Datasets and Benchmarks (2021), arXiv:2110.05266.
    """
    check_name(name)
    stored = _metadata()[name]
    model = _definitions()[name]()
    start = np.array(stored["initial_conditions"], dtype=float).reshape(-1)
    delay = float(model.tau) if stored["delay"] else 0.0
    if delay:  # what is stored beyond the first value is an embedding of the solution
        start = start[:1]
    bound = None
    if hasattr(model, "_postprocessing"):

        def bound(x: np.ndarray) -> np.ndarray:
            return np.stack([np.asarray(part) for part in model._postprocessing(*x.T)], -1)

    return ChaoticSystem(
        name,
        start,
        float(stored["period"]),
        stored,
        _compiled(model, len(start), delay > 0),
        bound,
        delay,
    )


def _compiled(model: Any, dimension: int, delay: bool) -> Any:
    """The equations under the integrator's signature; interpreted where numba can't compile them."""
    from numba import njit

    from szilard.kernels.flows import RHS, interpreted

    places = [f"y[{i}]" for i in range(2 if delay else dimension)]
    scope: dict[str, Any] = {"array": np.array}
    if "_rhs" in vars(type(model)) and not _has_own_rhs(model):
        values = {f"p{i}": value for i, value in enumerate(model.param_list)}
        scope |= values | {"equations": _jitted(type(model)._rhs)}
        calls = [f"equations({', '.join([*places, 't', *values])})"]
    else:
        try:
            scope["equations"] = _without_self(model, "rhs")
        except (OSError, SyntaxError):
            calls = []
        else:
            # Some unpack the state, which numba allows for tuples, others do arithmetic with it.
            calls = [f"equations(({', '.join(places)}), t)", "equations(y, t)"]
    outputs = "out[0]" if delay else "".join(f"out[{i}], " for i in range(dimension))
    for call in calls:
        exec(f"def f(y, t, out):\n    {outputs} = {call}\n    return 0.0", scope)
        array = f"def f(y, t, out):\n    out[:] = {call}\n    return 0.0"
        try:
            return njit(RHS, nogil=True, error_model="numpy")(scope["f"])
        except Exception:  # whatever numba says, there are other ways
            pass
        exec(array, scope)
        try:
            return njit(RHS, nogil=True, error_model="numpy")(scope["f"])
        except Exception:  # the interpreter can still do it
            pass

    return interpreted(lambda y, t: np.asarray(model.rhs(y, t), dtype=float).reshape(-1))


def _has_own_rhs(model: Any) -> bool:
    base = require("dysts.base", "dynamics")
    return type(model).rhs not in (base.DynSys.rhs, base.DynSysDelay.rhs)


def _jitted(function: Any) -> Any:
    from numba import njit

    if hasattr(function, "py_func"):
        return function
    known = {**function.__globals__, "np": _numerics()}
    return njit(FunctionType(function.__code__, known, function.__name__))


def _without_self(model: Any, method: str) -> Any:
    """A method as a compiled function in which every `self.x` is a constant."""
    from numba import njit

    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(type(model), method))))
    scope: dict[str, Any] = dict(vars(inspect.getmodule(type(model)))) | {"np": _numerics()}

    class Constants(ast.NodeTransformer):
        def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                name = f"self_{node.attr}"
                if name not in scope:
                    value = getattr(model, node.attr)
                    if inspect.ismethod(value):
                        value = _without_self(model, node.attr)
                    elif isinstance(value, np.ndarray):
                        value = value.astype(float)
                    scope[name] = value
                return ast.Name(name, ast.Load())
            return self.generic_visit(node)

    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.args.args = function.args.args[1:]
    function.decorator_list = []
    exec(compile(ast.fix_missing_locations(Constants().visit(tree)), method, "exec"), scope)
    return njit(scope[method])


@cache
def _numerics() -> ModuleType:
    """numpy, with what numba lacks of it."""
    from numba import njit

    from szilard.kernels.flows import LACKING

    numerics = ModuleType("numerics")
    vars(numerics).update(vars(np))
    vars(numerics).update({name: njit(function) for name, function in LACKING.items()})
    return numerics


def check_name(name: str) -> None:
    if name not in _metadata():
        raise ValueError(f"name: got {name!r}, must be one of szilard.dynamics.chaotic_systems()")


def trajectory(
    system: str | ChaoticSystem,
    n: int,
    points_per_period: float = 15,
    *,
    start: Float[np.ndarray, " coordinates"] | None = None,
    discard: float = 0.0,
    rtol: float = 1e-9,
    atol: float = 1e-9,
    bounded: bool = True,
) -> Trajectory:
    """A flow sampled uniformly on its own clock.

    Args:
        system: the flow, or its name.
        n: points, at least 2.
        points_per_period: samples a period of the spectrum; the benchmark's are 15 and 100.
        start: initial condition instead of the default one.
        discard: periods integrated before the first point.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step, in the flow's unit.
        bounded: maps unbounded coordinates (phases) to bounded ones.

    Returns:
        Times from 0, states, and the integrator that was used. Chaos makes two integrators part
        after some 20 Lyapunov times, whatever the tolerance: compare statistics.

    Raises:
        ValueError: a wrong argument.
        RuntimeError: no integrator reaches the end.

    Examples:
        >>> trajectory("Lorenz", 3).x[0].round(3).tolist()
        [-9.787, -15.039, 20.534]

    Source: Gilpin (2021), section on data; Hairer, Norsett & Wanner (1993), section II.5.
    """
    system = chaotic_system(system) if isinstance(system, str) else system
    if n < 2:
        raise ValueError(f"n: got {n}, must be at least 2")
    for key, value in {"points_per_period": points_per_period, "rtol": rtol, "atol": atol}.items():
        if not (value > 0 and np.isfinite(value)):
            raise ValueError(f"{key}: got {value}, must be positive and finite")
    if not (discard >= 0 and np.isfinite(discard)):
        raise ValueError(f"discard: got {discard}, must be finite and not negative")
    first = _check_start(system, start)
    dt = system.period / points_per_period
    times = discard * system.period + dt * np.arange(n)
    asked = times if discard == 0 else np.concatenate([[0.0], times])
    integrated = _delayed if system.delay else _integrated
    x, method = integrated(system, first, asked, rtol, atol)
    x = x[-n:]
    if bounded and system.bound is not None:
        x = system.bound(x)
    return Trajectory(dt * np.arange(n), x, method)


def _check_start(system: ChaoticSystem, start: Any) -> np.ndarray:
    first = np.array(system.start if start is None else start, dtype=float)
    if first.shape != system.start.shape or not np.isfinite(first).all():
        raise ValueError(
            f"start: got {np.shape(start)}, must be {system.dimension} finite coordinates"
        )
    return first


def _integrated(
    system: ChaoticSystem, start: np.ndarray, times: np.ndarray, rtol: float, atol: float
) -> tuple[np.ndarray, str]:
    from scipy.integrate import solve_ivp

    from szilard.kernels.flows import DONE, TOO_MANY_STEPS, integrate

    out = np.empty((len(times), system.dimension))
    periods = (times[-1] - times[0]) / system.period
    status, _, _ = integrate(
        system.rhs,
        last := start.copy(),
        times,
        np.ones(system.dimension),
        system.period * 1e-4,
        rtol,
        atol,
        int(STIFF_STEPS * (periods + 1)),
        out,
    )
    if status == DONE and np.isfinite(out).all():
        return out, "DOP853"
    if status != TOO_MANY_STEPS:  # no method gets over a singularity
        raise RuntimeError(
            f"{system.name}: integration stopped near the state {last}, where steps become too small"
        )
    for method in ("LSODA", "Radau"):
        found = solve_ivp(
            lambda t, x: system.velocity(x, t),
            (times[0], times[-1]),
            start,
            method=method,
            t_eval=times,
            rtol=rtol,
            atol=atol,
        )
        if found.success and found.y.shape[1] == len(times) and np.isfinite(found.y).all():
            return found.y.T, method
    raise RuntimeError(
        f"{system.name}: integration stopped at t = {found.t[-1]:g}: {found.message}"
    )


def _delayed(
    system: ChaoticSystem, start: np.ndarray, times: np.ndarray, rtol: float, atol: float
) -> tuple[np.ndarray, str]:
    from szilard.kernels.flows import delay_interval

    def solved(steps: int, delays: int) -> tuple[np.ndarray, np.ndarray]:
        h = system.delay / steps
        x, slope = np.full(steps + 1, start[0]), np.zeros(steps + 1)
        values, slopes = np.empty((2, delays, steps + 1))
        for i in range(delays):
            delay_interval(system.rhs, x, slope, i * system.delay, h, values[i], slopes[i])
            x, slope = values[i], slopes[i]
        return values, slopes

    steps = delay_steps(system, start, rtol, atol)
    values, slopes = solved(steps, int(times[-1] / system.delay) + 1)
    if not np.isfinite(values).all():
        raise RuntimeError(f"{system.name}: the solution leaves the finite numbers")
    h = system.delay / steps
    interval = np.minimum((times / system.delay).astype(int), len(values) - 1)
    place = (times - interval * system.delay) / h
    i = np.clip(place.astype(int), 0, steps - 1)
    u = place - i
    a, b = values[interval, i], values[interval, i + 1]
    da, db = h * slopes[interval, i], h * slopes[interval, i + 1]
    x = a + u * (da + u * (3 * (b - a) - 2 * da - db + u * (2 * (a - b) + da + db)))
    return x[:, None], "RK4"


def delay_steps(system: ChaoticSystem, start: np.ndarray, rtol: float, atol: float) -> int:
    """Steps a delay at which halving them moves the first delays' solution by less than is allowed."""
    from szilard.kernels.flows import delay_interval

    # Errors grow with the chaos, so a few delays are compared; in the first the history is still constant.
    delays = max(4, math.ceil(system.period / system.delay))
    before = None
    for power in range(5, 17):
        steps = 2**power
        x, slope = np.full(steps + 1, start[0]), np.zeros(steps + 1)
        for i in range(delays):
            new, new_slope = np.empty((2, steps + 1))
            h = system.delay / steps
            delay_interval(system.rhs, x, slope, i * system.delay, h, new, new_slope)
            x, slope = new, new_slope
        if before is not None:
            # Orders: halving the step divides the error by 16.
            change = np.abs(x[::2] - before) / 15
            if (change <= atol + rtol * np.abs(before)).all():
                return steps
        before = x
    raise RuntimeError(f"{system.name}: no grid of {steps} steps a delay or fewer is fine enough")


def integrate_all(
    systems: Iterable[str] | None = None,
    n: int = 1200,
    points_per_period: float = 15,
    *,
    discard: float = 0.0,
    rtol: float = 1e-9,
    atol: float = 1e-9,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, Trajectory]:
    """Trajectories of many systems, in parallel; one that is in the cache is read, not integrated.

    Args:
        systems: names; all by default.
        n: points, as in `trajectory`.
        points_per_period: as in `trajectory`.
        discard: as in `trajectory`.
        rtol: as in `trajectory`.
        atol: as in `trajectory`.
        cache: folder with a file a flow, written as each one ends: a run that was stopped goes on.
        workers: processes; as many as cores by default.
        progress: shows a progress bar.

    Returns:
        Trajectories by name, in the order asked for.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a flow that no integrator brings to its end.
    """
    names = chaotic_systems() if systems is None else list(systems)
    for name in names:
        check_name(name)
    arguments = {"n": n, "points_per_period": points_per_period, "discard": discard}
    arguments |= {"rtol": rtol, "atol": atol}

    ended = in_processes(
        _kept_trajectory, names, workers, progress, "integrating", cache=cache, arguments=arguments
    )
    return {name: ended[name] for name in names}


def _kept_trajectory(
    name: str, *, cache: str | Path | None, arguments: dict[str, Any]
) -> Trajectory:
    path = None if cache is None else Path(cache) / f"{name}-{key_of(name, arguments)}.npz"
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as kept:
            return Trajectory(kept["t"], kept["x"], str(kept["method"]))
    found = trajectory(name, **arguments)
    if path is not None:
        _write(path, t=found.t, x=found.x, method=found.method)
    return found


def in_processes(
    function: Callable[..., Any],
    names: Sequence[str],
    workers: int | None,
    progress: bool,
    doing: str,
    **arguments: Any,
) -> dict[str, Any]:
    """function(name, **arguments) of every name, in as many processes as asked for.

    Processes, since every system has to be compiled, which holds the interpreter's lock.
    """
    from joblib import Parallel, delayed  # type: ignore[import-untyped]
    from rich.progress import Progress

    if workers is not None and workers < 1:
        raise ValueError(f"workers: got {workers}, must be at least 1")
    ended: dict[str, Any] = {}
    with Progress(disable=not progress) as bar:
        task = bar.add_task(doing, total=len(names))
        pool = Parallel(n_jobs=workers or -1, return_as="generator_unordered")
        for name, found in pool(delayed(_named)(function, name, arguments) for name in names):
            ended[name] = found
            bar.update(task, advance=1, description=f"{doing} {name}")
    return ended


def _named(function: Callable[..., Any], name: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    return name, function(name, **arguments)


def key_of(name: str, arguments: dict[str, Any]) -> str:
    stored = _metadata()[name]
    known = [stored["parameters"], stored["initial_conditions"], stored["period"], arguments]
    source = inspect.getsource(_definitions()[name])
    return hashlib.sha256((json.dumps(known) + source).encode()).hexdigest()[:16]


def _write(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)
