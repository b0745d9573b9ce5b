"""The effective rate of bit flips of a circuit on a device, learned from circuits whose result is known.

Source: Patil, Baron, Zhou, Q-Cluster: Quantum Error Mitigation Through Noise-Aware Unsupervised
Learning (IEEE QCE 2025; arXiv 2504.10801).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.utils.validation import check_is_fitted

from szilard.quantum.bit_flips import LARGEST_RATE, effective_rate
from szilard.quantum.counts import normalized_entropy

FEATURES = (
    "qubits",
    "measurements",
    "rz",
    "sx",
    "x",
    "two-qubit gates",
    "normalised entropy",
    "success probability",
)
"""Names of the features, in their order."""

_PASSIVE = frozenset({"barrier", "delay"})


def success_probability(circuit: Any, backend: Any) -> float:
    """Estimated success probability: that no gate, no decay and no readout fails.

    The product over gates of 1 - e_g - (1 - exp(-t_g / T1)), with the mean T1 of a gate's qubits, times
    that over measurements of 1 - e_m, as the device's calibration has them.

    Args:
        circuit: a Qiskit circuit, transpiled for the device.
        backend: a Qiskit backend with a calibrated `target`, real or fake.

    Returns:
        In [0, 1].

    Raises:
        ValueError: an instruction that the device has not, on those qubits.

    Source: Patil et al. 2025 (arXiv 2504.10801), features of the error model.
    """
    target, success = backend.target, 1.0
    for step in circuit.data:
        name = step.operation.name
        if name in _PASSIVE:
            continue
        qubits = tuple(circuit.find_bit(qubit).index for qubit in step.qubits)
        if name not in target or qubits not in target[name]:
            raise ValueError(
                f"circuit must be transpiled for backend, which has no {name!r} on qubits {qubits}"
            )
        properties = target[name][qubits]
        error = (properties and properties.error) or 0.0
        decay = 0.0
        if name != "measure" and properties and properties.duration:
            t1 = float(np.mean([target.qubit_properties[qubit].t1 for qubit in qubits]))
            decay = -math.expm1(-properties.duration / t1)
        success *= max(0.0, 1 - error - decay)
    return success


def circuit_features(circuit: Any, backend: Any, counts: Any) -> Float[np.ndarray, " features"]:
    """What the error model looks at: `FEATURES` of a circuit, its device and its counts.

    Args:
        circuit: a Qiskit circuit, transpiled for the device.
        backend: the device.
        counts: what it measured, as `read_counts` takes them.

    Raises:
        ValueError: as `success_probability` and `read_counts`.

    Source: Patil et al. 2025 (arXiv 2504.10801), features of the error model.
    """
    success = success_probability(circuit, backend)
    steps = [step for step in circuit.data if step.operation.name not in _PASSIVE]
    names = [step.operation.name for step in steps]
    used = {qubit for step in steps for qubit in step.qubits}
    return np.array(
        [
            len(used),
            names.count("measure"),
            names.count("rz"),
            names.count("sx"),
            names.count("x"),
            sum(len(step.qubits) == 2 for step in steps),
            normalized_entropy(counts),
            success,
        ],
        dtype=np.float64,
    )


class EffectiveErrorRate(BaseEstimator):
    """Predicts the rate of bit flips that stands for all errors of a circuit on a device.

    Extremely randomised trees on `FEATURES`. Trained on circuits whose ideal distribution is known, by
    the rate at which flipping its bits comes closest to what was measured (`effective_rate`).

    Args:
        n_estimators: trees.
        random_state: seed of the trees.

    Attributes:
        rates_: effective rates of the training circuits.
        features_: their features.
        regressor_: the trees.

    Examples:
        >>> model = EffectiveErrorRate(n_estimators=10).fit_features(
        ...     np.arange(16.0).reshape(2, 8), np.array([0.1, 0.2]))
        >>> model.predict_features(np.arange(8.0)[None]).round(3)
        array([0.1])

    Source: Patil, Baron, Zhou, Q-Cluster (IEEE QCE 2025; arXiv 2504.10801), effective error rate.
    """

    def __init__(self, n_estimators: int = 100, random_state: int = 0) -> None:
        self.n_estimators = n_estimators
        self.random_state = random_state

    def fit(
        self,
        circuits: Sequence[Any],
        backends: Sequence[Any],
        ideal: Sequence[Any],
        noisy: Sequence[Any],
    ) -> EffectiveErrorRate:
        """Trains on circuits, the device of each, its ideal distribution and its counts.

        Raises:
            ValueError: of different lengths, or as `circuit_features` and `effective_rate`.
        """
        sizes = {len(circuits), len(backends), len(ideal), len(noisy)}
        if len(sizes) > 1 or not len(circuits):
            raise ValueError(
                "circuits, backends, ideal and noisy must be as many and at least one, but are "
                f"{len(circuits)}, {len(backends)}, {len(ideal)} and {len(noisy)}"
            )
        described = zip(circuits, backends, noisy, strict=True)
        features = np.stack([circuit_features(*each) for each in described])
        rates = np.array([effective_rate(*pair) for pair in zip(ideal, noisy, strict=True)])
        return self.fit_features(features, rates)

    def fit_features(
        self, features: Float[np.ndarray, "circuits 8"], rates: Float[np.ndarray, " circuits"]
    ) -> EffectiveErrorRate:
        """Trains on features and rates that were worked out before."""
        trees = ExtraTreesRegressor(self.n_estimators, random_state=self.random_state)
        self.features_, self.rates_ = features, rates
        self.regressor_ = trees.fit(features, rates)
        return self

    def predict(self, circuit: Any, backend: Any, counts: Any) -> float:
        """The rate for counts of a circuit on a device, for `QCluster(p=...)`."""
        return float(self.predict_features(circuit_features(circuit, backend, counts)[None])[0])

    def predict_features(
        self, features: Float[np.ndarray, "circuits 8"]
    ) -> Float[np.ndarray, " circuits"]:
        """The rates for rows of features."""
        check_is_fitted(self)
        return np.clip(self.regressor_.predict(features), 0.0, LARGEST_RATE)
