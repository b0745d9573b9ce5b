import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from szilard.measures.spectral import (
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
)
from szilard.representations import DiffusionSpectralEntropy, RepresentationMonitor

pytestmark = pytest.mark.filterwarnings("ignore:entropy within 2 %")


def cloud(n: int = 50, d: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, d))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))


class TestEstimator:
    def test_fit_measures_what_the_function_measures(self):
        estimator = DiffusionSpectralEntropy(1.0, 2, base=2, normalization="half").fit(cloud())
        expected = diffusion_spectral_entropy(cloud(), 1.0, 2, base=2, normalization="half")
        assert estimator.entropy_ == expected == estimator.score(cloud())
        assert estimator.eigenvalues_.shape == (50,)
        assert estimator.sigma_ == 1.0

    def test_score_keeps_the_bandwidth_of_the_fitted_points(self):
        estimator = DiffusionSpectralEntropy("median").fit(cloud())
        # The same cloud ten times larger looks like points far apart at the old bandwidth.
        assert estimator.score(10 * cloud()) > estimator.entropy_ + 1
        refitted = clone(estimator).fit(10 * cloud())
        assert refitted.entropy_ == pytest.approx(estimator.entropy_)

    def test_follows_the_conventions_of_scikit_learn(self):
        estimator = DiffusionSpectralEntropy(sigma=2.0, t=3, base=2, rng=7)
        assert clone(estimator).get_params() == estimator.get_params()
        assert estimator.set_params(t=1).t == 1
        assert estimator.fit(cloud()) is estimator
        pipeline = make_pipeline(StandardScaler(), DiffusionSpectralEntropy(1.0)).fit(cloud())
        scaled = StandardScaler().fit_transform(cloud())
        assert pipeline[-1].entropy_ == diffusion_spectral_entropy(scaled, 1.0)

    def test_tensors_that_require_gradients_are_welcome(self):
        Z = torch.from_numpy(cloud()).requires_grad_()
        assert DiffusionSpectralEntropy(1.0).fit(Z).score(Z) > 0

    def test_bad_use_is_refused(self):
        with pytest.raises(NotFittedError):
            DiffusionSpectralEntropy().score(cloud())
        with pytest.raises(ValueError, match="4 columns"):
            DiffusionSpectralEntropy().fit(cloud()).score(cloud(d=5))
        with pytest.raises(ValueError, match="sigma"):
            DiffusionSpectralEntropy(sigma=-1.0).fit(cloud())
        with pytest.raises(ValueError, match="finite"):
            DiffusionSpectralEntropy().fit(np.full((3, 2), np.nan))


class TestMonitor:
    def test_measures_every_kth_step_what_the_functions_measure(self):
        model = network()
        x, y = torch.from_numpy(cloud()).float(), np.repeat([0, 1], 25)
        monitor = RepresentationMonitor(model, "1", x, y, every=3, batch_size=7, sigma=0.5, base=2)
        records = [monitor.step() for _ in range(7)]
        assert [r is not None for r in records] == [False, False, True, False, False, True, False]
        assert monitor.history == [records[2], records[5]]
        hidden = torch.tanh(model[0](x)).detach()
        record = records[2]
        assert record is not None
        # Batches of another size round the matrix product differently in float32.
        assert record.entropy == pytest.approx(
            diffusion_spectral_entropy(hidden, 0.5, base=2).item(), abs=1e-5
        )
        assert record.mutual_information == pytest.approx(
            diffusion_spectral_mutual_information(hidden, y, 0.5, base=2).value, abs=1e-5
        )
        assert (record.step, record.sigma) == (3, 0.5)

    def test_leaves_mode_gradients_hooks_and_seeds_as_they_were(self):
        model = network()
        model[2].eval()
        state = torch.random.get_rng_state()
        monitor = RepresentationMonitor(model, "2", torch.randn(20, 4), sigma="median")
        state = torch.random.get_rng_state()
        first, second = monitor.measure(), monitor.measure()
        assert first.entropy == second.entropy
        assert torch.equal(torch.random.get_rng_state(), state)
        assert model.training
        assert not model[2].training
        assert all(p.grad is None for p in model.parameters())
        assert not any(m._forward_hooks for m in model.modules())

    def test_relative_bandwidth_is_recorded_and_no_labels_give_no_information(self):
        record = RepresentationMonitor(
            network(), "1", torch.randn(20, 4), sigma="mean_norm"
        ).measure()
        assert 0 < record.sigma < 3
        assert record.mutual_information is None

    def test_vector_references_are_clustered_once(self, monkeypatch):
        x = torch.from_numpy(cloud(60))
        monitor = RepresentationMonitor(network().double(), "1", x, x.numpy(), sigma="median")
        monkeypatch.setattr("sklearn.cluster.SpectralClustering", None)
        assert math.isfinite(monitor.measure().mutual_information)

    def test_hooks_and_mode_survive_a_model_that_raises(self):
        model = network()
        monitor = RepresentationMonitor(model, "1", torch.randn(20, 5))
        with pytest.raises(RuntimeError):
            monitor.measure()
        assert model.training
        assert not any(m._forward_hooks for m in model.modules())

    def test_diverged_activations_are_named(self):
        model = network()
        nn.init.constant_(model[0].weight, math.nan)
        with pytest.raises(ValueError, match="Z must be finite"):
            RepresentationMonitor(model, "1", torch.randn(20, 4)).measure()

    def test_bad_arguments_are_refused_before_training_starts(self):
        x = torch.randn(20, 4)
        for kwargs, message in [
            ({"layer": "9"}, "no layer '9'"),
            ({"every": 0}, "every"),
            ({"batch_size": 0}, "batch_size"),
            ({"y_val": np.zeros(19, dtype=int)}, "20 rows"),
            ({"X_val": {"a": x, "b": x[:3]}}, "equally many"),
            ({"X_val": x[:0]}, "equally many"),
            ({"sigma": -1.0}, "sigma"),
            ({"t": 0}, "t must"),
            ({"y_val": np.arange(20)}, "two points"),
        ]:
            arguments = {"layer": "1", "X_val": x, **kwargs}
            with pytest.raises(ValueError, match=message):
                RepresentationMonitor(network(), **arguments)

    def test_a_transformers_trainer_logs_it(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=13,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
        )
        model = transformers.BertForSequenceClassification(config)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 13, (24, 6), generator=generator)
        labels = (tokens[:, 0] > 6).long()
        rows = [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]
        monitor = RepresentationMonitor(
            model, "bert.pooler", {"input_ids": tokens}, labels, every=2, sigma="median"
        )
        printed = []

        class Printer(transformers.TrainerCallback):
            def on_log(self, args, state, control, logs=None, **kwargs):
                printed.append(dict(logs))

        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=4,
            report_to=[],
            save_strategy="no",
            logging_steps=2,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model, arguments, train_dataset=rows, callbacks=[monitor.callback(), Printer()]
        )
        trainer.train()
        assert [record.step for record in monitor.history] == [2, 4]
        logged = [
            entry for entry in trainer.state.log_history if set(entry) == {"dse", "dsmi", "step"}
        ]
        assert [entry["dse"] for entry in logged] == [r.entropy for r in monitor.history]
        assert printed[0]["dsmi"] == monitor.history[0].mutual_information
