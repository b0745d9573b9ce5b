import math
import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from szilard.quantum import (
    HighEntropyWarning,
    QCluster,
    bitflip,
    effective_rate,
    hellinger_fidelity,
    mixture_rate,
    normalized_entropy,
    read_counts,
)
from szilard.quantum._majority import majority_clusters
from szilard.quantum.bit_flips import table

GHZ = {"0" * 10: 1, "1" * 10: 1}
BV = {"101101110011": 1}


def demonstration() -> tuple[dict[str, int], dict[str, int]]:
    """Two strings of 8,192 shots each, every bit flipped at 0.1 with Python's own generator."""
    ideal = {"0101010101": 8192, "1111111111": 8192}
    draw, noisy = random.Random(10), {}
    for string, count in ideal.items():
        for _ in range(count):
            bits = (str(1 - int(bit)) if draw.random() < 0.1 else bit for bit in string)
            seen = "".join(bits)
            noisy[seen] = noisy.get(seen, 0) + 1
    return ideal, noisy


def plain(counts: dict[str, float], p: float, k: int) -> dict[str, float]:
    """Steps 1 to 4 over dictionaries of strings."""
    n, total = len(next(iter(counts))), sum(counts.values())

    def apart(a: str, b: str) -> int:
        return sum(x != y for x, y in zip(a, b, strict=True))

    def join(centres: list[str]) -> dict[str, int]:
        labels = {}
        for s in counts:
            d, j = min((apart(s, c), j) for j, c in enumerate(centres))
            labels[s] = j if d <= 2 * n * p * (1 - p) + 1e-9 else -1
        return labels

    centres = sorted(counts, key=lambda s: (-counts[s], s))[:k]
    for _ in range(300):
        labels, voted = join(centres), []
        for j, centre in enumerate(centres):
            members = [s for s in counts if labels[s] == j]
            ones = [sum(counts[s] for s in members if s[i] == "1") for i in range(n)]
            weight = sum(counts[s] for s in members)
            voted.append(
                "".join("1" if 2 * one >= weight else "0" for one in ones) if members else centre
            )
        if voted == centres:
            break
        centres = voted
    centres = list(dict.fromkeys(centres))
    labels = join(centres)
    masses = [
        sum(c for s, c in counts.items() if labels[s] == j) / total for j in range(len(centres))
    ]
    left = {}
    for s, c in counts.items():
        leaked = sum(
            m * p ** apart(s, z) * (1 - p) ** (n - apart(s, z))
            for m, z in zip(masses, centres, strict=True)
        )
        left[s] = max(0.0, c / total - leaked)
    left.update(zip(centres, masses, strict=True))
    whole = sum(left.values())
    return {s: v / whole for s, v in left.items() if v > 0}


@st.composite
def noisy_counts(draw: st.DrawFn) -> tuple[dict[str, float], float, int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, p = draw(st.integers(2, 9)), draw(st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.45]))
    strings = rng.integers(2, size=(draw(st.integers(1, 4)), n))
    ideal = {"".join(map(str, row)): float(rng.integers(1, 5)) for row in strings}
    return bitflip(ideal, p, draw(st.integers(1, 300)), rng), p, draw(st.integers(1, 6))


@pytest.mark.parametrize(
    ("n", "p", "expected"), [(12, 0.1, 0.9178713), (8, 0.2, 0.8250277), (10, 0.3, 0.8533539)]
)
def test_one_string_gets_what_its_binomial_cluster_holds(n, p, expected):
    mitigated = QCluster(p, n_clusters=1).mitigate(bitflip({"0" * n: 1}, p))
    inside = binom.cdf(math.floor(2 * n * p * (1 - p)), n, p)
    whole = inside + (1 - inside) * (1 - (1 - p) ** n)
    assert mitigated["0" * n] == pytest.approx(inside / whole, abs=1e-12)
    assert mitigated["0" * n] == pytest.approx(expected, abs=5e-8)  # the figures' own rounding


