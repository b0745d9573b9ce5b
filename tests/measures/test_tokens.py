"""Token statistics against definitions, peers, and the identities that they must obey."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode

from szilard.kernels import linear
from szilard.measures.tokens import TokenStatistics, linear_token_statistics, token_statistics

FIELDS = ("logprob", "entropy", "varentropy", "max_prob", "top_k_mass", "top_k_entropy")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fields(stats: TokenStatistics) -> tuple[Tensor, ...]:
    values = (getattr(stats, name) for name in FIELDS)
    return tuple(v for v in values if v is not None)


def plain(z: Tensor, targets: Tensor, k: int) -> tuple[Tensor, ...]:
    """Every field as its definition reads, by ordinary differentiable operations."""
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    varentropy = (p * (log_p + entropy[..., None]).square()).sum(-1)
    top = p.topk(k).values
    mass = top.sum(-1)
    q = top / mass[..., None]
    logprob = log_p.gather(-1, targets[..., None])[..., 0]
    return logprob, entropy, varentropy, p.amax(-1), mass, -(q * q.log()).sum(-1)


logits_rows = npst.arrays(
    "float32",
    npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9),
    elements=st.floats(-1e4, 1e4, width=32),
).map(torch.from_numpy)


@given(logits_rows, st.floats(-100, 100, width=16))
def test_a_shift_of_all_logits_changes_nothing(z: Tensor, shift: float) -> None:
    z = z.double()
    targets = torch.zeros(z.shape[:-1], dtype=torch.long)
    for a, b in zip(
        fields(token_statistics(z, targets)),
        fields(token_statistics(z + shift, targets)),
        strict=True,
    ):
        # Adding the shift rounds 1e4 to 2e-12; a variance of 1e8 feels that as 1e-4 absolute.
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@given(logits_rows, st.randoms(use_true_random=False))
def test_the_order_of_the_vocabulary_does_not_matter(z: Tensor, random: object) -> None:
    order = list(range(z.shape[-1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    target = torch.full(z.shape[:-1], order[0])
    a = token_statistics(z, target)
    b = token_statistics(z[..., order], torch.zeros_like(target))
    for x, y in zip(fields(a), fields(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@given(logits_rows, st.floats(0.125, 8, width=16))
def test_temperature_divides_the_logits(z: Tensor, temperature: float) -> None:
    z = z.double()
    a = token_statistics(z, temperature=temperature)
    b = token_statistics(z / temperature)
    for x, y in zip(fields(a), fields(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9)


@given(logits_rows)
def test_entropy_and_peak_keep_their_bounds(z: Tensor) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        stats = token_statistics(z.to(dtype), top_k=z.shape[-1])
        log_v = math.log(z.shape[-1])
        assert (stats.entropy >= 0).all()
        assert (stats.entropy <= log_v + 1e-6).all()
        assert (stats.varentropy >= 0).all()
        assert (stats.max_prob <= 1).all()
        # Min-entropy lies below Shannon entropy.
        assert (-stats.max_prob.log() <= stats.entropy + 1e-5).all()
        assert stats.top_k_mass is not None
        torch.testing.assert_close(stats.top_k_mass, torch.ones(z.shape[:-1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(stats.top_k_entropy, stats.entropy, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_entropies_of_independent_variables_add(m: int, n: int, seed: int) -> None:
    x, y = randn(m, seed=seed), randn(n, seed=seed + 1)
    joint = token_statistics((x[:, None] + y).reshape(-1))
    parts = [token_statistics(v) for v in (x, y)]
    torch.testing.assert_close(joint.entropy, parts[0].entropy + parts[1].entropy)
    torch.testing.assert_close(joint.varentropy, parts[0].varentropy + parts[1].varentropy)
    torch.testing.assert_close(joint.max_prob, parts[0].max_prob * parts[1].max_prob)


def test_uniform_distribution_has_maximal_entropy_and_no_varentropy() -> None:
    for vocab in (1, 2, 1000, 300_000):
        stats = token_statistics(torch.full((2, vocab), -3.5), torch.zeros(2, dtype=torch.long))
        assert stats.entropy.tolist() == pytest.approx([math.log(vocab)] * 2, rel=1e-6)
        assert stats.varentropy.tolist() == [0, 0]
        assert stats.max_prob.tolist() == pytest.approx([1 / vocab] * 2, rel=1e-6)


def test_bernoulli_varentropy_has_its_closed_form() -> None:
    p = torch.tensor([0.5, 0.9, 0.999], dtype=torch.float64)
    stats = token_statistics(torch.stack((p.log(), (1 - p).log()), -1), base=2.0)
    exact = p * (1 - p) * ((1 - p) / p).log2().square()
    torch.testing.assert_close(stats.varentropy, exact)


def test_top_k_statistics_match_the_worked_example() -> None:
    p = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01])
    expected = {1: (0.0, 0.4), 2: (0.918296, 0.6), 4: (1.75, 0.8), 10: (2.606572, 1.0)}
    for k, (entropy, mass) in expected.items():
        stats = token_statistics(p.log() + 3, top_k=k, base=2.0)
        assert stats.top_k_entropy is not None
        assert stats.top_k_mass is not None
        assert stats.top_k_entropy.item() == pytest.approx(entropy, abs=2e-6)
        assert stats.top_k_mass.item() == pytest.approx(mass, abs=1e-6)
    stats = token_statistics(p.log(), top_k=4, base=2.0)
    assert stats.top_k_entropy is not None
    raw = 0.8 * (stats.top_k_entropy.item() - math.log2(0.8))
    assert raw == pytest.approx(1.657542, abs=2e-6)


def test_values_match_the_definitions() -> None:
    z, targets = 3 * randn(4, 5, 50), torch.arange(20).view(4, 5)
    got = fields(token_statistics(z, targets, top_k=7))
    for a, b in zip(got, plain(z, targets, 7), strict=True):
        torch.testing.assert_close(a, b)


def test_peers_agree() -> None:
    trainer = pytest.importorskip("trl.trainer.utils")
    z, targets = 2 * randn(3, 7, 500, dtype=torch.float32), torch.arange(21).view(3, 7)
    stats, peer = token_statistics(z, targets), Categorical(logits=z)
    torch.testing.assert_close(stats.entropy, peer.entropy(), rtol=1e-5, atol=0)
    torch.testing.assert_close(stats.logprob, peer.log_prob(targets), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.entropy, trainer.entropy_from_logits(z), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_float32_or_better(dtype: torch.dtype) -> None:
    z = randn(3, 40).to(dtype)
    targets = torch.tensor([0, 5, 39])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    got = fields(token_statistics(z, targets, top_k=3))
    for a, b in zip(got, plain(z.double(), targets, 3), strict=True):
        assert a.dtype == wide
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_extreme_logits_give_a_certain_outcome() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    stats = token_statistics(z, torch.tensor([1, 2]))
    assert stats.entropy.tolist() == pytest.approx([0, math.log(3)])
    assert stats.logprob is not None
    assert stats.logprob.tolist() == pytest.approx([-2e4, -math.log(3)])


def test_minus_infinity_is_probability_zero() -> None:
    z = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]], requires_grad=True)
    stats = token_statistics(z, torch.tensor([1]), top_k=3)
    assert stats.logprob is not None
    assert stats.logprob.item() == -torch.inf
    assert stats.entropy.item() == pytest.approx(math.log(2))
    assert stats.top_k_entropy is not None
    assert stats.top_k_entropy.item() == pytest.approx(math.log(2))
    (stats.entropy + stats.varentropy + stats.max_prob + stats.top_k_entropy).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert (z.grad[0, [1, 3]] == 0).all()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), ()])
def test_leading_axes_may_be_empty(shape: tuple[int, ...]) -> None:
    z = torch.zeros(*shape, 5, requires_grad=True)
    stats = token_statistics(z, torch.zeros(shape, dtype=torch.long), top_k=2)
    assert all(v.shape == shape for v in fields(stats))
    stats.entropy.sum().backward()
    hidden = torch.zeros(*shape, 3)
    stats = linear_token_statistics(hidden, torch.zeros(5, 3), torch.zeros(shape, dtype=torch.long))
    assert all(v.shape == shape for v in fields(stats))


def test_a_vocabulary_of_one_is_certain() -> None:
    stats = token_statistics(torch.tensor([[3.0]]), torch.tensor([0]), top_k=1)
    assert [v.item() for v in fields(stats)] == [0, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_masked_positions_poison_neither_values_nor_gradients(dtype: torch.dtype) -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    z, targets = randn(2, 3, 30).to(dtype), torch.arange(6).view(2, 3)
    clean = token_statistics(z, targets, top_k=4)
    dirty = torch.where(mask[..., None], z, torch.nan).requires_grad_()
    stats = token_statistics(dirty, torch.where(mask, targets, -100), top_k=4, mask=mask)
    for a, b in zip(fields(stats), fields(clean), strict=True):
        assert torch.equal(a, torch.where(mask, b, 0))
    torch.stack(fields(stats)).sum().backward()
    assert dirty.grad is not None
    assert dirty.grad[mask].isfinite().all()
    assert (dirty.grad[~mask] == 0).all()


def test_gradients_pass_gradcheck() -> None:
    z, targets = randn(2, 3, 9).requires_grad_(), torch.tensor([[0, 3, 8], [1, 1, 4]])
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def measured(z: Tensor) -> tuple[Tensor, ...]:
        return fields(token_statistics(z, targets, temperature=0.7, top_k=3, mask=mask, base=2.0))

    assert torch.autograd.gradcheck(measured, (z,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_gradients_match_the_definitions(dtype: torch.dtype) -> None:
    z, targets = (2 * randn(6, 1500)).to(dtype).requires_grad_(), torch.arange(6)
    with torch.no_grad():
        targets[0] = z[0].argmax()
        z[1, 7] += 20  # p = 1 - 1e-6: the gradient of log p is what is left of 1 - 1
        targets[1] = 7
    weights = randn(6, 6, seed=3)

    def gradient(values: tuple[Tensor, ...], x: Tensor) -> Tensor:
        total = sum((w * v).sum() for w, v in zip(weights, values, strict=True))
        assert isinstance(total, Tensor)
        return torch.autograd.grad(total, x)[0]

    got = gradient(fields(token_statistics(z, targets, top_k=5)), z)
    exact_z = z.detach().double().requires_grad_()
    exact = gradient(plain(exact_z, targets, 5), exact_z)
    assert got.dtype == dtype
    eps = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(got.double(), exact, rtol=eps + 2e-4, atol=eps * 1e-3 + 3e-7)


def test_backward_of_one_field_alone_works() -> None:
    targets = torch.tensor([1, 2])
    for name in FIELDS:
        z = randn(2, 6).requires_grad_()
        getattr(token_statistics(z, targets, top_k=2), name).sum().backward()
        assert z.grad is not None
        # Every field is invariant to a shift of the logits.
        torch.testing.assert_close(z.grad.sum(-1), torch.zeros(2).double(), rtol=0, atol=1e-12)


def test_no_second_copy_of_the_logits_is_kept() -> None:
    z = randn(5, 4, 1000, dtype=torch.float32).requires_grad_()
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        token_statistics(z[:, :-1], torch.ones(5, 3, dtype=torch.long), top_k=3)
    own = {z.untyped_storage().data_ptr()}
    assert all(x.numel() <= 15 * 5 for x in kept if x.untyped_storage().data_ptr() not in own)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_and_plus_infinity_are_refused(bad: float, dtype: torch.dtype) -> None:
    z = randn(3, 2000).to(dtype)
    z[1, 1999] = bad
    with pytest.raises(ValueError, match=r"logits must be finite or -inf.*1 counted row"):
        token_statistics(z)
    with pytest.raises(ValueError, match="logits"):
        token_statistics(torch.full((2, 3), -torch.inf, dtype=dtype))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda z: token_statistics(z, temperature=0.0), "temperature must be positive"),
        (lambda z: token_statistics(z, temperature=math.nan), "temperature must be positive"),
        (lambda z: token_statistics(z, top_k=0), r"top_k must lie in 1\.\.4"),
        (lambda z: token_statistics(z, top_k=5), r"top_k must lie in 1\.\.4"),
        (lambda z: token_statistics(z, base=1.0), "base"),
        (lambda z: token_statistics(z, torch.tensor([0, 4])), r"targets must lie in 0\.\.3"),
        (lambda z: token_statistics(z, torch.tensor([0, -100])), r"targets must lie in 0\.\.3"),
        (lambda z: token_statistics(z, torch.zeros(3, dtype=torch.long)), "targets must have"),
        (lambda z: token_statistics(z, mask=torch.ones(3, dtype=torch.bool)), "mask must have"),
        (lambda z: token_statistics(z[:, :0]), "last axis of logits is empty"),
        (lambda z: linear_token_statistics(z, torch.zeros(9, 3)), "hidden must end in"),
        (lambda z: linear_token_statistics(z, torch.zeros(0, 4)), "weight must have a row"),
        (lambda z: linear_token_statistics(z, torch.zeros(9, 4), softcap=0.0), "softcap"),
        (
            lambda z: linear_token_statistics(z, torch.zeros(9, 4), bias=torch.zeros(8)),
            "bias must have shape",
        ),
        (lambda z: linear_token_statistics(z * torch.nan, torch.ones(9, 4)), "hidden @ weight"),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_bad_arguments_are_named(call: Callable[[Tensor], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(torch.zeros(2, 4))


@pytest.mark.usefixtures("unhooked")
def test_wrong_dtypes_are_named() -> None:
    with pytest.raises(TypeError, match="logits must have a floating-point dtype"):
        token_statistics(torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(TypeError, match="targets must be integer"):
        token_statistics(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(TypeError, match="mask must be a boolean"):
        token_statistics(torch.zeros(2, 4), mask=torch.ones(2))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_BLOCK_ELEMENTS", 60)
    monkeypatch.setattr(linear, "_BLOCK_TOKENS", 4)


def materialised(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    z = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    return z if softcap is None else softcap * torch.tanh(z / softcap)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_statistics_equal_those_of_the_logits(
    dtype: torch.dtype, softcap: float | None, with_bias: bool
) -> None:
    leaves = [randn(2, 5, 6, seed=1), randn(37, 6, seed=2), randn(37, seed=3)][: 2 + with_bias]
    leaves = [x.to(dtype).requires_grad_() for x in leaves]
    bias = leaves[2] if with_bias else None
    targets = torch.tensor([[0, 36, 5, 14, 15], [15, 16, 1, 2, 3]])
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 2] = False
    linear = fields(
        linear_token_statistics(
            leaves[0], leaves[1], targets, bias, softcap, temperature=0.8, mask=mask, base=2.0
        )
    )
    z = materialised(leaves[0], leaves[1], bias, softcap)
    direct = fields(token_statistics(z, targets, temperature=0.8, mask=mask, base=2.0))
    weights = randn(4, 2, 5, seed=4).to(dtype)
    # float32: sums over 37 tokens in another order.
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-9, 1e-12)
    for a, b in zip(linear, direct, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    grads = [
        torch.autograd.grad((torch.stack(values) * weights).sum(), leaves)
        for values in (linear, direct)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.usefixtures("small_blocks")
def test_linear_gradients_pass_gradcheck() -> None:
    leaves = tuple(x.requires_grad_() for x in (randn(5, 2), randn(17, 2, seed=1), randn(17)))
    targets = torch.tensor([0, 16, 7, 8, 8])

    def measured(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return fields(linear_token_statistics(hidden, weight, targets, bias, 1.5, 0.7))

    assert torch.autograd.gradcheck(measured, leaves)


def test_linear_statistics_of_bfloat16_are_accumulated_in_float32() -> None:
    hidden, weight = randn(6, 16).bfloat16(), randn(200, 16, seed=1).bfloat16()
    stats = linear_token_statistics(hidden, weight, torch.arange(6))
    exact = token_statistics(hidden.double() @ weight.double().T, torch.arange(6))
    for a, b in zip(fields(stats), fields(exact), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
    leaf = weight.requires_grad_()
    linear_token_statistics(hidden, leaf).entropy.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 15), slice(15, 30), slice(0, 37)])
def test_linear_statistics_refuse_nan_anywhere_in_the_weight(rows: slice) -> None:
    weight = randn(37, 3, dtype=torch.float32)
    weight[rows] = torch.nan
    with pytest.raises(ValueError, match="hidden @ weight"):
        linear_token_statistics(randn(4, 3, dtype=torch.float32), weight)


def test_linear_statistics_allow_blocks_of_minus_infinity(small_blocks: None) -> None:
    hidden, weight = randn(4, 3, dtype=torch.float32), randn(37, 3, dtype=torch.float32)
    bias = torch.where(torch.arange(37) < 20, -torch.inf, 0.0)
    stats = linear_token_statistics(hidden, weight, torch.arange(20, 24), bias)
    exact = token_statistics((hidden @ weight.T)[:, 20:], torch.arange(4))
    for a, b in zip(fields(stats), fields(exact), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_linear_statistics_ignore_what_masked_positions_hold() -> None:
    hidden, weight = randn(4, 3), randn(11, 3, seed=1).requires_grad_()
    mask = torch.tensor([True, False, True, False])
    dirty = torch.where(mask[:, None], hidden, torch.nan).requires_grad_()
    targets = torch.tensor([1, -100, 3, -100])
    stats = linear_token_statistics(dirty, weight, targets, mask=mask)
    clean = linear_token_statistics(hidden[mask], weight, targets[mask])
    for a, b in zip(fields(stats), fields(clean), strict=True):
        assert torch.equal(a[mask], b)
        assert (a[~mask] == 0).all()
    torch.stack(fields(stats)).sum().backward()
    assert dirty.grad is not None
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert (dirty.grad[~mask] == 0).all()


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage made by any operation, the given shapes apart."""

    def __init__(self, *exempt: torch.Size) -> None:
        super().__init__()
        self.exempt, self.largest = exempt, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        given = {
            x.untyped_storage().data_ptr()
            for x in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(x, Tensor)
        }
        for x in torch.utils._pytree.tree_leaves(out):
            fresh = isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given
            if fresh and x.shape not in self.exempt:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return out


def test_linear_memory_does_not_grow_with_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "_BLOCK_ELEMENTS", 1 << 12)
    largest = []
    for vocab in (1_000, 4_000):
        hidden = randn(40, 8, dtype=torch.float32).requires_grad_()
        weight = randn(vocab, 8, dtype=torch.float32).requires_grad_()
        # The one tensor that must be as long as the vocabulary is the weight's gradient.
        with LargestTensor(weight.shape) as mode:
            stats = linear_token_statistics(hidden, weight, torch.arange(40), softcap=30.0)
            assert stats.logprob is not None
            torch.autograd.grad((stats.logprob + stats.entropy).sum(), (hidden, weight))
        largest.append(mode.largest)
    assert largest[0] == largest[1] <= 4 << 12
