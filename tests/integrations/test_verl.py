"""The verl adapter against a stand-in of verl's registry, and against verl itself where it is installed."""

import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from szilard.rl import clip_cov_loss, kl_cov_loss

NAME = "szilard.integrations.verl"


@dataclass
class PolicyLoss:
    clip_cov_ratio: float = 0.0002
    clip_cov_lb: float = 1.0
    clip_cov_ub: float = 5.0
    kl_cov_ratio: float = 0.0002
    ppo_kl_coef: float = 0.1


@dataclass
class Actor:
    clip_ratio: float = 0.2
    clip_ratio_low: float | None = 1.0
    clip_ratio_high: float | None = 1.0
    policy_loss: PolicyLoss = field(default_factory=PolicyLoss)
    global_batch_info: dict = field(default_factory=dict)


def agg_loss(
    loss_mat,
    loss_mask,
    loss_agg_mode,
    dp_size=1,
    batch_num_tokens=None,
    global_batch_size=None,
    loss_scale_factor=None,
):
    assert loss_agg_mode == "token-mean"
    tokens = loss_mask.sum() if batch_num_tokens is None else batch_num_tokens
    return (loss_mat * loss_mask).sum() / tokens * dp_size


@pytest.fixture
def registry(monkeypatch):
    """A module with the names and signatures of `verl.trainer.ppo.core_algos`, and nothing else."""
    losses = {}

    def register_policy_loss(name):
        def decorator(function):
            losses[name] = function
            return function

        return decorator

    for name in ("verl", "verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.core_algos"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    module.register_policy_loss, module.agg_loss = register_policy_loss, agg_loss
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    importlib.import_module(NAME)
    yield losses
    sys.modules.pop(NAME, None)


def batch(seed=0, rows=6, columns=20):
    g = torch.Generator().manual_seed(seed)
    logp = -3 * torch.rand(rows, columns, generator=g, dtype=torch.float64)
    old = logp + 0.3 * torch.randn(rows, columns, generator=g, dtype=torch.float64)
    adv = torch.randn(rows, 1, generator=g, dtype=torch.float64).expand(rows, columns)
    mask = torch.rand(rows, columns, generator=g) < 0.8
    return logp.requires_grad_(), old, adv, mask


def call(loss, tensors, config, mask=None, **kwargs):
    logp, old, adv, own = tensors
    return loss(
        old_log_prob=old,
        log_prob=logp,
        advantages=adv,
        response_mask=own if mask is None else mask,
        loss_agg_mode="token-mean",
        config=config,
        **kwargs,
    )


def test_importing_registers_both_losses(registry):
    assert set(registry) == {"szilard_clip_cov", "szilard_kl_cov"}


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_kl_cov_is_the_framework_free_loss(registry, dtype):
    tensors = batch()
    config = Actor(policy_loss=PolicyLoss(kl_cov_ratio=0.1, ppo_kl_coef=1.0))
    loss, metrics = call(registry["szilard_kl_cov"], tensors, config, tensors[3].to(dtype))
    expected, reference = kl_cov_loss(*tensors, 0.1, 1.0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    ours, theirs = (torch.autograd.grad(x, tensors[0])[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)
    assert metrics["actor/kl_penalty"] == pytest.approx(reference["kl_penalty"].item())


def test_clip_cov_is_the_framework_free_loss_when_every_candidate_goes(registry):
    tensors = batch()
    config = Actor(policy_loss=PolicyLoss(clip_cov_ratio=1.0, clip_cov_lb=0.1))
    loss, metrics = call(registry["szilard_clip_cov"], tensors, config)
    expected, reference = clip_cov_loss(*tensors, 1.0, (0.1, 5.0))
    assert reference["selected"] > 0.1
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert metrics["actor/selected"] == pytest.approx(reference["selected"].item())


def test_a_narrower_ratio_clip_than_the_papers_is_said_aloud(registry):
    config = Actor(clip_ratio_low=None, clip_ratio_high=0.28)
    with pytest.warns(UserWarning, match=r"clip_ratio_low=0.2, clip_ratio_high=0.28"):
        call(registry["szilard_clip_cov"], batch(), config)


def test_the_dose_is_that_of_all_tokens_however_they_are_split(registry):
    tensors = batch(rows=8)
    config = Actor(policy_loss=PolicyLoss(kl_cov_ratio=0.05, ppo_kl_coef=1.0))
    chosen = 0
    for row in range(8):
        piece = [t[row : row + 1] for t in tensors]
        _, metrics = call(registry["szilard_kl_cov"], piece, config)
        chosen += round(metrics["actor/selected"] * piece[3].sum().item())
    assert chosen == int(0.05 * tensors[3].sum().item())


def test_importance_weights_and_global_counts_pass_through(registry):
    tensors = batch()
    info = {
        "dp_size": 2,
        "batch_num_tokens": 500,
        "global_batch_size": 12,
        "loss_scale_factor": None,
    }
    config = Actor(
        policy_loss=PolicyLoss(kl_cov_ratio=0.1, ppo_kl_coef=1.0), global_batch_info=info
    )
    weights = torch.rand(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss, _ = call(registry["szilard_kl_cov"], tensors, config, rollout_is_weights=weights)
    each, _ = kl_cov_loss(*tensors, 0.1, 1.0, reduction="none")
    assert loss.item() == pytest.approx((each * weights).sum().item() / 500 * 2, abs=1e-12)


@pytest.mark.parametrize("name", ["szilard_clip_cov", "szilard_kl_cov"])
def test_a_micro_batch_without_any_token_has_a_zero_gradient(registry, name):
    logp, old, adv, mask = batch()
    config = Actor(global_batch_info={"batch_num_tokens": 100})
    loss, _ = call(registry[name], (logp, old, adv, torch.zeros_like(mask)), config)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logp)[0].any()


def test_without_verl_registering_names_it(monkeypatch):
    if importlib.util.find_spec("verl") is not None:
        pytest.skip("verl is installed")
    module = importlib.import_module(NAME)
    with pytest.raises(ImportError, match="verl"):
        module.register()


class TestPeer:
    """Agreement with verl's own losses, value and gradient."""

    @pytest.fixture
    def peer(self):
        return pytest.importorskip("verl.trainer.ppo.core_algos")

    @pytest.fixture
    def config(self):
        configs = pytest.importorskip("verl.workers.config")
        policy = configs.PolicyLossConfig(
            clip_cov_ratio=1.0, clip_cov_lb=0.1, clip_cov_ub=1.0, kl_cov_ratio=0.1, ppo_kl_coef=1.0
        )
        return configs.FSDPActorConfig(
            strategy="fsdp",
            rollout_n=8,
            use_dynamic_bsz=True,
            clip_ratio=1.0,
            clip_ratio_low=0.3,
            clip_ratio_high=0.4,
            policy_loss=policy,
        )

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
    def test_both_losses_and_gradients_agree(self, peer, config, name, seed):
        importlib.import_module(NAME).register()
        results = []
        for loss in (peer.get_policy_loss_fn(name), peer.get_policy_loss_fn(f"szilard_{name}")):
            tensors = batch(seed)
            value, _ = call(loss, tensors, config, tensors[3].double())
            results.append((value, torch.autograd.grad(value, tensors[0])[0]))
        (theirs, their_gradient), (ours, our_gradient) = results
        # Both in float64; rounding lies far below this bound.
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
        torch.testing.assert_close(our_gradient, their_gradient, atol=1e-6, rtol=0)