def test_the_demonstration_of_the_method_is_reproduced():
    ideal, noisy = demonstration()
    assert hellinger_fidelity(ideal, noisy) == pytest.approx(0.3559797623, abs=5e-11)
    cluster = QCluster(0.1, tol=0.9).fit(noisy)
    # The published figure adds its terms in another order.
    assert hellinger_fidelity(ideal, cluster.distribution_) == pytest.approx(
        0.8118617021, abs=2e-10
    )
    assert cluster.n_clusters_ == 2
    assert cluster.centroids_ == ["0101010101", "1111111111"]
    assert [k for k, _ in cluster.history_] == [2, 3]


def test_masses_belong_to_their_centroids_whatever_the_seed_of_hashes():
    code = (
        "import numpy as np; from szilard.quantum import *\n"
        "noisy = bitflip({'0101010101': 3, '1111111111': 1}, 0.1, 4096, np.random.default_rng(0))\n"
        "q = QCluster(0.1, n_clusters=2); q.mitigate(noisy)\n"
        "print(q.centroids_, q.masses_.tolist(), q.distribution_)"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "2")
    }
    assert len(shown) == 1
    assert shown.pop().startswith("['0101010101', '1111111111'] [0.5")


@given(noisy_counts())
@pytest.mark.filterwarnings("ignore::szilard.quantum.HighEntropyWarning")
def test_packed_clusters_are_those_of_plain_strings(case):
    counts, p, k = case
    k = min(k, len(counts))
    found = QCluster(p, n_clusters=k).mitigate(counts)
    expected = plain(counts, p, k)
    for string in {*found, *expected}:
        # A residual that is 0 but for rounding may be there or not.
        assert found.get(string, 0) == pytest.approx(expected.get(string, 0), abs=1e-12)


@given(noisy_counts(), st.integers(0, 511), st.randoms(use_true_random=False))
@pytest.mark.filterwarnings("ignore::szilard.quantum.HighEntropyWarning")
def test_results_are_distributions_that_forget_order_and_scale(case, mask, shuffler):
    counts, p, _ = case
    cluster = QCluster(p).fit(counts)
    found = cluster.distribution_
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    assert min(found.values()) > 0
    assert set(found) <= {*counts, *cluster.centroids_}
    assert cluster.masses_.sum() <= 1 + 1e-12
    order = list(counts)
    shuffler.shuffle(order)
    assert QCluster(p).mitigate({s: counts[s] for s in order}) == found
    tenfold = QCluster(p).mitigate({s: 10 * c for s, c in counts.items()})
    for string in {*found, *tenfold}:
        assert tenfold.get(string, 0) == pytest.approx(found.get(string, 0), abs=1e-12)


@pytest.mark.parametrize("p", [0.05, 0.15])
def test_relabelling_bits_commutes_with_mitigation_without_ties(p):
    # Exact probabilities of unequal weights: no two strings are equally frequent where it matters.
    ideal = {"0010110": 5.0, "1101001": 3.0}
    noisy = bitflip(ideal, p)
    once = QCluster(p, n_clusters=2).mitigate(noisy)
    turned = QCluster(p, n_clusters=2).mitigate({s[3:] + s[:3]: v for s, v in noisy.items()})
    flip = {s: f"{int(s, 2) ^ 0b1011001:07b}" for s in noisy}
    masked = QCluster(p, n_clusters=2).mitigate({flip[s]: v for s, v in noisy.items()})
    for s in noisy:
        assert turned.get(s[3:] + s[:3], 0) == pytest.approx(once.get(s, 0), abs=1e-12)
        assert masked.get(flip[s], 0) == pytest.approx(once.get(s, 0), abs=1e-12)


def test_without_flips_frequencies_stay():
    counts = {"0011": 5, "1100": 3, "1111": 2}
    cluster = QCluster(0.0).fit(counts)
    assert cluster.distribution_ == pytest.approx({"0011": 0.5, "1100": 0.3, "1111": 0.2})
    assert cluster.radius_ == 0


@pytest.mark.parametrize("ideal", [GHZ, BV], ids=["ghz", "bv"])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.2, 0.3])
def test_clusters_sharpen_what_flips_blurred(ideal, p):
    noisy = bitflip(ideal, p, 16_384, np.random.default_rng(0))
    before = hellinger_fidelity(ideal, noisy)
    grown = hellinger_fidelity(ideal, QCluster(p).mitigate(noisy))
    known = hellinger_fidelity(ideal, QCluster(p, n_clusters=len(ideal)).mitigate(noisy))
    assert grown > before
    assert known > max(0.6, grown - 1e-12)


