"""Rounding errors of everything that is measured on softmaxes and on categorical distributions.

The reference of each quantity takes the numbers as they are after rounding to the dtype under test
and evaluates the definition in float64, in a form whose sums have no cancelling terms; mpmath at 50
digits confirms the reference where the vocabulary is small. What is tested is the error of the
kernel, not that of rounding its input.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from torch import Tensor

from szilard.measures import categorical
from szilard.measures.attention import attention_entropy, attention_entropy_from_qk
from szilard.measures.tokens import TokenStatistics, linear_token_statistics, token_statistics

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPREADS = [1e-6, 1e-3, 1.0, 30.0, 1e3, 1e4]
DEFICITS = [1e-3, 1e-6, 1e-10, 1e-20, 1e-30]  # 1 - p of the likeliest token
TOP = 2


@dataclass(frozen=True)
class Tolerance:
    """Relative where the exact value is above `floor`, absolute below."""

    relative: float
    floor: float
    absolute: float

    def check(self, name: str, got: Tensor, exact: np.ndarray) -> None:
        value = got.detach().double().numpy()
        assert value.shape == exact.shape
        size = np.abs(exact)
        allowed = np.where(size > self.floor, self.relative * size, self.absolute)
        with np.errstate(invalid="ignore"):
            error = np.where(value == exact, 0.0, np.abs(value - exact))
        bad = np.flatnonzero(~(error <= allowed))
        assert not bad.size, (
            f"{name}: row {bad[0]} is {value.flat[bad[0]]!r} for {exact.flat[bad[0]]!r}, "
            f"{(error / allowed).flat[bad[0]]:.3g} times what is allowed; rows {bad.tolist()}"
        )


# float32 results: entropies to 1e-5 above 1e-4 nats and 1e-6 absolute below; a varentropy that
# cancelled would have no digit left where 1e-4 of it are asked for.
SINGLE = {
    "logprob": Tolerance(1e-6, 1.0, 1e-6),
    "entropy": Tolerance(1e-5, 1e-4, 1e-6),
    "varentropy": Tolerance(1e-4, 1e-6, 1e-10),
    "max_prob": Tolerance(2e-6, 0.0, 0.0),
    "top_k_mass": Tolerance(2e-6, 0.0, 0.0),
    "top_k_entropy": Tolerance(1e-5, 1e-4, 1e-6),
}
# float64: log(total) - mean has an absolute error of a few 1e-16 (1e-14 if total is summed naively), exp(t) a relative one of |t| eps.
DOUBLE = {
    "logprob": Tolerance(1e-13, 1.0, 1e-13),
    "entropy": Tolerance(1e-12, 1e-2, 1e-14),
    "varentropy": Tolerance(1e-11, 1e-6, 1e-17),
    "max_prob": Tolerance(1e-12, 0.0, 0.0),
    "top_k_mass": Tolerance(1e-12, 0.0, 0.0),
    "top_k_entropy": Tolerance(1e-12, 1e-2, 1e-14),
}


def tolerances(dtype: torch.dtype) -> dict[str, Tolerance]:
    return DOUBLE if dtype == torch.float64 else SINGLE


# Of a gradient's norm: d = t - mean keeps a float32 rounding of the mean in every entry.
GRADIENT = 3e-5


# References


def sums(t: np.ndarray, keep: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """log total and mean of t under softmax, for t <= 0 whose largest entry is 0; H is their
    difference, of two numbers that have opposite signs."""
    e = np.exp(t)
    e[np.arange(len(t)), t.argmax(-1)] = 0
    rest = e.sum(-1)
    return np.log1p(rest), (e * np.maximum(t, -1e4)).sum(-1) / (1 + rest)


@dataclass(frozen=True)
class Exact:
    """Every field of the statistics of softmax(z / temperature), and its gradient to z."""

    t: np.ndarray
    targets: np.ndarray
    temperature: float

    @classmethod
    def of(cls, z: Tensor, targets: Tensor, temperature: float = 1.0) -> "Exact":
        wide = z.detach().double().numpy()
        t = (wide - wide.max(-1, keepdims=True)) / temperature
        return cls(t, targets.numpy(), temperature)

    def values(self) -> dict[str, np.ndarray]:
        t, row = self.t, np.arange(len(self.t))
        log_total, mean = sums(t)
        deviation = np.maximum(t, -1e4) - mean[:, None]
        variance = (np.exp(t) * deviation**2).sum(-1) * np.exp(-log_total)
        top = -np.partition(-t, TOP - 1, -1)[:, :TOP]
        log_top, mean_top = sums(top)
        return {
            "logprob": t[row, self.targets] - log_total,
            "entropy": log_total - mean,
            "varentropy": variance,
            "max_prob": np.exp(-log_total),
            "top_k_mass": np.exp(log_top - log_total),
            "top_k_entropy": log_top - mean_top,
        }

    def gradients(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Gradient of each field to the logits, and the size its terms have before they cancel."""
        t, row = np.maximum(self.t, -1e4), np.arange(len(self.t))
        log_total, mean = sums(self.t)
        p, d = np.exp(self.t - log_total[:, None]), t - mean[:, None]
        reach, variance = np.abs(t) + np.abs(mean)[:, None], self.values()["varentropy"][:, None]

        def log_probability(j: np.ndarray) -> np.ndarray:
            others = p.copy()
            others[row, j] = 0
            gradient = -p
            gradient[row, j] = others.sum(-1)
            return gradient

        peak = t.argmax(-1)
        inside = np.zeros(t.shape, bool)
        np.put_along_axis(inside, np.argpartition(-self.t, TOP - 1, -1)[:, :TOP], True, -1)
        q = np.where(inside, p, 0) / np.where(inside, p, 0).sum(-1, keepdims=True)
        mean_top = (q * t).sum(-1, keepdims=True)
        outside = np.where(inside, 0, p).sum(-1, keepdims=True)
        target, top = log_probability(self.targets), log_probability(peak) * p[row, peak][:, None]
        mass = np.where(inside, p * outside, -p * (1 - outside))
        gradients = {
            "logprob": (target, np.abs(target)),
            "entropy": (-p * d, p * reach),
            "varentropy": (p * (d * d + 2 * d - variance), p * (reach * (reach + 2) + variance)),
            "max_prob": (top, np.abs(top)),
            "top_k_mass": (mass, np.abs(mass)),
            "top_k_entropy": (-q * (t - mean_top), q * (np.abs(t) + np.abs(mean_top))),
        }
        return {k: (g / self.temperature, s / self.temperature) for k, (g, s) in gradients.items()}


