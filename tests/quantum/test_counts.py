import numpy as np
import pytest

from szilard.quantum import QCluster, hellinger_fidelity, read_counts

COUNTS = {"001": 3, "110": 2, "111": 1}


def found(counts, width=None):
    shots = read_counts(counts, width)
    return dict(zip(shots.strings(), shots.weights.tolist(), strict=True))


def test_every_form_of_counts_is_the_same_to_read():
    from qiskit.primitives import BitArray
    from qiskit.result import Counts

    assert found(COUNTS) == COUNTS
    assert found({"00 1": 3, "11 0": 2, "11 1": 1}) == COUNTS
    assert found({1: 3, 6: 2, 7: 1}, width=3) == COUNTS
    assert found({"0x1": 3, "0x6": 2, "0x7": 1}, width=3) == COUNTS
    assert found(Counts({"0x1": 3, "0x6": 2, "0x7": 1}, memory_slots=3)) == COUNTS
    assert found(Counts(COUNTS)) == COUNTS
    assert found(BitArray.from_counts(COUNTS)) == COUNTS
    assert found(read_counts(COUNTS)) == COUNTS
    assert found({**COUNTS, "000": 0}) == COUNTS


@pytest.mark.parametrize("width", [1, 8, 9, 64, 65, 130])
def test_arrays_of_bits_of_any_width_are_read_like_their_counts(width):
    from qiskit.primitives import BitArray

    rng = np.random.default_rng(width)
    array = BitArray.from_bool_array(rng.random((50, width)) < 0.5)
    assert found(array) == array.get_counts()


def test_results_of_the_sampler_are_read_with_their_registers_joined():
    from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
    from qiskit.primitives import StatevectorSampler

    first, second = ClassicalRegister(1, "a"), ClassicalRegister(2, "b")
    circuit = QuantumCircuit(QuantumRegister(3), first, second)
    circuit.x([0, 2])
    circuit.measure([0, 1, 2], [0, 1, 2])
    result = StatevectorSampler(seed=0).run([circuit], shots=20).result()[0]
    assert found(result) == {"101": 20}
    assert QCluster(0.01).mitigate(result) == {"101": 1.0}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "are empty"),
        ({"00": 0}, "all are 0"),
        ({"00": -1, "01": 3}, "'00' is -1"),
        ({"00": 1, "01": float("nan")}, "'01' is nan"),
        ({"00": float("inf")}, "'00' is inf"),
        ({"00": "many"}, "must be numbers"),
        ({"00": 1, "011": 3}, "'00' and '011'"),
        ({"": 1}, "one width"),
        ({"0a": 1}, "'0a'"),
        ({"0é": 1}, "0 and 1"),
        ({5: 1}, "width must be given"),
        ({"0x5": 1}, "width must be given"),
        ({(0, 1): 1}, "bit strings for keys"),
        ({"0xzz": 1}, "bit strings for keys"),
    ],
)
def test_counts_that_are_none_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        read_counts(counts)


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not have 2 bits"):
        read_counts({5: 1}, width=2)
    with pytest.raises(ValueError, match="does not have 2 bits"):
        read_counts({-1: 1}, width=2)
    with pytest.raises(ValueError, match="strings of 4 bits, but they have 3"):
        read_counts(COUNTS, width=4)
    with pytest.raises(ValueError, match="width must be at least 1"):
        read_counts(COUNTS, width=0)
    with pytest.raises(ValueError, match="same width, but have 3 and 2"):
        hellinger_fidelity(COUNTS, {"00": 1})


def test_other_things_and_empty_arrays_are_refused():
    from qiskit.primitives import BitArray

    with pytest.raises(TypeError, match="but is list"):
        read_counts(["00", "01"])
    with pytest.raises(ValueError, match="there are none"):
        read_counts(BitArray(np.zeros((0, 1), np.uint8), 3))


def test_fidelity_is_one_of_equals_symmetric_and_zero_of_strangers():
    assert hellinger_fidelity(COUNTS, {s: 10 * c for s, c in COUNTS.items()}) == pytest.approx(1)
    assert hellinger_fidelity({"0": 1}, {"1": 1}) == 0
    other = {"001": 1, "111": 4}
    assert hellinger_fidelity(COUNTS, other) == hellinger_fidelity(other, COUNTS)
    by_hand = (np.sqrt(3 / 6 * 1 / 5) + np.sqrt(1 / 6 * 4 / 5)) ** 2
    assert hellinger_fidelity(COUNTS, other) == pytest.approx(by_hand)
