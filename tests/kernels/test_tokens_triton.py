"""The Triton kernels against plain float64 references: interpreted on the CPU, or on a GPU.

`TRITON_INTERPRET=0 pytest tests/kernels/test_tokens_triton.py` compiles them where there is a GPU.
"""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from szilard.kernels import linear, tokens
from szilard.measures.tokens import TokenStatistics, linear_token_statistics, token_statistics

triton = pytest.importorskip("triton")
from szilard.kernels import linear_triton, tokens_triton  # noqa: E402

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
pytestmark = [
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="compiled kernels need a GPU"
    ),
    # Of the branch of a `where` that is not taken.
    pytest.mark.filterwarnings(
        "ignore:(invalid value|overflow|divide by zero|All-NaN):RuntimeWarning"
    ),
]

# What is asked of float32 entropies: 1e-5 relative above 1e-4 nats, 1e-6 absolute below.
RELATIVE, SMALL, ABSOLUTE = 1e-5, 1e-4, 1e-6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(vocab: int) -> Tensor:
    """Spreads of 1e-6, 1 and 1e4, half -inf, nearly certain, one-hot, all equal with a late peak."""
    z = randn(7, vocab, seed=vocab)
    z[0] *= 1e-6
    z[2] = (1e4 * z[2]).clamp(-6e4, 6e4)  # the range of float16
    z[3, : vocab // 2] = -torch.inf
    z[4, vocab // 2] = z[4].max() + 14
    z[5] = -torch.inf
    z[5, vocab // 3] = -7.0
    z[6] = -(2.0**-7)
    z[6, vocab - 1] = 0
    return z


def plain(logits: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-softmax, entropy and varentropy as their definitions read, in float64."""
    log_p = (logits.double() * scale).log_softmax(-1)
    p = log_p.exp()
    finite = torch.where(p > 0, log_p, 0)
    entropy = -(p * finite).sum(-1)
    return log_p, entropy, (p * (finite + entropy[..., None]).square()).sum(-1)


def moments(z: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> tokens.RowMoments:
    z, mask = z.to(DEVICE), None if mask is None else mask.to(DEVICE)
    argmax, columns = tokens_triton.row_moments(z, scale, mask)
    return tokens.RowMoments(argmax.cpu(), *columns.cpu())


def check(z: Tensor, scale: float, found: tokens.RowMoments) -> None:
    z = z.reshape(-1, z.shape[-1])
    _, entropy, varentropy = plain(z, scale)
    error = (found.total.log() - found.mean - entropy).abs()
    assert torch.where(entropy > SMALL, error / entropy < RELATIVE, error < ABSOLUTE).all()
    # 32 products in float32 about the maximum, which has a weight of 1/32 or more.
    torch.testing.assert_close(found.variance, varentropy, rtol=5e-5, atol=1e-12)
    assert torch.equal(found.argmax, z.float().argmax(-1))


@pytest.fixture
def one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_triton, "_PROGRAMS", 1)


@pytest.mark.usefixtures("one_part")
@pytest.mark.parametrize(
    ("dtype", "vocab"),
    [(torch.bfloat16, vocab) for vocab in (1, 2, 3, 1000, 4097)]
    + [(dtype, vocab) for dtype in (torch.float16, torch.float32) for vocab in (3, 4097)],
)
def test_moments_match_float64(dtype: torch.dtype, vocab: int) -> None:
    z = rows(vocab).to(dtype)
    z = z[4:6] if vocab == 1 else z
    check(z, 1 / 0.7, moments(z, 1 / 0.7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_cut_in_parts_has_the_moments_of_the_whole(dtype: torch.dtype) -> None:
    z = rows(2100)[[4, 6] if dtype == torch.bfloat16 else [2]].to(dtype)
    assert tokens_triton.parts_of(len(z), 2100, dtype.itemsize) == 2100 * dtype.itemsize // 2048 + 1
    check(z, 1.0, moments(z))


@pytest.mark.usefixtures("one_part")
def test_the_first_of_equal_maxima_is_the_argmax() -> None:
    z = torch.zeros(3, 5000)
    z[0, [4, 3, 4999]] = 1
    z[1, [1030, 700, 4999]] = 1
    assert moments(z).argmax.tolist() == [3, 700, 0]


@pytest.mark.usefixtures("one_part")
def test_entropy_of_a_nearly_certain_row_keeps_its_digits() -> None:
    gaps = torch.tensor([8.0, 11.0, 14.0])
    z = torch.full((3, 40), -1e3)
    z[:, 0], z[:, 1] = 0, -gaps  # neighbours: the same lane sums both
    rest = (-gaps.double()).exp()
    exact = rest.log1p() + rest * gaps / (1 + rest)
    found = moments(z)
    torch.testing.assert_close(found.total.log() - found.mean, exact, rtol=RELATIVE, atol=0)


@pytest.mark.usefixtures("one_part")
def test_a_row_without_a_distribution_has_no_total() -> None:
    z = torch.full((6, 600), -torch.inf)
    z[1:, 5] = 1
    z[2, 0], z[3, 599], z[4, 300], z[5, 7] = torch.nan, torch.nan, torch.inf, -torch.inf
    total = moments(z).total
    assert (total > 0).tolist() == [False, True, False, False, False, True]


def test_strided_rows_are_read_where_they_lie() -> None:
    z = randn(2, 3, 2, 70, seed=1).bfloat16()
    views = [
        z[:, :-1, 0],
        z[0, 0, :, 3:],
        z.transpose(0, 1)[1:, :, :, 1:66],
        z[0, 0, :1, ::2],
        z[0, 0, 0],
    ]
    for view in views:
        check(view, 1.0, moments(view))
    assert moments(z[:0]).total.shape == (0,)


def test_a_row_masked_out_is_one_certain_outcome() -> None:
    z = rows(3000)[[1, 1, 3]]
    z[1] = torch.nan
    mask = torch.tensor([True, False, True])
    found = moments(z, mask=mask)
    check(z[mask], 1.0, tokens.RowMoments(*(x[mask] for x in columns(found))))
    assert [x[1].item() for x in columns(found)] == [0, 0, 1, 0, 0]


def columns(m: tokens.RowMoments) -> tuple[Tensor, ...]:
    return m.argmax, m.maximum, m.total, m.mean, m.variance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("place", ["aligned", "shifted", "in place"])
def test_polynomial_matches_its_definition(dtype: torch.dtype, place: str) -> None:
    z = rows(4500)[[1, 3, 4]].to(dtype)
    mask = torch.tensor([True, True, True])
    if place == "shifted":
        z, mask = z[:, 1:], mask & torch.tensor([True, True, False])
        z[2] = torch.nan
    log_p, entropy, _ = plain(z, 0.5)
    coefficients = randn(3, 3, seed=2).double()
    a, b, c = coefficients[..., None]
    d = torch.where(log_p == -torch.inf, 0, log_p + entropy[:, None])
    exact = torch.where(mask[:, None], log_p.exp() * (a + d * (b + d * c)), 0)
    found = tokens.row_moments(z, 0.5, mask)
    of_row = torch.stack((found.maximum, found.total, found.mean, *coefficients)).to(DEVICE)
    z = z.to(DEVICE)
    out = z if place == "in place" else torch.empty(z.shape, dtype=dtype, device=DEVICE)
    tokens_triton.softmax_polynomial(z, 0.5, of_row, mask.to(DEVICE), out)
    # A unit in the last place, which the interpreter's rounding may be off; 1e-6 for the float32
    # exponential and polynomial.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.cpu().double(), exact, rtol=eps + 1e-5, atol=eps * 1e-2 + 1e-9)


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends the public functions to these kernels whatever the device."""
    monkeypatch.setattr(tokens, "_compiled_for", lambda _: False)
    monkeypatch.setattr(tokens, "triton_for", lambda *xs: all(x.dtype != torch.float64 for x in xs))


def loss(stats: TokenStatistics) -> Tensor:
    """A sum that gives every field a gradient of its own."""
    assert stats.logprob is not None
    fields = (stats.logprob, stats.entropy, stats.varentropy, stats.max_prob)
    return sum(((i + 1) * x.double()).sum() for i, x in enumerate(fields))  # type: ignore[return-value]


@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_token_statistics_are_those_of_float64(dtype: torch.dtype) -> None:
    z = (3 * randn(2, 3, 300, seed=3)).to(dtype)
    z[0, 1, 40] = 30  # nearly certain, and the target
    z[1, 0, ::2] = -torch.inf
    targets = torch.tensor([[0, 40, 7], [9, 299, -100]])
    mask = targets >= 0
    z[1, 2] = torch.nan
    options = {"temperature": 0.7, "base": 2.0}
    results = []
    for x, device in ((z, DEVICE), (z.double(), "cpu")):
        leaf = x.to(device).requires_grad_()
        stats = token_statistics(leaf, targets.to(device), mask=mask.to(device), **options)
        loss(stats).backward()
        assert leaf.grad is not None
        results.append((stats, leaf.grad.cpu().double()))
    (ours, gradient), (exact, exact_gradient) = results
    for name in ("logprob", "entropy", "varentropy", "max_prob"):
        x, y = getattr(ours, name), getattr(exact, name)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.cpu().double(), y, rtol=5e-5, atol=1e-6)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient, exact_gradient, rtol=eps + 5e-5, atol=eps * 1e-2 + 1e-6)


@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_poisoned_row_raises_as_on_the_cpu(poison: float) -> None:
    z = torch.full((2, 50), poison, device=DEVICE)
    z[0] = 0
    with pytest.raises(ValueError, match="1 counted rows hold NaN, \\+inf or -inf alone"):
        token_statistics(z)


@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(
    ("dtypes", "softcap", "with_bias"),
    [
        ((torch.float32, torch.float32), 5.0, True),
        ((torch.bfloat16, torch.bfloat16), None, True),
        ((torch.bfloat16, torch.float32), None, False),
    ],
)
def test_linear_token_statistics_are_those_of_float64(
    dtypes: tuple[torch.dtype, torch.dtype],
    softcap: float | None,
    with_bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two blocks of tokens by three of vocabulary.
    for shape in ("_FORWARD", "_BACKWARD"):
        monkeypatch.setattr(linear_triton, shape, (2, 128))
    hidden = randn(4, 8, seed=4).to(dtypes[0])
    weight = randn(300, 8, seed=5).to(dtypes[1])
    bias = randn(300, seed=6).to(dtypes[1]) if with_bias else None
    targets = torch.tensor([127, 128, 299, -100])
    mask = targets >= 0
    hidden[3] = torch.nan
    results = []
    for double, device in ((False, DEVICE), (True, "cpu")):
        leaves = [
            None
            if x is None
            else (x.double() if double else x).to(device).detach().requires_grad_()
            for x in (hidden, weight, bias)
        ]
        h, w, b = leaves
        assert h is not None
        assert w is not None
        stats = linear_token_statistics(h, w, targets.to(device), b, softcap, 0.7, mask.to(device))
        loss(stats).backward()
        results.append((stats, [x.grad for x in leaves if x is not None]))
    (ours, gradients), (exact, exact_gradients) = results
    for name in ("logprob", "entropy", "varentropy", "max_prob"):
        x, y = getattr(ours, name), getattr(exact, name)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.cpu().double(), y, rtol=5e-5, atol=5e-6)
    # Gradients to logits are rounded to bfloat16 before products of bfloat16, and so are results.
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    for g, e in zip(gradients, exact_gradients, strict=True):
        assert g is not None
        assert e is not None
        scale = float(e.abs().max())
        torch.testing.assert_close(g.cpu().double(), e, rtol=0, atol=scale * (2 * eps + 5e-5))


@pytest.mark.usefixtures("on_triton")
def test_linear_gradients_without_rows_are_zero() -> None:
    weight = randn(7, 4).to(DEVICE).requires_grad_()
    stats = linear_token_statistics(torch.zeros(0, 4, device=DEVICE), weight)
    stats.entropy.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_soft_caps_keep_relative_digits_of_small_logits() -> None:
    # tanh by exponentials alone would round 1e-4 to three digits.
    z = torch.tensor([[0.0, 1e-4, 2e-4, -30.0, 3.0, 40.0]], device=DEVICE)
    argmax, fields = tokens_triton.buffers(1, 6, z.device)
    logits, chosen = z.expand(6, 6), torch.zeros(6, dtype=torch.float64, device=DEVICE)
    tokens_triton.part_moments(
        logits[None],
        1.0,
        argmax,
        fields,
        softcap=10.0,
        targets=torch.arange(6, device=DEVICE),
        chosen=chosen,
    )
    exact = torch.tensor([10 * math.tanh(x / 10) for x in z[0].tolist()]).double()
    torch.testing.assert_close(chosen.cpu(), exact, rtol=1e-6, atol=0)


def test_triton_serves_halves_and_singles_of_a_gpu_alone() -> None:
    assert not tokens.triton_for(torch.zeros(1))
    meta = torch.zeros(1, device="meta")
    assert not tokens.triton_for(meta)


def test_linear_blocks_of_the_cpu_and_of_the_gpu_agree() -> None:
    head = linear.Head(randn(3, 8, seed=7), randn(50, 8, seed=8), None, None, 1.3)
    targets = torch.tensor([0, 49, 20])
    expected, logit = linear.moments(head, targets)
    on_device = linear.Head(head.hidden.to(DEVICE), head.weight.to(DEVICE), None, None, 1.3)
    found, found_logit = linear_triton.moments(on_device, targets.to(DEVICE))
    for x, y in zip(columns(found), columns(expected), strict=True):
        torch.testing.assert_close(x.cpu().double(), y.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found_logit.cpu(), logit.double(), rtol=1e-5, atol=1e-6)


COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from szilard.kernels import tokens_triton

kernel = tokens_triton._moments
numbers = "rows plane inner vocab first_token tiles inner_stride".split()
types = dict.fromkeys(numbers, "i32") | {"outer_stride": "i64", "scale": "fp32", "softcap": "fp32"}
types |= {"logits": "*bf16", "counts": "*u8", "bias": "*bf16", "targets": "*i64", "argmax": "*i64"}
types |= {"fields": "*fp64", "chosen": "*fp64"}
fixed = dict.fromkeys("MASK BIAS SOFTCAP TARGETS".split(), False)
fixed |= {"ALIGNED": True, "STAGES": 3, "CHUNKS": 4, "LANES": 128, "WIDE": 8}
names = kernel.arg_names
source = ASTSource(
    fn=kernel,
    signature={name: types.get(name, "constexpr") for name in names},
    constexprs={(names.index(name),): value for name, value in fixed.items()},
    attrs={(names.index(name),): [["tt.divisibility", 16]] for name in ("logits", "vocab")},
)
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]
print(len(re.findall("cp.async.cg.shared.global .*, 0x10,", ptx)))
"""


@pytest.mark.slow
def test_the_kernel_compiles_for_an_h100_with_wide_asynchronous_loads() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", COMPILE]
    loads = subprocess.check_output(command, text=True, env=environment)
    # Two tiles under way before the loop and one in it, each four times 16 bytes a lane.
    assert int(loads) == 12
