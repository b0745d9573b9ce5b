"""Pauli twirling, which turns errors of gates and readout into the bit flips that clustering assumes.

Source: Wallman & Emerson, Noise tailoring for scalable quantum computation via randomized compiling
(Phys. Rev. A 94, 052325, 2016; arXiv 1512.01098), and van den Berg, Minev, Temme, Model-free
readout-error mitigation for quantum expectation values (Phys. Rev. A 105, 032620, 2022; arXiv
2012.09738); used before Q-Cluster (arXiv 2504.10801).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from szilard._extras import require
from szilard.kernels import bitstrings
from szilard.quantum.counts import Shots, read_counts


def twirl(
    circuit: Any,
    samples: int,
    *,
    rng: np.random.Generator,
    gates: bool = True,
    readout: bool = True,
    target: Any = None,
) -> tuple[list[Any], list[str]]:
    """Random equals of a circuit: Paulis around its two-qubit gates, flips before its measurements.

    Args:
        circuit: a Qiskit circuit that measures at its end.
        samples: how many.
        rng: draws Paulis and flips.
        gates: whether the gates are twirled.
        readout: whether the readout is.
        target: of a device; the Paulis are then written in its gates.

    Returns:
        The circuits, and for each the bits by which its counts are flipped; `untwirl` undoes them.

    Raises:
        ValueError: no samples, a circuit without measurements, or one that goes on after them.

    Examples:
        >>> from qiskit import QuantumCircuit
        >>> bell = QuantumCircuit(2)
        >>> bell.h(0); bell.cx(0, 1); bell.measure_all()  # doctest: +ELLIPSIS
        <...
        >>> circuits, masks = twirl(bell, 4, rng=np.random.default_rng(0))
        >>> len(circuits), {len(mask) for mask in masks}
        (4, {2})
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, but is {samples}")
    _check(circuit)
    qiskit = require("qiskit.circuit", extra="quantum")
    if gates:
        twirled = qiskit.pauli_twirl_2q_gates(
            circuit, seed=int(rng.integers(2**31)), num_twirls=samples, target=target
        )
    else:
        twirled = [circuit.copy() for _ in range(samples)]
    masks = np.zeros((samples, circuit.num_clbits), dtype=np.uint8)
    if readout:
        masks[:] = _measured(circuit) & (rng.random(masks.shape) < 0.5)
        twirled = [_flipped(each, mask) for each, mask in zip(twirled, masks, strict=True)]
    # The first bit of a register is written last.
    return twirled, ["".join(map(str, mask[::-1])) for mask in masks]


def untwirl(counts: Sequence[Any], masks: Sequence[str]) -> dict[str, int]:
    """Counts of twirled circuits, flipped back and added up.

    Args:
        counts: of each circuit, as `read_counts` takes them.
        masks: the bits by which they are flipped.

    Raises:
        ValueError: of different lengths or widths.

    Examples:
        >>> untwirl([{"00": 5, "01": 1}, {"11": 4}], ["00", "11"])
        {'00': 9, '01': 1}
    """
    if len(counts) != len(masks) or not len(counts):
        raise ValueError(
            f"counts and masks must be as many and at least one, but are {len(counts)} and {len(masks)}"
        )
    width = len(masks[0])
    read = [read_counts(each, width) for each in counts]
    flips = [read_counts({mask: 1}, width).words for mask in masks]
    words = np.concatenate([each.words ^ flip for each, flip in zip(read, flips, strict=True)])
    weights = np.concatenate([each.weights for each in read])
    merged = Shots(*bitstrings.distinct(words, weights), width)
    return dict(zip(merged.strings(), merged.weights.astype(int).tolist(), strict=True))


def suppression_options(randomizations: int = 32) -> dict[str, Any]:
    """Options of Qiskit Runtime's sampler that twirl and decouple on the device itself.

    Args:
        randomizations: random equals of each circuit.

    Returns:
        For `SamplerV2(mode, options=...)`: twirled gates and readout, and XY4 pulses on idle qubits.
        Its results are already flipped back. Simulators ignore them; `twirl` works everywhere.

    Examples:
        >>> suppression_options(16)["twirling"]["num_randomizations"]
        16
    """
    if randomizations < 1:
        raise ValueError(f"randomizations must be at least 1, but is {randomizations}")
    return {
        "twirling": {
            "enable_gates": True,
            "enable_measure": True,
            "num_randomizations": randomizations,
        },
        "dynamical_decoupling": {"enable": True, "sequence_type": "XY4"},
    }


def _check(circuit: Any) -> None:
    done: set[Any] = set()
    for step in circuit.data:
        if step.operation.name == "barrier":
            continue
        if done & {*step.qubits, *step.clbits}:
            raise ValueError("circuit must measure at its end, but goes on after a measurement")
        if step.operation.name == "measure":
            done.update(step.qubits, step.clbits)
    if not done:
        raise ValueError("circuit must measure, but has no measurement")


def _measured(circuit: Any) -> np.ndarray:
    measured = np.zeros(circuit.num_clbits, dtype=bool)
    for step in circuit.data:
        if step.operation.name == "measure":
            measured[circuit.find_bit(step.clbits[0]).index] = True
    return measured


def _flipped(circuit: Any, mask: np.ndarray) -> Any:
    flipped = circuit.copy_empty_like()
    for step in circuit.data:
        if step.operation.name == "measure" and mask[circuit.find_bit(step.clbits[0]).index]:
            flipped.x(step.qubits[0])
        flipped.append(step)
    return flipped
