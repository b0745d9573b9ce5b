import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from szilard.rl import (
    SelectionBudget,
    clip_cov_loss,
    clip_cov_select,
    first_order_entropy_change,
    kl_cov_loss,
    kl_cov_select,
    selection_metrics,
    token_covariance,
)

LOGP = torch.tensor([[-0.1, -2.0, -0.5], [-3.0, -0.2, -1.0]], dtype=torch.float64)
OLD = torch.tensor([[-0.2, -1.8, -0.5], [-2.7, -0.4, -1.3]], dtype=torch.float64)
ADV = torch.tensor([1.0, -1.0], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, True, False]])


def batch(seed, rows=4, columns=12, spread=0.3):
    g = torch.Generator().manual_seed(seed)
    logp = -torch.rand(rows, columns, generator=g, dtype=torch.float64) * 4
    old = logp + spread * torch.randn(rows, columns, generator=g, dtype=torch.float64)
    adv = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    mask = torch.rand(rows, columns, generator=g) < 0.8
    mask[0, 0] = True
    return logp, old, adv, mask


def gradient(loss, logp):
    return torch.autograd.grad(loss, logp)[0]


class TestTokenCovariance:
    def test_worked_example(self):
        c = token_covariance(LOGP, ADV, MASK)
        expected = torch.tensor([[0.848, -0.672, 0.528], [2.208, -1.152, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(c, expected, atol=1e-12, rtol=0)
        assert (c.sum() / 5).item() == pytest.approx(0.352, abs=1e-12)

    @given(st.integers(0, 10_000))
    def test_its_mean_is_the_population_covariance(self, seed):
        logp, _, adv, mask = batch(seed)
        mean = token_covariance(logp, adv, mask).sum() / mask.sum()
        reference = np.cov(adv[mask].numpy(), logp[mask].numpy(), bias=True)[0, 1]
        assert mean.item() == pytest.approx(reference, abs=1e-12)

    @given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(-5, 5))
    def test_is_invariant_to_shifts_of_either_argument_and_odd_in_the_advantage(self, seed, a, b):
        logp, _, adv, mask = batch(seed)
        c = token_covariance(logp, adv, mask)
        torch.testing.assert_close(token_covariance(logp + a, adv + b, mask), c, atol=1e-11, rtol=0)
        torch.testing.assert_close(token_covariance(logp, -adv, mask), -c)

    def test_padding_never_enters_not_even_as_nan(self):
        logp, _, adv, mask = batch(1)
        dirty = token_covariance(
            logp.masked_fill(~mask, math.nan), adv.masked_fill(~mask, math.inf), mask
        )
        assert torch.equal(dirty, token_covariance(logp, adv, mask))
        assert not dirty[~mask].any()

    def test_bfloat16_inputs_accumulate_in_float32(self):
        assert token_covariance(LOGP.bfloat16(), ADV.bfloat16(), MASK).dtype == torch.float32

    def test_a_constant_advantage_has_no_covariance(self):
        assert not token_covariance(LOGP, torch.ones(2, dtype=torch.float64), MASK).any()


class TestClipCov:
    def test_without_candidates_it_is_the_clipped_surrogate(self):
        logp, old, adv, mask = batch(2, spread=1.0)
        logp.requires_grad_()
        loss, metrics = clip_cov_loss(logp, old, adv, mask, bounds=(1e6, 2e6), eps=(0.2, 0.28))
        r = (logp - old).exp()
        ppo = torch.maximum(-adv * r, -adv * r.clamp(0.8, 1.28))[mask].mean()
        assert torch.equal(loss, ppo) or loss.item() == pytest.approx(ppo.item(), abs=1e-15)
        torch.testing.assert_close(gradient(loss, logp), gradient(ppo, logp), atol=1e-15, rtol=0)
        assert metrics["selected"] == 0

    @given(st.integers(0, 10_000), st.floats(0.01, 1.0))
    def test_draws_its_number_strictly_inside_the_bounds_and_never_a_clipped_token(
        self, seed, ratio
    ):
        logp, old, adv, mask = batch(seed, spread=1.0)
        c = token_covariance(logp, adv, mask)
        r = (logp - old).exp()
        clipped = -adv * r.clamp(0.8, 1.2) > -adv * r
        candidates = mask & (c > 0.1) & (c < 1.5) & ~clipped
        selected = clip_cov_select(
            logp, old, adv, mask, ratio, (0.1, 1.5), (0.2, 0.2), torch.Generator().manual_seed(seed)
        )
        assert not (selected & ~candidates).any()
        assert selected.sum() == min(max(int(ratio * mask.sum().item()), 1), candidates.sum())

    def test_every_candidate_is_equally_likely(self):
        logp, old, adv, mask = batch(3, rows=2, columns=8, spread=0.0)
        g = torch.Generator().manual_seed(0)
        draws = [
            clip_cov_select(logp, old, adv, mask, 0.1, (0.0, 9.0), generator=g) for _ in range(4000)
        ]
        frequency = torch.stack(draws).double().mean(0)
        candidates = mask & (token_covariance(logp, adv, mask) > 0)
        p = 1 / candidates.sum().item()
        # Five standard errors of a Bernoulli frequency over 4000 draws.
        assert (frequency[candidates] - p).abs().max() < 5 * math.sqrt(p * (1 - p) / 4000)

    def test_removed_tokens_lose_value_and_gradient_but_still_count(self):
        logp = LOGP.clone().requires_grad_()
        loss, metrics = clip_cov_loss(logp, OLD, ADV, MASK, ratio=1.0)
        r = (LOGP - OLD).exp()
        kept = torch.tensor([[1, 1, 1], [0, 1, 0]], dtype=torch.float64)
        # eps (1, 1): every ratio lies in [0, 2], so the surrogate is -A r.
        assert loss.item() == pytest.approx((-ADV[:, None] * r * kept).sum().item() / 5, abs=1e-15)
        assert gradient(loss, logp)[1, 0] == 0
        assert metrics["selected"].item() == pytest.approx(0.2)
        assert metrics["selected_in/unlikely_bad"] == 1

    def test_is_deterministic_under_a_generator(self):
        logp, old, adv, mask = batch(5)
        a, b = (
            clip_cov_select(
                logp, old, adv, mask, 0.1, (0.0, 9.0), generator=torch.Generator().manual_seed(7)
            )
            for _ in range(2)
        )
        assert torch.equal(a, b)

    def test_a_count_of_zero_removes_nothing(self):
        logp, old, adv, mask = batch(5)
        assert not clip_cov_select(logp, old, adv, mask, bounds=(0.0, 9.0), count=0).any()


class TestKLCov:
    def test_worked_example(self):
        logp = LOGP.clone().requires_grad_()
        loss, _ = kl_cov_loss(logp, OLD, ADV, MASK, fraction=0.4, beta=1.0)
        assert loss.item() == pytest.approx(-0.1123361, abs=1e-7)
        expected = torch.tensor(
            [[-0.021034, -0.163746, -0.2], [-0.051836, 0.244281, 0.0]], dtype=torch.float64
        )
        torch.testing.assert_close(gradient(loss, logp), expected, atol=1e-6, rtol=0)
        assert kl_cov_select(LOGP, ADV, MASK, 0.4).nonzero().tolist() == [[0, 0], [1, 0]]

    @given(st.integers(0, 10_000), st.floats(0.01, 1.0))
    def test_selects_the_largest_covariances(self, seed, fraction):
        logp, _, adv, mask = batch(seed)
        selected = kl_cov_select(logp, adv, mask, fraction)
        c = token_covariance(logp, adv, mask)
        assert selected.sum() == max(1, int(fraction * mask.sum().item()))
        assert not (selected & ~mask).any()
        rest = mask & ~selected
        if rest.any():
            assert c[selected].min() >= c[rest].max()

    def test_without_penalty_it_is_the_unclipped_surrogate(self):
        logp, old, adv, mask = batch(6, spread=2.0)
        loss, metrics = kl_cov_loss(logp, old, adv, mask, fraction=0.5, beta=0.0)
        # Summation order differs: a few ulps of a mean of 40 terms of size up to e^4.
        assert loss.item() == pytest.approx(
            (-adv * (logp - old).exp())[mask].mean().item(), rel=1e-12
        )
        assert metrics["kl_penalty"] == 0

    @given(st.integers(0, 1000), st.floats(0, 100))
    def test_on_policy_it_is_policy_gradient_for_any_beta(self, seed, beta):
        logp, _, adv, mask = batch(seed)
        logp.requires_grad_()
        loss, _ = kl_cov_loss(logp, logp.detach().clone(), adv, mask, fraction=0.5, beta=beta)
        policy_gradient = torch.where(mask, -adv, 0.0) / mask.sum()
        torch.testing.assert_close(gradient(loss, logp), policy_gradient, atol=1e-15, rtol=0)

    def test_the_penalty_is_reported_apart(self):
        free, _ = kl_cov_loss(LOGP, OLD, ADV, MASK, fraction=0.4, beta=0.0)
        held, metrics = kl_cov_loss(LOGP, OLD, ADV, MASK, fraction=0.4, beta=3.0)
        assert metrics["kl_penalty"].item() == pytest.approx((held - free).item(), abs=1e-15)
        assert metrics["kl_penalty"].item() == pytest.approx(3 * (0.1 + 0.3) / 5, abs=1e-15)


class TestReductions:
    def test_agree_with_the_per_token_loss(self):
        logp, old, adv, mask = batch(8)
        each, _ = kl_cov_loss(logp, old, adv, mask, fraction=0.1, reduction="none")
        assert not each[~mask].any()
        by = {
            "sum": each.sum(),
            "token_mean": each[mask].mean(),
            "sequence_mean": (each.sum(-1) / mask.sum(-1)).mean(),
        }
        for reduction, value in by.items():
            loss, _ = kl_cov_loss(logp, old, adv, mask, fraction=0.1, reduction=reduction)
            assert loss.item() == pytest.approx(value.item(), rel=1e-12)

    def test_a_fully_masked_sequence_contributes_zero_to_the_sequence_mean(self):
        mask = MASK.clone()
        mask[1] = False
        loss, _ = clip_cov_loss(LOGP, OLD, ADV, mask, bounds=(8.0, 9.0), reduction="sequence_mean")
        each = (LOGP - OLD).exp()[0].mean()
        assert loss.item() == pytest.approx(-each.item() / 2, abs=1e-12)

    def test_gradients_stay_finite_when_padding_holds_nan(self):
        logp = LOGP.masked_fill(~MASK, math.nan).requires_grad_()
        for loss, _ in (
            clip_cov_loss(logp, OLD, ADV, MASK),
            kl_cov_loss(logp, OLD, ADV, MASK),
        ):
            assert gradient(loss, logp).isfinite().all()


class TestMetrics:
    def test_quadrant_shares_sum_to_one_or_to_zero(self):
        logp, old, adv, mask = batch(9)
        for selected, total in (
            (kl_cov_select(logp, adv, mask, 0.3), 1.0),
            (torch.zeros_like(mask), 0.0),
        ):
            metrics = selection_metrics(logp, old, adv, mask, selected)
            shares = [v.item() for k, v in metrics.items() if k.startswith("selected_in/")]
            assert len(shares) == 4
            assert sum(shares) == pytest.approx(total)

    def test_positive_covariances_lie_in_likely_good_and_unlikely_bad(self):
        logp, old, adv, mask = batch(10)
        metrics = selection_metrics(logp, old, adv, mask, token_covariance(logp, adv, mask) > 0)
        share = metrics["selected_in/likely_good"] + metrics["selected_in/unlikely_bad"]
        assert share.item() == pytest.approx(1.0)


class TestSelectionBudget:
    @given(st.lists(st.integers(0, 200), min_size=1, max_size=50), st.floats(1e-4, 1.0))
    def test_pieces_add_up_to_the_dose_of_the_whole(self, pieces, fraction):
        budget = SelectionBudget(fraction)
        counts = [budget.take(n) for n in pieces]
        assert abs(sum(counts) - fraction * sum(pieces)) < 1 + 1e-6
        assert all(0 <= k <= n for k, n in zip(counts, pieces, strict=True))

    def test_rounding_never_loses_a_token(self):
        assert SelectionBudget(0.29).take(100) == 29


class TestFirstOrderEntropyChange:
    Z = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)

    def advantage(self):
        adv = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
        return adv - (self.Z.softmax(-1) * adv).sum()

    def change(self, eta, kind):
        adv = self.advantage()
        move = self.Z.softmax(-1) * adv if kind == "pg" else adv
        before, after = (
            torch.distributions.Categorical(logits=z) for z in (self.Z, self.Z + eta * move)
        )
        return (after.entropy() - before.entropy()).item()

    @pytest.mark.parametrize(
        ("kind", "formula", "exact"),
        [("pg", -1.13013e-4, -1.13032e-4), ("npg", -1.92698e-4, -1.92796e-4)],
    )
    def test_worked_example(self, kind, formula, exact):
        value = first_order_entropy_change(self.Z, self.advantage(), 1e-3, kind).item()
        # The reference values are quoted to six digits.
        assert value == pytest.approx(formula, abs=5e-10)
        assert self.change(1e-3, kind) == pytest.approx(exact, abs=5e-10)

    @pytest.mark.parametrize("kind", ["pg", "npg"])
    def test_its_error_shrinks_as_the_square_of_the_step(self, kind):
        errors = [
            self.change(eta, kind)
            - first_order_entropy_change(self.Z, self.advantage(), eta, kind).item()
            for eta in (1e-2, 1e-3)
        ]
        # A factor 10 in eta is a factor 100 in the error, up to the third order's few per cent.
        assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)

    def test_actions_of_probability_zero_contribute_nothing(self):
        z = torch.cat([self.Z, torch.tensor([-torch.inf], dtype=torch.float64)])
        adv = torch.cat([self.advantage(), torch.tensor([5.0], dtype=torch.float64)])
        torch.testing.assert_close(
            first_order_entropy_change(z, adv, 0.1),
            first_order_entropy_change(self.Z, self.advantage(), 0.1),
        )

    def test_the_uniform_policy_is_stationary_in_entropy(self):
        assert (
            first_order_entropy_change(torch.zeros(3, 5), torch.randn(3, 5), 1.0).abs().max() < 1e-7
        )


