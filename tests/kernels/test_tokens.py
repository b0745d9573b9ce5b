"""The compiled and the blocked kernels against a plain float64 reference."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import mpmath  # type: ignore[import-untyped]
import numba
import pytest
import torch
from torch import Tensor

from szilard.kernels import compiled, tokens, tokens_cpu

# What is asked of float32 entropies: 1e-5 relative above 1e-4 nats, 1e-6 absolute below.
RELATIVE, SMALL, ABSOLUTE = 1e-5, 1e-4, 1e-6


def plain(logits: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Log-softmax, entropy and varentropy as their definitions read, in float64."""
    log_p = (logits.double() * scale).log_softmax(-1)
    p = log_p.exp()
    finite = torch.where(p > 0, log_p, 0)
    entropy = -(p * finite).sum(-1)
    return log_p, entropy, (p * (finite + entropy[..., None]).square()).sum(-1)


def rows(vocab: int, spread: float) -> Tensor:
    """Gaussian, near-deterministic, peaked, uniform, one-hot and plateau rows."""
    generator = torch.Generator().manual_seed(vocab)
    z = torch.randn(8, vocab, generator=generator) * spread
    z[1, vocab // 2] = z[1].max() + 15 * spread
    z[2] = z[2].sort().values
    z[3] = 3.0
    z[4] = -torch.inf
    z[4, vocab // 3] = -7.0
    z[5] = -spread
    z[5, vocab - 1] = 0
    z[6, : vocab // 2] = -torch.inf
    z[7] = torch.linspace(0, -1, vocab) * spread
    return z


def entropy_of(moments: tokens.RowMoments) -> Tensor:
    return moments.total.log() - moments.mean


@pytest.fixture(params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(tokens, "_compiled_for", lambda _: False)
        monkeypatch.setattr(tokens, "_BLOCK_ELEMENTS", 3000)
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("vocab", [2, 3, 1000, 1025, 32000])
@pytest.mark.parametrize("spread", [1e-6, 1e-3, 1.0, 30.0, 1e4])
def test_moments_match_float64_at_every_scale(
    path: str, dtype: torch.dtype, vocab: int, spread: float
) -> None:
    z = rows(vocab, spread)
    z = torch.where(z > -torch.inf, z.clamp(-6e4, 6e4), z).to(dtype)  # the range of float16
    for scale in (1.0, 1 / 0.7):
        moments = tokens.row_moments(z, scale, None)
        _, entropy, varentropy = plain(z, scale)
        error = (entropy_of(moments) - entropy).abs()
        assert torch.where(entropy > SMALL, error / entropy < RELATIVE, error < ABSOLUTE).all()
        # float32 products within a block, about a mean at most 4 standard deviations away.
        torch.testing.assert_close(moments.variance, varentropy, rtol=5e-5, atol=1e-12)
        assert torch.equal(z.gather(-1, moments.argmax[:, None]), z.amax(-1, keepdim=True))


def test_moments_match_float64_at_300000_tokens() -> None:
    for spread in (1e-3, 3.0):
        z = rows(300_000, spread)
        moments = tokens.row_moments(z, 1.0, None)
        _, entropy, varentropy = plain(z)
        error = (entropy_of(moments) - entropy).abs()
        assert torch.where(entropy > SMALL, error / entropy < RELATIVE, error < ABSOLUTE).all()
        torch.testing.assert_close(moments.variance, varentropy, rtol=5e-5, atol=1e-12)


def test_entropy_of_a_nearly_certain_row_keeps_its_digits() -> None:
    for gap in (8.0, 10.0, 12.0, 14.0):
        z = torch.full((1, 5000), -gap - 5)
        z[0, 1234] = 0.0
        with mpmath.workdps(50):
            rest = mpmath.exp(-gap - 5)
            total = 1 + 4999 * rest
            exact = mpmath.log(total) + 4999 * rest * (gap + 5) / total
        assert entropy_of(tokens.row_moments(z, 1.0, None)).item() == pytest.approx(
            float(exact), rel=RELATIVE
        )


def test_varentropy_of_a_plateau_under_one_peak_does_not_cancel() -> None:
    # Var = p (1 - p) d^2 with p = 1/V near: E[z^2] - E[z]^2 would lose five of seven digits.
    vocab, d = 300_000, 2.0**-10
    z = torch.full((1, vocab), -d)
    z[0, 77] = 0
    with mpmath.workdps(50):
        p = 1 / (1 + (vocab - 1) * mpmath.exp(-d))
        exact = float(p * (1 - p) * d**2)
    assert tokens.row_moments(z, 1.0, None).variance.item() == pytest.approx(exact, rel=5e-5)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [0, 1023, 1024, 2999])
def test_a_poisoned_row_has_no_total(path: str, poison: float, at: int) -> None:
    for background in (0.0, -torch.inf):
        z = torch.full((3, 3000), background)
        z[:, 5] = 1.0
        z[1, at] = poison
        total = tokens.row_moments(z, 1.0, None).total
        assert not total[1] > 0
        assert (total[[0, 2]] > 0).all()


def test_a_row_of_minus_infinity_has_no_total(path: str) -> None:
    assert not tokens.row_moments(torch.full((1, 2000), -torch.inf), 1.0, None).total[0] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout_gives_the_same_moments(dtype: torch.dtype) -> None:
    z = torch.randn(4, 6, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    views = [z[:, :-1], z[1:, 2:, 3:30], z.transpose(0, 1), z[..., ::2], z[:1].expand(3, 6, 40)]
    for view in [*views, z.permute(2, 0, 1), z[0, 0], z[:0], z[:, 0]]:
        a = tokens.row_moments(view, 1.0, None)
        b = tokens.row_moments(view.contiguous(), 1.0, None)
        assert torch.equal(a.total, b.total)
        assert torch.equal(a.variance, b.variance)
        coefficients = torch.ones(3, len(a.total), dtype=torch.float64)
        c = tokens.softmax_polynomial(view, 1.0, a, coefficients, None)
        d = tokens.softmax_polynomial(view.contiguous(), 1.0, b, coefficients, None)
        assert c.is_contiguous()
        assert torch.equal(c, d)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_polynomial_matches_its_definition(path: str, dtype: torch.dtype) -> None:
    z = rows(2500, 2.0).to(dtype)
    mask = torch.arange(8) != 1
    z[1] = torch.nan
    a, b, c = coefficients = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).double()
    moments = tokens.row_moments(z, 0.5, mask)
    value = tokens.softmax_polynomial(z, 0.5, moments, coefficients, mask)
    log_p, entropy, _ = plain(z, 0.5)
    d = torch.where(log_p == -torch.inf, 0, log_p + entropy[:, None])
    exact = log_p.exp() * (a[:, None] + d * (b[:, None] + d * c[:, None]))
    exact[1] = 0
    assert value.dtype == dtype
    # Half a unit in the last place of the dtype; 1e-6 for the float32 exponential and polynomial.
    eps = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(value.double(), exact, rtol=eps + 1e-5, atol=eps * 1e-2 + 1e-9)


def test_merging_two_halves_gives_the_whole(path: str) -> None:
    z = rows(3000, 2.0)
    whole = tokens.row_moments(z, 0.7, None)
    left, right = (tokens.row_moments(part, 0.7, None) for part in (z[:, :1100], z[:, 1100:]))
    merged = tokens.merge(left, right, 0.7, 1100)
    for name in ("argmax", "maximum", "total", "mean", "variance"):
        # float32 sums in another order.
        torch.testing.assert_close(
            getattr(merged, name), getattr(whole, name), rtol=1e-5, atol=1e-9, msg=name
        )


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(7, 3000, generator=torch.Generator().manual_seed(2))
    one = tokens.row_moments(z, 1.0, None)
    monkeypatch.setattr(compiled, "_SERIAL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three = tokens.row_moments(z, 1.0, None)
    assert torch.equal(one.total, three.total)
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(lambda _: tokens.row_moments(z, 1.0, None), range(8)):
            assert torch.equal(one.variance, again.variance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("vocab", [1025, 4099])
def test_a_row_in_pieces_equals_the_whole_row(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, vocab: int
) -> None:
    z, mask = rows(vocab, 3.0).to(dtype), torch.arange(8) != 3
    coefficients = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).double()
    whole = tokens.row_moments(z, 0.7, mask)
    value = tokens.softmax_polynomial(z, 0.7, whole, coefficients, mask)
    monkeypatch.setattr(tokens_cpu, "_PIECE", 500)
    monkeypatch.setattr(compiled, "_SERIAL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    parts = tokens.row_moments(z, 0.7, mask)
    # Sums in another order, in float32 but for float64 logits.
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.equal(parts.argmax, whole.argmax)
    assert torch.equal(parts.maximum, whole.maximum)
    for name in ("total", "mean", "variance"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=rtol, atol=1e-9)
    # Every entry is computed alone: pieces change nothing.
    assert torch.equal(tokens.softmax_polynomial(z, 0.7, whole, coefficients, mask), value)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_piece_poisons_its_row(monkeypatch: pytest.MonkeyPatch, poison: float) -> None:
    monkeypatch.setattr(tokens_cpu, "_PIECE", 500)
    z = torch.full((3, 2000), -torch.inf)
    z[1, 1900], z[2, 3], z[2, 1900] = poison, 1.0, poison
    moments = tokens.row_moments(z, 1.0, None)
    assert moments.maximum[0] == -torch.inf
    assert moments.total.isnan().tolist() == [False, True, True]
    assert moments.maximum.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_read_exactly(dtype: torch.dtype) -> None:
    z = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    z = z[z.isfinite() | (z == -torch.inf)].view(-1, 1)
    assert torch.equal(tokens.row_moments(z, 1.0, None).maximum, z[:, 0].double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_rounded_to_nearest_even(dtype: torch.dtype) -> None:
    # p = 1/2, so that what is stored is half of the coefficient, rounded once.
    bits = torch.arange(-(2**31), 2**31, 2**16 + 2**11 + 1)
    a = bits.to(torch.int32).view(torch.float32)
    a = a[a.abs() < 2.0**15]
    z = torch.zeros(len(a), 2, dtype=dtype)
    coefficients = torch.stack((a.double() * 2, *torch.zeros(2, len(a)).double()))
    value = tokens.softmax_polynomial(z, 1.0, tokens.row_moments(z, 1.0, None), coefficients, None)
    normal = a.abs() >= torch.finfo(torch.float32).tiny
    assert torch.equal(value[normal, 0], a.to(dtype)[normal])


def test_processes_side_by_side_agree_and_importing_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch, szilard.measures.tokens as t; print('numba' in sys.modules);"
        "print(t.token_statistics(torch.linspace(-3, 3, 2000)).entropy.item())"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [run.communicate()[0].split() for run in runs]
    here = entropy_of(tokens.row_moments(torch.linspace(-3, 3, 2000), 1.0, None)).float().item()
    assert outputs == [["False", str(here)]] * 2


def test_without_a_writable_cache_the_kernels_still_compile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    njit = numba.njit

    def no_locator(**options: object) -> object:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", no_locator)
    assert compiled._compiled()(lambda x: x + 1)(2) == 3