def mp_values(z: Tensor, target: int, temperature: float) -> dict[str, float]:
    """The definitions, one row, at 50 digits."""
    with mpmath.workdps(50):
        e = [mpmath.exp(mpmath.mpf(x) / mpmath.mpf(temperature)) for x in z.double().tolist()]
        p = [x / mpmath.fsum(e) for x in e]
        entropy = -mpmath.fsum(x * mpmath.log(x) for x in p if x)
        varentropy = mpmath.fsum(x * (mpmath.log(x) + entropy) ** 2 for x in p if x)
        top = sorted(p)[-TOP:]
        mass = mpmath.fsum(top)
        result = {
            "logprob": mpmath.log(p[target]) if p[target] else -mpmath.inf,
            "entropy": entropy,
            "varentropy": varentropy,
            "max_prob": max(p),
            "top_k_mass": mass,
            "top_k_entropy": -mpmath.fsum(x / mass * mpmath.log(x / mass) for x in top if x),
        }
        return {name: float(value) for name, value in result.items()}


# Rows


def logits(vocab: int, spread: float, dtype: torch.dtype) -> Tensor:
    """Ordinary, shifted, near-uniform, near-deterministic, tied and impossible logits."""
    generator = torch.Generator().manual_seed(vocab)

    base = torch.randn(vocab, generator=generator, dtype=torch.float64)

    def noise(scale: float) -> Tensor:
        return scale * base.roll(int(torch.randint(vocab, (), generator=generator)))

    rows = [noise(spread), noise(spread).sort().values, noise(spread) + 1e4, noise(spread) - 1e4]
    rows += [torch.full_like(rows[0], 3.0), noise(1e-7), torch.linspace(0, -spread, vocab)]
    for deficit in [0.5, *DEFICITS]:
        row = noise(spread)
        place = int(torch.randint(vocab, (), generator=generator))
        row[place] = -torch.inf
        row[place] = row.logsumexp(-1) + math.log((1 - deficit) / deficit)
        rows.append(row)
    for gap in (12.0, 40.0):
        row = noise(spread)
        row[[0, vocab - 1]] = row.max() + gap
        rows.append(row)
    only_one, only_two, half = noise(spread), noise(spread), noise(spread)
    only_one[:-1] = -torch.inf
    only_two[1:-1] = -torch.inf
    half[torch.rand(vocab, generator=generator) < 0.5] = -torch.inf
    half[vocab // 2] = 0
    z = torch.stack([*rows, only_one, only_two, half])
    largest = min(torch.finfo(dtype).max, 1e30)
    return torch.where(z > -torch.inf, z.clamp(-largest, largest), z).to(dtype)


def likely_and_hopeless(z: Tensor) -> Tensor:
    """Target ids: the likeliest, the least likely possible, and one anywhere, in turn."""
    least = torch.where(z > -torch.inf, z, torch.inf).argmin(-1)
    anywhere = torch.arange(len(z)) * 7919 % z.shape[-1]
    kinds = torch.stack((z.argmax(-1), least, anywhere))
    return kinds.gather(0, (torch.arange(len(z)) % 3)[None])[0]


def measured(stats: TokenStatistics) -> dict[str, Tensor]:
    values = {name: getattr(stats, name) for name in SINGLE}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("temperature", [1.0, 1e-2, 0.7, 1e2])
@pytest.mark.parametrize("vocab", [3, 7])
def test_the_reference_agrees_with_fifty_digits(vocab: int, temperature: float) -> None:
    for spread in SPREADS:
        z = logits(vocab, spread, torch.float64)
        targets = likely_and_hopeless(z)
        exact = Exact.of(z, targets, temperature).values()
        rows = [mp_values(x, int(i), temperature) for x, i in zip(z, targets, strict=True)]
        for name, tolerance in DOUBLE.items():
            digits = np.array([row[name] for row in rows])
            tolerance.check(f"{name}, spread {spread}", torch.from_numpy(exact[name]), digits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 1e-2, 0.7, 1e2])
