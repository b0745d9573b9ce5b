import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsOneClassifier
from sklearn.neighbors import KNeighborsClassifier

from szilard.representations import PackedCodes, categorization, encoding_report
from szilard.representations.categorization import (
    KMeans,
    PairwiseLogistic,
    match_clusters,
    neighbor_classes,
)


def classes_of_bits(n: int, width: int, k: int, seed: int, flip: float = 0.2):
    """k random codes, each seen n / k times with some of its bits flipped."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    return (rng.random((k, width)) < 0.5)[y] ^ (rng.random((n, width)) < flip), y


# --- nearest neighbours -------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_neighbours_on_codes_vote_as_euclidean_ones_on_bits(seed, k):
    bits, y = classes_of_bits(60, 33, 3, seed)
    train, test = PackedCodes.from_bits(bits[:40]), PackedCodes.from_bits(bits[40:])
    ours = neighbor_classes(train, y[:40], test, k)
    squared = (bits[40:, None] != bits[None, :40]).sum(-1)
    near = np.argsort(squared, axis=1, kind="stable")[:, :k]
    expected = [np.bincount(y[:40][row], minlength=3).argmax() for row in near]
    np.testing.assert_array_equal(ours, expected)


def test_neighbours_on_features_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 5)), rng.integers(4, size=100)
    theirs = KNeighborsClassifier(9).fit(x[:70], y[:70]).predict(x[70:])
    np.testing.assert_array_equal(neighbor_classes(x[:70], y[:70], x[70:], 9), theirs)


# --- logistic regression ------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.sampled_from([0.1, 1.0]))
def test_pairs_solved_together_are_those_solved_one_by_one(seed, k, C):
    bits, y = classes_of_bits(120, 20, k, seed)
    ours = PairwiseLogistic.fit(PackedCodes.from_bits(bits), y, C=C, tol=1e-6, max_iter=1000)
    one = LogisticRegression(C=C, tol=1e-10, max_iter=10_000)
    theirs = OneVsOneClassifier(one).fit(bits.astype(float), y)
    weights = np.stack([e.coef_[0] for e in theirs.estimators_], 1)
    intercepts = np.array([e.intercept_[0] for e in theirs.estimators_])
    # A mean derivative of 1e-6 over at most 120 inputs leaves an error of 1e-4 where the curvature is 1.
    np.testing.assert_allclose(ours.weights.numpy(), weights, atol=2e-3)
    np.testing.assert_allclose(ours.intercepts.numpy(), intercepts, atol=2e-3)
    agreement = ours.predict(PackedCodes.from_bits(bits)) == theirs.predict(bits.astype(float))
    # What ties to the third digit may fall either way.
    assert agreement.mean() > 0.98


def test_features_and_their_codes_give_the_same_classifier():
    bits, y = classes_of_bits(200, 40, 3, 0)
    packed = PairwiseLogistic.fit(PackedCodes.from_bits(bits), y)
    dense = PairwiseLogistic.fit(bits.astype(np.float32), y)
    np.testing.assert_array_equal(packed.weights, dense.weights)
    assert packed.iterations < 100


def test_blocks_of_any_size_give_the_same_classifiers(monkeypatch):
    bits, y = classes_of_bits(150, 24, 3, 1)
    codes = PackedCodes.from_bits(bits)
    whole = PairwiseLogistic.fit(codes, y), KMeans.fit(codes, 3)
    monkeypatch.setattr(categorization, "_BLOCK", 24 * 7)
    pieces = PairwiseLogistic.fit(codes, y), KMeans.fit(codes, 3)
    # Sums in another order, amplified by up to a hundred steps.
    torch.testing.assert_close(whole[0].weights, pieces[0].weights, atol=1e-3, rtol=0)
    np.testing.assert_array_equal(whole[1].labels, pieces[1].labels)


def test_separable_classes_and_constant_features_converge():
    bits, y = classes_of_bits(60, 30, 3, 2, flip=0.0)
    bits[:, :5] = True
    fitted = PairwiseLogistic.fit(PackedCodes.from_bits(bits), y)
    assert (fitted.predict(PackedCodes.from_bits(bits)) == y).all()
    assert fitted.weights.isfinite().all()


def test_classes_without_inputs_are_refused():
    codes = PackedCodes.from_bits(np.eye(4, dtype=bool))
    with pytest.raises(ValueError, match="y must hold the classes"):
        PairwiseLogistic.fit(codes, np.array([0, 0, 2, 2]))
    with pytest.raises(ValueError, match="y must hold the classes"):
        PairwiseLogistic.fit(codes, np.zeros(4, dtype=int))


# --- k-means ------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_lloyd_s_iteration_from_the_same_centers_ends_as_scikit_learn_s(seed):
    bits, _ = classes_of_bits(150, 30, 4, seed)
    x = bits.astype(np.float64)
    start = x[np.random.default_rng(seed).choice(150, 4, replace=False)]
    theirs = SklearnKMeans(4, init=start, n_init=1, tol=0).fit(x)
    codes = PackedCodes.from_bits(bits)
    norms = categorization._squared_norms(codes)
    ours = KMeans._run(codes, norms, torch.from_numpy(start).float(), 300, 0.0)
    # Codes at equal distance from two centers may go to either: most runs have none.
    if (ours.labels == theirs.labels_).all():
        assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
        np.testing.assert_allclose(ours.centers, theirs.cluster_centers_, atol=1e-5)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=0.1)


def test_clear_clusters_are_found_and_new_inputs_join_them():
    bits, y = classes_of_bits(300, 64, 5, 3, flip=0.1)
    found = KMeans.fit(PackedCodes.from_bits(bits[:200]), 5, rng=0)
    match = match_clusters(found.labels, y[:200])
    assert (match[found.labels] == y[:200]).all()
    assert (match[found.predict(PackedCodes.from_bits(bits[200:]))] == y[200:]).all()


def test_clusters_depend_on_their_seed_alone():
    bits, _ = classes_of_bits(100, 16, 4, 4)
    codes = PackedCodes.from_bits(bits)
    one, two = (KMeans.fit(codes, 4, rng=5) for _ in range(2))
    np.testing.assert_array_equal(one.labels, two.labels)
    assert KMeans.fit(codes, 4, rng=5, restarts=5).inertia <= one.inertia


def test_as_many_clusters_as_codes_leave_nothing_and_fewer_codes_than_clusters_do_not_fail():
    codes = PackedCodes.from_bits(np.eye(6, dtype=bool))
    assert KMeans.fit(codes, 6).inertia == pytest.approx(0, abs=1e-5)
    twice = PackedCodes.from_bits(np.eye(2, 6, dtype=bool)[[0, 1, 0, 1, 0]])
    assert KMeans.fit(twice, 3).inertia == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="clusters must be from 1 to 6"):
        KMeans.fit(codes, 7)


def test_greedy_matching_reads_higher_than_one_cluster_a_class():
    clusters = np.repeat([0, 1, 2], 4)
    y = np.array([0, 0, 0, 1, 0, 0, 0, 2, 2, 2, 2, 1])
    accuracy = {
        how: (match_clusters(clusters, y, matching=how)[clusters] == y).mean()
        for how in ("hungarian", "greedy")
    }
    assert accuracy["greedy"] == pytest.approx(9 / 12)
    assert accuracy["hungarian"] == pytest.approx(7 / 12)


# --- the report ---------------------------------------------------------------------------------


def test_the_report_reads_what_there_is_to_read_whatever_the_labels_are_called():
    bits, y = classes_of_bits(240, 48, 4, 5, flip=0.1)
    names = np.array(["d", "c", "b", "a"])[y]
    train, test = PackedCodes.from_bits(bits[:160]), PackedCodes.from_bits(bits[160:])
    report = encoding_report(train, names[:160], test, names[160:], base=2)
    assert report["knn"] == report["logistic"] == report["kmeans"] == 1.0
    assert report["redundancy_train"] == train.redundancy()
    assert report["entropy_test"] == test.entropy(base=2)
    assert report["deficit_train"] == pytest.approx(0, abs=1e-12)
    assert report["collisions_test"] == 0
    features = encoding_report(
        bits[:160].astype(float), names[:160], bits[160:].astype(float), names[160:]
    )
    assert set(features) == {"knn", "logistic", "kmeans"}


def test_random_labels_are_read_at_chance():
    bits, _ = classes_of_bits(1200, 20, 4, 6)
    y = np.random.default_rng(7).integers(4, size=1200)
    codes = PackedCodes.from_bits(bits)
    report = encoding_report(codes[:600], y[:600], codes[600:], y[600:])
    # Of 600 guesses, the standard error is 0.018.
    for reader in ("knn", "logistic", "kmeans"):
        assert report[reader] == pytest.approx(0.25, abs=0.08)


def test_constant_units_change_no_accuracy():
    bits, y = classes_of_bits(200, 10, 3, 8)
    constant = np.hstack([np.ones((200, 3), bool), bits, np.zeros((200, 9), bool)])
    reports = [
        encoding_report(c[:120], y[:120], c[120:], y[120:])
        for c in map(PackedCodes.from_bits, (bits, constant))
    ]
    assert reports[0] == reports[1]
    same = PackedCodes.from_bits(np.ones((20, 4), bool))
    assert 0 <= encoding_report(same, y[:20], same, y[:20])["logistic"] <= 1


def test_mismatched_arguments_are_refused(unhooked):
    bits, y = classes_of_bits(40, 10, 2, 9)
    codes = PackedCodes.from_bits(bits)
    for arguments, message in (
        ((codes, y[:9], codes, y), "y must hold 40 labels"),
        ((codes, y, codes, y[:9]), "y_test must hold 40 labels"),
        ((codes, y, bits.astype(float), y), "both be codes"),
        ((codes, y, PackedCodes.from_bits(bits[:, :9]), y), "test must have 10 units"),
        ((codes, np.zeros(40), codes, y), "two classes"),
        ((np.full((40, 3), np.nan), y, np.zeros((40, 3)), y), "train must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            encoding_report(*arguments)
    with pytest.raises(ValueError, match="neighbors must be from 1 to 40"):
        encoding_report(codes, y, codes, y, neighbors=41)
    with pytest.raises(ValueError, match="matching must be"):
        encoding_report(codes, y, codes, y, matching="best")
    with pytest.raises(ValueError, match="restarts"):
        encoding_report(codes, y, codes, y, restarts=0)