def test_coinciding_centroids_count_once():
    shots = read_counts({"0000": 10, "0001": 9, "1111": 4})
    words = shots.words[[0, 0, 2]]
    centres, labels, apart = majority_clusters(shots, words, 1, 300)
    assert len(centres) == 2
    assert labels.tolist() == [0, 0, 1]
    assert apart.tolist() == [0, 1, 0]


def test_a_centroid_that_was_never_measured_keeps_its_mass():
    counts = {"110": 1, "101": 1, "011": 1}
    cluster = QCluster(0.3, n_clusters=1, radius_mul=4).fit(counts)
    assert cluster.centroids_ == ["111"]
    assert cluster.masses_.tolist() == [1.0]
    assert cluster.distribution_["111"] > 0.5
    assert cluster.strings_ == ["011", "101", "110"]
    assert cluster.labels_.tolist() == [0, 0, 0]


def test_even_votes_are_ones():
    assert QCluster(0.4, n_clusters=1).fit({"00": 1, "11": 1}).centroids_ == ["00"]
    assert QCluster(0.4, n_clusters=1, radius_mul=9).fit({"00": 1, "11": 1}).centroids_ == ["11"]


def test_a_thousand_qubits_and_strings_of_many_words_work():
    ideal = {"01" * 500: 1, "1" * 1000: 1}
    # Half a flip a shot: most strings are measured as they are.
    noisy = bitflip(ideal, 0.0005, 300, np.random.default_rng(0))
    cluster = QCluster(0.0005, n_clusters=2, radius_mul=4).fit(noisy)
    assert set(cluster.centroids_) == set(ideal)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.2, 0.3])
def test_a_uniform_distribution_is_warned_about(p):
    counts = {f"{i:010b}": 16 for i in range(1024)}
    with pytest.warns(HighEntropyWarning, match="few strings"):
        QCluster(p).fit(counts)


def test_low_entropy_is_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for p in (0.05, 0.1, 0.2, 0.3):
            QCluster(p, n_clusters=2).fit(bitflip(GHZ, p, 16_384, np.random.default_rng(0)))


# --- the rate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.2, 0.3, 0.4])
def test_the_rate_is_found_again_with_the_ideal_result(p):
    noisy = bitflip(GHZ, p, 16_384, np.random.default_rng(1))
    assert effective_rate(GHZ, bitflip(GHZ, p)) == pytest.approx(p, abs=1e-9)
    assert effective_rate(GHZ, noisy) == pytest.approx(p, abs=0.01)  # two steps of the grid


@pytest.mark.parametrize("ideal", [GHZ, BV], ids=["ghz", "bv"])
@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.2, 0.3])
def test_the_rate_is_found_again_from_counts_alone(ideal, p):
    noisy = bitflip(ideal, p, 16_384, np.random.default_rng(2))
    # Five standard errors of a frequency among 16,384 x 10 bits.
    assert mixture_rate(noisy) == pytest.approx(p, abs=5 * math.sqrt(0.25 / 163_840))
    assert QCluster().fit(noisy).p_ == mixture_rate(noisy)


def test_coin_tosses_have_no_rate_and_stay_as_they_are():
    counts = {f"{i:06b}": 100 + i % 3 for i in range(64)}
    assert mixture_rate(counts) == 0
    with pytest.warns(HighEntropyWarning):
        mitigated = QCluster().mitigate(counts)
    assert mitigated == pytest.approx(
        dict(zip(counts, read_counts(counts).probabilities, strict=True))
    )


def test_many_shots_give_the_rate_of_few():
    rng = np.random.default_rng(3)
    wide = bitflip({"01" * 50: 1, "1" * 100: 2}, 0.05, 60_000, rng)
    assert mixture_rate(wide) == pytest.approx(0.05, abs=1e-3)