@pytest.mark.parametrize("vocab", [3, 7, 127, 1024, 1025])
def test_statistics_of_logits_at_every_spread(
    vocab: int, temperature: float, dtype: torch.dtype
) -> None:
    z = torch.cat([logits(vocab, spread, dtype) for spread in SPREADS])
    targets = likely_and_hopeless(z)
    got = measured(token_statistics(z, targets, temperature=temperature, top_k=TOP))
    exact = Exact.of(z, targets, temperature).values()
    for name, tolerance in tolerances(dtype).items():
        tolerance.check(name, got[name], exact[name])


def check_gradient(
    name: str, got: Tensor, exact: np.ndarray, size: np.ndarray, relative: float, lost: float
) -> None:
    """Each row to `relative` in norm, each entry to ten times that of its own terms.

    `lost` is what a sum of float64 numbers of order one to t^2 loses of 1 - p.
    """
    kind = torch.finfo(got.dtype)
    half = kind.eps / 2 if got.dtype.itemsize == 2 else 0.0
    underflow = max(kind.smallest_normal * kind.eps, 1e-37)
    error = np.abs(got.double().numpy() - exact)
    norm, entry = np.linalg.norm(exact, axis=-1), 10 * relative * size
    allowed = (relative + half) * norm + math.sqrt(error.shape[-1]) * underflow + lost
    ratio = np.linalg.norm(error, axis=-1) / allowed
    assert (ratio <= 1).all(), f"{name}: norm of row {ratio.argmax()} off {ratio.max():.3g} times"
    allowed = entry + half * np.abs(exact) + underflow + lost
    worst = (error / allowed).argmax()
    assert (error <= allowed).all(), (
        f"{name}: entry {np.unravel_index(worst, error.shape)} is {got.flatten()[worst]:.6g} "
        f"for {exact.flat[worst]:.6g}, {(error / allowed).max():.3g} times what is allowed"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1e2])