@pytest.mark.usefixtures("unhooked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"logp": LOGP[:, :2]}, "old_logp: shape"),
            ({"old_logp": OLD[:1]}, "old_logp: shape"),
            ({"mask": MASK[:, :2]}, "mask: shape"),
            ({"adv": torch.ones(3, dtype=torch.float64)}, "adv: shape"),
            ({"logp": LOGP[0]}, "logp: shape"),
            ({"mask": torch.zeros_like(MASK)}, "mask: no True"),
            ({"mask": MASK.float()}, "mask: dtype"),
            ({"logp": LOGP * math.nan}, "logp: 5 values"),
            ({"adv": ADV * math.inf}, "adv: 5 values"),
            ({"reduction": "mean"}, "reduction: 'mean'"),
            ({"count": 6}, "count: 6"),
            ({"count": -1}, "count: -1"),
        ],
    )
    @pytest.mark.parametrize("loss", [clip_cov_loss, kl_cov_loss])
    def test_both_losses_name_the_argument(self, loss, change, message):
        arguments = {"logp": LOGP, "old_logp": OLD, "adv": ADV, "mask": MASK} | change
        with pytest.raises(ValueError, match=message):
            loss(**arguments)

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
    def test_shares_lie_in_the_unit_interval(self, share):
        with pytest.raises(ValueError, match="ratio"):
            clip_cov_loss(LOGP, OLD, ADV, MASK, ratio=share)
        with pytest.raises(ValueError, match="fraction"):
            kl_cov_loss(LOGP, OLD, ADV, MASK, fraction=share)
        with pytest.raises(ValueError, match="fraction"):
            SelectionBudget(share)

    def test_other_settings(self):
        with pytest.raises(ValueError, match="beta"):
            kl_cov_loss(LOGP, OLD, ADV, MASK, beta=-1.0)
        with pytest.raises(ValueError, match="bounds"):
            clip_cov_loss(LOGP, OLD, ADV, MASK, bounds=(5.0, 1.0))
        with pytest.raises(ValueError, match="eps"):
            clip_cov_loss(LOGP, OLD, ADV, MASK, eps=(-0.1, 1.0))
        with pytest.raises(ValueError, match="kind"):
            first_order_entropy_change(LOGP, LOGP, 0.1, "trpo")
        with pytest.raises(ValueError, match="adv: shape"):
            first_order_entropy_change(LOGP, ADV, 0.1)
        with pytest.raises(ValueError, match="logits"):
            first_order_entropy_change(torch.tensor([math.inf, 0.0]), torch.zeros(2), 0.1)