@given(st.integers(1, 9), st.floats(0, 0.49), st.integers(0, 2**32 - 1))
def test_flips_are_the_sum_over_distances(n, p, seed):
    rng = np.random.default_rng(seed)
    ideal = {f"{i:0{n}b}": float(w) for i, w in enumerate(rng.dirichlet(np.full(2**n, 0.3)))}
    flipped = bitflip(ideal, p)
    assert sum(flipped.values()) == pytest.approx(1, abs=1e-12)
    target = f"{rng.integers(2**n):0{n}b}"
    chance = table(n, p)
    expected = sum(
        w * chance[sum(a != b for a, b in zip(s, target, strict=True))] for s, w in ideal.items()
    )
    assert flipped.get(target, 0) == pytest.approx(expected, abs=1e-12)


def test_drawn_flips_follow_the_exact_ones_and_their_generator():
    exact = bitflip(GHZ, 0.1)
    drawn = bitflip(GHZ, 0.1, 100_000, np.random.default_rng(4))
    assert sum(drawn.values()) == 100_000
    assert drawn == bitflip(GHZ, 0.1, 100_000, np.random.default_rng(4))
    assert hellinger_fidelity(exact, drawn) > 0.99


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0.5}, "p must be at least 0 and below 0.5"),
        ({"p": -0.1}, "p must be at least 0"),
        ({"p": math.nan}, "p must be at least 0"),
        ({"n_clusters": 0}, "n_clusters must be at least 1"),
        ({"n_clusters": 3}, "number of distinct strings, 2"),
        ({"tol": 0.0}, "tol must be above 0"),
        ({"tol": 1.5}, "tol must be above 0"),
        ({"radius_mul": -1.0}, "radius_mul must not be negative"),
        ({"max_clusters": 0}, "max_clusters must be at least 1"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QCluster(**{"p": 0.1, **settings}).fit({"00": 3, "11": 2})


@pytest.mark.usefixtures("unhooked")
def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ValueError, match="p must be a rate or 'auto'"):
        QCluster("often").fit({"00": 3, "11": 2})


@pytest.mark.parametrize("counts", [{"00": 0.6, "11": 0.4}, {"00": 10.5, "11": 3}])
def test_a_rate_is_not_estimated_from_probabilities(counts):
    with pytest.raises(ValueError, match="whole numbers of shots"):
        QCluster().fit(counts)
    assert sum(QCluster(0.1).mitigate(counts).values()) == pytest.approx(1)


def test_wrong_arguments_of_flips_and_rates_are_refused():
    with pytest.raises(ValueError, match="p must be"):
        bitflip(GHZ, 0.6)
    with pytest.raises(ValueError, match="shots must be given beyond 24 bits"):
        bitflip({"0" * 25: 1}, 0.1)
    with pytest.raises(ValueError, match="rng must be given"):
        bitflip(GHZ, 0.1, 10)
    with pytest.raises(ValueError, match="shots must be at least 1"):
        bitflip(GHZ, 0.1, 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="step must be between"):
        effective_rate(GHZ, GHZ, step=0.5)
    with pytest.raises(ValueError, match="same width, but have 10 and 12"):
        effective_rate(GHZ, BV)
    with pytest.raises(ValueError, match="max_clusters must be"):
        mixture_rate(GHZ, max_clusters=0)


# --- the contract ---------------------------------------------------------------------------------


def test_a_fitted_cluster_plots_what_it_did():
    noisy = bitflip(GHZ, 0.1, 4096, np.random.default_rng(5))
    figure = QCluster(0.1).fit(noisy).plot(top=8)
    measured, mitigated, settled = figure.data
    assert len(measured.x) == len(mitigated.x) == 8
    assert set(mitigated.x[:2]) == set(GHZ)
    assert len(settled.x) >= 1


def test_settings_are_cloned_and_shown_as_scikit_learn_does():
    from sklearn.base import clone

    cluster = QCluster(0.2, n_clusters=3, tol=0.9)
    assert clone(cluster).get_params() == cluster.get_params()
    assert "n_clusters=3" in repr(cluster)


def test_normalised_entropy_is_one_for_coin_tosses_and_zero_for_one_string():
    assert normalized_entropy({f"{i:05b}": 7 for i in range(32)}) == pytest.approx(1)
    assert normalized_entropy({"00000": 7}) == 0