@pytest.mark.parametrize("vocab", [7, 1025])
def test_gradients_of_statistics_at_every_spread(
    vocab: int, temperature: float, dtype: torch.dtype
) -> None:
    z = torch.cat([logits(vocab, spread, dtype) for spread in SPREADS]).requires_grad_()
    targets = likely_and_hopeless(z.detach())
    got = measured(token_statistics(z, targets, temperature=temperature, top_k=TOP))
    relative = 1e-12 if dtype == torch.float64 else GRADIENT
    # Where several tokens tie for the last place there are several slopes, each as good.
    ordered = z.detach().sort(-1, descending=True).values
    clear = {"max_prob": ordered[:, 0] > ordered[:, 1]}
    clear |= dict.fromkeys(("top_k_mass", "top_k_entropy"), ordered[:, TOP - 1] > ordered[:, TOP])
    for name, (exact, size) in Exact.of(z, targets, temperature).gradients().items():
        (gradient,) = torch.autograd.grad(got[name].sum(), z, retain_graph=True)
        rows = clear.get(name, slice(None))
        # Half and float32 rows: total and the k terms that it holds agree to a float32 rounding,
        # and the gradient of their quotient M is p (1 - M).
        lost = 1e-7 if name == "top_k_mass" and dtype != torch.float64 else 1e-12
        lost /= temperature
        check_gradient(name, gradient[rows], exact[rows], size[rows], relative, lost)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("vocab", "spreads"),
    [(2, SPREADS), (50_257, (1e-3, 1e4)), (131_072, (30.0,)), (300_000, (1.0,))],
)
def test_statistics_of_large_vocabularies_and_of_two_tokens(
    vocab: int, spreads: tuple[float, ...], dtype: torch.dtype
) -> None:
    for spread in spreads:
        z = logits(vocab, spread, dtype)
        targets = likely_and_hopeless(z)
        got = measured(token_statistics(z, targets, top_k=min(TOP, vocab)))
        exact = Exact.of(z, targets).values()
        for name, tolerance in tolerances(dtype).items():
            tolerance.check(f"{name}, spread {spread}", got[name], exact[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_hopeless_targets_and_other_units(dtype: torch.dtype) -> None:
    z = torch.zeros(3, 1500, dtype=dtype)
    z[0, 700], z[1, 1024], z[2] = -1e4, 1e4, 1e4
    z[2, 3] = -torch.inf
    targets = torch.tensor([700, 0, 3])
    nats, bits = (measured(token_statistics(z, targets, base=base)) for base in (None, 2.0))
    exact = Exact.of(z, targets).values()
    for name, tolerance in tolerances(dtype).items():
        if name.startswith("top_k"):
            continue
        power = {"logprob": 1, "entropy": 1, "varentropy": 2}.get(name, 0)
        tolerance.check(name, nats[name], exact[name])
        tolerance.check(f"{name} in bits", bits[name], exact[name] / math.log(2) ** power)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_gives_the_same_numbers(dtype: torch.dtype) -> None:
    z = logits(1100, 3.0, dtype)[:15].view(3, 5, 1100)
    # Sums over other strides may run in another order.
    same = {"rtol": 1e-13 if dtype == torch.float64 else 1e-6, "atol": 1e-15}
    views = [
        z.transpose(0, 1),
        z[::2, 1:],
        z[..., 1::3],
        z.flip(-1)[..., 7:],
        z.mT.contiguous().mT,
        z[:1].expand(3, 5, 1100),
        z[0, 0].expand(2, 3, 1100),
        z[..., :1].expand(3, 5, 50),
        z[0, 0],
        z[:0],
        z[:, :0].transpose(0, 1),
    ]
    for view in views:
        leaves = [view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()]
        targets = torch.ones(view.shape[:-1], dtype=torch.long)
        results = [measured(token_statistics(x, targets, top_k=TOP)) for x in leaves]
        for name in SINGLE:
            torch.testing.assert_close(results[0][name], results[1][name], **same, msg=name)
        a, b = (
            torch.autograd.grad(torch.stack(tuple(r.values())).sum(), x)[0]
            for r, x in zip(results, leaves, strict=True)
        )
        torch.testing.assert_close(a, b, **same)


def test_an_empty_vocabulary_is_refused() -> None:
    for call in (
        lambda: token_statistics(torch.zeros(2, 0)),
        lambda: linear_token_statistics(torch.zeros(2, 3), torch.zeros(0, 3)),
        lambda: attention_entropy(torch.zeros(1, 2, 0)),
        lambda: attention_entropy_from_qk(torch.zeros(1, 2, 3), torch.zeros(1, 0, 3)),
        lambda: categorical.entropy(torch.zeros(2, 0)),
        lambda: categorical.kl_divergence(torch.zeros(2, 0), torch.zeros(2, 0)),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - each names its own argument
            call()


def test_gradcheck_of_every_field_near_certainty_and_near_uniformity() -> None:
    z = logits(6, 1.0, torch.float64)[[0, 2, 3, 4, 6, 7, 8]].requires_grad_()
    targets = likely_and_hopeless(z.detach())
    weight = z.detach().T.contiguous().requires_grad_()
    eye = torch.eye(len(z), dtype=torch.float64).requires_grad_()
    # The uniform row has no one likeliest token: its peak has no derivative.
    varied = torch.arange(len(z)) != 3

    def fields(stats: TokenStatistics) -> tuple[Tensor, ...]:
        peaked = ("max_prob", "top_k_mass", "top_k_entropy")
        return tuple(x[varied] if name in peaked else x for name, x in measured(stats).items())

    def direct(z: Tensor) -> tuple[Tensor, ...]:
        return fields(token_statistics(z, targets, temperature=0.7, top_k=TOP))

    def linear(h: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return fields(linear_token_statistics(h, w, targets, softcap=3e4, temperature=0.7))

    assert torch.autograd.gradcheck(direct, (z,), atol=1e-7)
    # Logits near 1e4 round to 2e-12: a difference quotient over 2e-6 feels 1e-6 of that.
    assert torch.autograd.gradcheck(linear, (eye, weight), atol=1e-5, rtol=1e-3)


# Logits that are made: products with the unit vectors are exact in any precision.


def exact_products(vocab: int, spreads: list[float], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Finite logits, and the unit vectors that select them as rows of (logits.T).T."""
    z = torch.cat([logits(vocab, spread, dtype) for spread in spreads])
    z = z[z.isfinite().all(-1)]
    return z, torch.eye(len(z), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 1e-2, 1e2])
@pytest.mark.parametrize("vocab", [3, 1025])
def test_linear_statistics_and_gradients_at_every_spread(
    vocab: int, temperature: float, dtype: torch.dtype
) -> None:
    z, hidden = exact_products(vocab, SPREADS, dtype)
    targets, weight = likely_and_hopeless(z), z.T.contiguous().requires_grad_()
    exact = Exact.of(z, targets, temperature)
    got = measured(linear_token_statistics(hidden, weight, targets, temperature=temperature))
    values, gradients = exact.values(), exact.gradients()
    relative = 1e-12 if dtype == torch.float64 else GRADIENT
    ordered = z.sort(-1, descending=True).values
    for name, value in got.items():
        tolerances(dtype)[name].check(name, value, values[name])
        (gradient,) = torch.autograd.grad(value.sum(), weight, retain_graph=True)
        rows = ordered[:, 0] > ordered[:, 1] if name == "max_prob" else slice(None)
        columns, (expected, size) = gradient.T[rows], gradients[name]
        check_gradient(name, columns, expected[rows], size[rows], relative, 1e-12 / temperature)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_statistics_of_a_large_vocabulary(dtype: torch.dtype) -> None:
    z, hidden = exact_products(131_072, [1.0], dtype)
    targets = likely_and_hopeless(z)
    got = measured(linear_token_statistics(hidden, z.T.contiguous(), targets))
    exact = Exact.of(z, targets).values()
    for name, value in got.items():
        tolerances(dtype)[name].check(name, value, exact[name])


def test_linear_statistics_with_all_but_one_token_impossible() -> None:
    for possible in ([0], [1500], [3, 2999]):
        bias = torch.full((3000,), -torch.inf)
        bias[possible] = 2.0
        hidden, weight = torch.ones(1, 2), torch.zeros(3000, 2)
        stats = linear_token_statistics(hidden, weight, torch.tensor(possible[:1]), bias)
        assert stats.entropy.item() == pytest.approx(math.log(len(possible)), rel=1e-6)
        assert stats.varentropy.item() == 0
        assert stats.logprob is not None
        assert stats.logprob.item() == pytest.approx(-math.log(len(possible)), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("keys", "spreads"), [(2, SPREADS), (127, SPREADS), (1025, SPREADS), (50_257, [1.0])]
)
def test_attention_entropy_from_queries_and_keys_at_every_spread(
    keys: int, spreads: list[float], dtype: torch.dtype
) -> None:
    z, query = exact_products(keys, spreads, dtype)
    got = attention_entropy_from_qk(query[None], z.T.contiguous()[None], scale=1.0)[0]
    exact = Exact.of(z, likely_and_hopeless(z)).values()["entropy"]
    tolerances(dtype)["entropy"].check("entropy", got, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [2, 1025, 50_257])
def test_attention_entropy_of_weights(keys: int, dtype: torch.dtype) -> None:
    weights = logits(keys, 1.0, torch.float64).softmax(-1).to(dtype)
    wide = weights.double().numpy()
    exact = -(wide * np.log(np.where(wide > 0, wide, 1))).sum(-1)
    tolerances(dtype)["entropy"].check("entropy", attention_entropy(weights[None])[0], exact)


# Categorical distributions, given as rounded probabilities or as their rounded logarithms.

ORDERS = (0, 0.5, 0.9, 0.95, 1.05, 1.2, 2, 50)


def mp_sum(terms: Iterable[mpmath.mpf]) -> mpmath.mpf:
    return mpmath.fsum(terms)


def mp_single(p: list[mpmath.mpf]) -> dict[str, mpmath.mpf]:
    """Entropies; those of order q by 1 - sum p^q = sum p (1 - p^(q - 1)), in which the rounding of
    the normalisation is not multiplied by 1 / (1 - q)."""
    p = [x for x in p if x]
    shannon = -mp_sum(x * mpmath.log(x) for x in p)
    result = {"entropy": shannon, "perplexity": mpmath.exp(shannon)}
    result["renyi inf"] = -mpmath.log(max(p))
    for order in map(mpmath.mpf, ORDERS):
        gap = mp_sum(x * (1 - x ** (order - 1)) for x in p)
        power = 1 - gap if gap < 0.5 else mp_sum(x**order for x in p)
        result[f"renyi {float(order):g}"] = mpmath.log(power) / (1 - order)
        result[f"tsallis {float(order):g}"] = gap / (order - 1)
    return result


def mp_divergence(p: list[mpmath.mpf], q: list[mpmath.mpf]) -> mpmath.mpf:
    return mp_sum((x * mpmath.log(x / y) if x else 0) - x + y for x, y in zip(p, q, strict=True))


def mp_pair(p: list[mpmath.mpf], q: list[mpmath.mpf]) -> dict[str, mpmath.mpf]:
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return {
        "cross": -mp_sum(x * mpmath.log(y) for x, y in zip(p, q, strict=True) if x),
        "kl": mp_divergence(p, q),
        "js": (mp_divergence(p, m) + mp_divergence(q, m)) / 2,
    }


def mp_probabilities(x: Tensor, form: str) -> list[mpmath.mpf]:
    values = [mpmath.mpf(v) for v in x.flatten().double().tolist()]
    return values if form == "probs" else [mpmath.exp(v) for v in values]


def rounded(z: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    return (z.softmax(-1) if form == "probs" else z.log_softmax(-1)).to(dtype)


def check_rows(dtype: torch.dtype, got: dict[str, Tensor], exact: list[dict[str, float]]) -> None:
    for name, value in got.items():
        digits = np.array([float(row[name]) for row in exact])
        tolerances(dtype)["entropy"].check(name, value, digits)


@pytest.mark.parametrize("form", ["probs", "log_probs"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "spread"), [(2, 30.0), (5, 1e-6), (30, 1.0)])
def test_entropies_of_distributions(n: int, spread: float, dtype: torch.dtype, form: str) -> None:
    x = rounded(logits(n, spread, torch.float64), form, dtype)
    given: dict[str, Tensor] = {form: x}
    got = {
        "entropy": categorical.entropy(**given),
        "perplexity": categorical.perplexity(**given),
        "renyi inf": categorical.renyi_entropy(alpha=math.inf, **given),
    }
    for order in ORDERS:
        got[f"renyi {order:g}"] = categorical.renyi_entropy(alpha=order, **given)
        got[f"tsallis {order:g}"] = categorical.tsallis_entropy(q=order, **given)
    with mpmath.workdps(50):
        check_rows(dtype, got, [mp_single(mp_probabilities(row, form)) for row in x])


@pytest.mark.parametrize("form", ["probs", "log_probs"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", [1e-4, 1e-2, 0.1, 3.0])
def test_divergences_of_near_and_of_far_distributions(
    distance: float, dtype: torch.dtype, form: str
) -> None:
    z = torch.cat([logits(4, spread, torch.float64) for spread in (1.0, 30.0)])
    shift = torch.randn(4, generator=torch.Generator().manual_seed(3), dtype=z.dtype)
    a, b = (rounded(x, form, dtype) for x in (z, z + distance * shift))
    names = ("p", "q") if form == "probs" else ("log_p", "log_q")
    given = dict(zip(names, (a, b), strict=True))
    got = {
        "cross": categorical.cross_entropy(**given),
        "kl": categorical.kl_divergence(**given),
        "js": categorical.js_divergence(**given),
    }
    # What underflows in q but not in p makes both sides infinite.
    p, q = ((x if form == "probs" else x.exp()).double() for x in (a, b))
    finite = ~((p > 0) & (q == 0)).any(-1)
    with mpmath.workdps(50):
        rows = [
            mp_pair(mp_probabilities(x, form), mp_probabilities(y, form))
            for x, y in zip(a[finite], b[finite], strict=True)
        ]
    check_rows(dtype, {name: value[finite] for name, value in got.items()}, rows)


@pytest.mark.parametrize("form", ["probs", "log_probs"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_information_and_small_conditional_entropy(dtype: torch.dtype, form: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(*shape, generator=generator).double() for shape in ((3, 1), (1, 4)))
    joints = [
        x + y + peak * torch.eye(3, 4) + noise * torch.randn(3, 4, generator=generator)
        for peak in (0, 9, 20)
        for noise in (1e-3, 1e-2, 0.1, 1.0)
    ]
    table = rounded(torch.stack(joints).flatten(-2), form, dtype).unflatten(-1, (3, 4))
    given = {"joint" if form == "probs" else "log_joint": table}
    exact = []
    with mpmath.workdps(50):
        for joint in table:
            p = mp_probabilities(joint, form)
            of_x = [mp_sum(p[4 * i : 4 * i + 4]) for i in range(3)]
            of_y = [mp_sum(p[j::4]) for j in range(4)]
            independent = [a * b for a in of_x for b in of_y]
            conditional = mp_sum(v * mpmath.log(of_x[i // 4] / v) for i, v in enumerate(p) if v)
            exact.append({"conditional": conditional, "mutual": mp_divergence(p, independent)})
    got = {
        "conditional": categorical.conditional_entropy(**given),
        "mutual": categorical.mutual_information(**given),
    }
    check_rows(dtype, got, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_distributions_over_large_vocabularies_are_taken_as_softmax_leaves_them(
    dtype: torch.dtype,
) -> None:
    """A float32 softmax over 300,000 logits is normalised to 3e-4, its float16 form to 1e-3."""
    generator = torch.Generator().manual_seed(0)
    tolerance = tolerances(dtype)["entropy"]
    for vocab in (50_257, 300_000):
        for spread, offset in ((1.0, 0.0), (1e-3, 1e4), (30.0, 0.0)):
            z = spread * torch.randn(2, vocab, generator=generator) + offset
            z = z.double() if dtype == torch.float64 else z
            p, log_p = z.softmax(-1).to(dtype), z.log_softmax(-1).to(dtype)
            wide = p.double().numpy()
            exact = -(wide * np.log(np.where(wide > 0, wide, 1))).sum(-1)
            tolerance.check("entropy", categorical.entropy(p), exact)
            wide = log_p.double().numpy()
            exact = -(np.exp(wide) * wide).sum(-1)
            tolerance.check("entropy", categorical.entropy(log_probs=log_p), exact)
            divergence = categorical.kl_divergence(log_p=log_p[0], log_q=log_p[1])
            difference = np.exp(wide[1]) - np.exp(wide[0])
            exact = (np.exp(wide[0]) * (wide[0] - wide[1]) + difference).sum(keepdims=True)
            tolerance.check("kl", divergence[None], exact)
