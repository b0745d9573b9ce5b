"""Circuits on a device with a calibration: features, trained rates, twirled circuits."""

import math

import numpy as np
import pytest

from szilard.quantum import (
    EffectiveErrorRate,
    QCluster,
    bitflip,
    circuit_features,
    hellinger_fidelity,
    normalized_entropy,
    success_probability,
    suppression_options,
    twirl,
    untwirl,
)


@pytest.fixture(scope="module")
def backend():
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    return FakeManilaV2()


def ghz(n):
    from qiskit import QuantumCircuit

    circuit = QuantumCircuit(n, n)
    circuit.h(0)
    for i in range(n - 1):
        circuit.cx(i, i + 1)
    circuit.measure(range(n), range(n))
    return circuit


def on(backend, circuit):
    from qiskit import transpile

    return transpile(circuit, backend, seed_transpiler=0, optimization_level=1)


def counted(simulator, circuits, shots):
    result = simulator.run(circuits, shots=shots, seed_simulator=1).result()
    return [result.get_counts(i) for i in range(len(circuits))]


def test_success_is_the_product_over_gates_and_readout(backend):
    from qiskit import QuantumCircuit

    circuit = QuantumCircuit(backend.num_qubits, 2)
    circuit.sx(0)
    circuit.cx(0, 1)
    circuit.barrier()
    circuit.measure([0, 1], [0, 1])
    target, t1 = backend.target, [backend.target.qubit_properties[q].t1 for q in (0, 1)]
    single, pair = target["sx"][(0,)], target["cx"][(0, 1)]
    expected = single.error + (1 - math.exp(-single.duration / t1[0]))
    expected = (1 - expected) * (1 - pair.error - (1 - math.exp(-pair.duration / np.mean(t1))))
    for qubit in (0, 1):
        expected *= 1 - target["measure"][(qubit,)].error
    assert success_probability(circuit, backend) == pytest.approx(expected, rel=1e-12)


def test_features_count_what_the_circuit_has(backend):
    counts = {"000": 60, "111": 40}
    circuit = on(backend, ghz(3))
    found = circuit_features(circuit, backend, counts)
    gates = circuit.count_ops()
    expected = [3, 3, gates["rz"], gates["sx"], gates.get("x", 0), gates["cx"]]
    np.testing.assert_array_equal(found[:6], expected)
    assert found[6] == normalized_entropy(counts)
    assert 0 < found[7] == success_probability(circuit, backend) < 1


def test_a_circuit_that_the_device_cannot_run_is_refused(backend):
    with pytest.raises(ValueError, match="transpiled for backend, which has no 'h'"):
        success_probability(ghz(2), backend)


def test_trees_learn_the_rates_they_were_shown(backend):
    rng = np.random.default_rng(0)
    circuits = [on(backend, ghz(n)) for n in (2, 3, 4, 5) for _ in range(3)]
    sizes = [n for n in (2, 3, 4, 5) for _ in range(3)]
    ideal = [{"0" * n: 1, "1" * n: 1} for n in sizes]
    noisy = [bitflip(each, 0.02 * n, 4096, rng) for each, n in zip(ideal, sizes, strict=True)]
    model = EffectiveErrorRate().fit(circuits, [backend] * 12, ideal, noisy)
    np.testing.assert_allclose(model.rates_, 0.02 * np.array(sizes), atol=0.0101)
    fresh = bitflip(ideal[4], 0.06, 4096, rng)
    rate = model.predict(circuits[4], backend, fresh)
    assert rate == pytest.approx(0.06, abs=0.02)
    again = EffectiveErrorRate().fit_features(model.features_, model.rates_)
    assert again.predict(circuits[4], backend, fresh) == rate
    mitigated = QCluster(rate).mitigate(fresh)
    assert hellinger_fidelity(ideal[4], mitigated) > hellinger_fidelity(ideal[4], fresh)


def test_training_wants_as_many_of_everything(backend):
    with pytest.raises(ValueError, match="are 1, 2, 1 and 1"):
        EffectiveErrorRate().fit([ghz(2)], [backend] * 2, [{"00": 1}], [{"00": 1}])


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("readout", [True, False])
def test_twirled_circuits_measure_the_same(gates, readout):
    from qiskit_aer import AerSimulator

    circuit = ghz(4)
    circuits, masks = twirl(circuit, 6, rng=np.random.default_rng(0), gates=gates, readout=readout)
    assert len(circuits) == len(masks) == 6
    assert any("1" in mask for mask in masks) == readout
    merged = untwirl(counted(AerSimulator(), circuits, 200), masks)
    assert sum(merged.values()) == 1200
    assert set(merged) == {"0000", "1111"}


def test_twirled_readout_is_as_often_wrong_on_zeros_as_on_ones():
    from qiskit import QuantumCircuit
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import NoiseModel, ReadoutError

    model = NoiseModel()
    model.add_all_qubit_readout_error(ReadoutError([[0.98, 0.02], [0.2, 0.8]]))
    simulator = AerSimulator(noise_model=model)
    circuit = QuantumCircuit(2, 2)
    circuit.x(1)
    circuit.measure([0, 1], [0, 1])
    plainly = counted(simulator, [circuit], 40_000)[0]
    circuits, masks = twirl(circuit, 40, rng=np.random.default_rng(1))
    twirled = untwirl(counted(simulator, circuits, 1_000), masks)

    def wrong(counts):
        return [
            sum(c for s, c in counts.items() if s[place] != right) / sum(counts.values())
            for place, right in ((0, "1"), (1, "0"))
        ]

    assert np.abs(np.array(wrong(plainly)) - [0.2, 0.02]).max() < 0.01
    # Half of forty circuits flip a bit, give or take eight per cent.
    assert np.abs(np.array(wrong(twirled)) - 0.11).max() < 0.05


def test_twirls_follow_their_generator_and_flip_measured_bits_alone():
    from qiskit import QuantumCircuit

    circuit = QuantumCircuit(3, 5)
    circuit.cx(0, 1)
    circuit.measure([0, 1], [0, 4])
    first, masks = twirl(circuit, 20, rng=np.random.default_rng(2))
    second, again = twirl(circuit, 20, rng=np.random.default_rng(2))
    assert (masks, first) == (again, second)
    assert all(mask[1:4] == "000" for mask in masks)
    assert {mask[0] for mask in masks} == {mask[4] for mask in masks} == {"0", "1"}


def test_circuits_that_cannot_be_twirled_are_refused():
    from qiskit import QuantumCircuit

    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="has no measurement"):
        twirl(QuantumCircuit(2), 2, rng=rng)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        twirl(ghz(2), 0, rng=rng)
    later = ghz(2)
    later.x(0)
    with pytest.raises(ValueError, match="goes on after a measurement"):
        twirl(later, 2, rng=rng)
    with pytest.raises(ValueError, match="as many and at least one, but are 1 and 2"):
        untwirl([{"0": 1}], ["0", "1"])
    with pytest.raises(ValueError, match="strings of 2 bits"):
        untwirl([{"0": 1}], ["00"])


def test_the_sampler_takes_the_options():
    from qiskit_ibm_runtime import SamplerV2
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    sampler = SamplerV2(FakeManilaV2(), options=suppression_options(8))
    assert sampler.options.twirling.enable_measure is True
    assert sampler.options.twirling.num_randomizations == 8
    assert sampler.options.dynamical_decoupling.sequence_type == "XY4"
    with pytest.raises(ValueError, match="randomizations must be"):
        suppression_options(0)
