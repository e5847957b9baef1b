import importlib.util
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from eval import metrics
from eval.metrics import neighbours
from eval.statistics import Gaussian, SmallSetWarning, fit_gaussian

FIXTURES = Path(__file__).parent.parent / "fixtures"


def fixture_arrays():
    spec = importlib.util.spec_from_file_location("make_metrics", FIXTURES / "make_metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.arrays()


ARRAYS = fixture_arrays()
SAMPLES, REAL = ARRAYS["samples"], ARRAYS["real"]
PEERS = json.loads((FIXTURES / "metrics.json").read_text())


def textbook_distance(f_NxD, g_MxD):
    cov_f, cov_g = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (f_NxD, g_MxD))
    mean = np.sum((f_NxD.mean(0) - g_MxD.mean(0)) ** 2)
    return mean + np.trace(cov_f + cov_g - 2 * sqrtm(cov_f @ cov_g).real)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def correlated(rng, num, width, shift=0.0):
    return rng.normal(size=(num, width)) @ rng.normal(size=(width, width)) + shift


class TestFrechetDistance:
    def test_equals_the_peers(self):
        distance = metrics.frechet_distance(fit_gaussian(SAMPLES), fit_gaussian(REAL))
        assert distance == pytest.approx(PEERS["pytorch_fid"], rel=1e-8)
        assert distance == pytest.approx(PEERS["frechet_inception_distance"], rel=1e-8)

    @pytest.mark.parametrize("width", [1, 7, 64])
    def test_equals_matrix_square_root(self, rng, width):
        f_NxD, g_MxD = correlated(rng, 300, width), correlated(rng, 200, width, shift=0.5)
        expected = textbook_distance(f_NxD, g_MxD)
        a, b = fit_gaussian(f_NxD), fit_gaussian(g_MxD)
        assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
        assert metrics.frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)

    def test_equals_closed_form_of_diagonal_gaussians(self, rng):
        mean_a, mean_b = rng.normal(size=(2, 50))
        spread_a, spread_b = rng.uniform(0.01, 100, (2, 50))
        expected = np.sum((mean_a - mean_b) ** 2) + np.sum((spread_a - spread_b) ** 2)
        a = Gaussian(mean_a, np.diag(spread_a**2))
        b = Gaussian(mean_b, np.diag(spread_b**2))
        assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)

    def test_singular_covariances_with_known_answer(self, rng):
        # Diagonal in a common basis, with zeros that overlap in part: the closed form still holds.
        basis, _ = np.linalg.qr(rng.normal(size=(40, 40)))
        spread_a, spread_b = rng.uniform(1, 2, (2, 40))
        spread_a[:25], spread_b[15:] = 0, 0
        mean = np.zeros(40)
        a = Gaussian(mean, basis * spread_a**2 @ basis.T)
        b = Gaussian(mean, basis * spread_b**2 @ basis.T)
        expected = np.sum((spread_a - spread_b) ** 2)
        assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
        assert metrics.frechet_distance(a, a) < 1e-10

    def test_fewer_features_than_dimensions(self, rng):
        f_NxD, g_MxD = correlated(rng, 20, 64), correlated(rng, 500, 64)
        with pytest.warns(SmallSetWarning, match="20 images in 64 dimensions"):
            a = fit_gaussian(f_NxD)
        # tr (C_a C_b)^(1/2) from the 20x20 Gram matrix, which is not singular.
        centred = (f_NxD - f_NxD.mean(0)) / np.sqrt(19)
        b = fit_gaussian(g_MxD)
        eigenvalues = np.linalg.eigvalsh(centred @ b.covariance @ centred.T)
        trace = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
        expected = np.sum((a.mean - b.mean) ** 2)
        expected += np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace
        assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)

    def test_distance_between_points(self):
        zero = np.zeros((3, 3))
        a, b = Gaussian(np.zeros(3), zero), Gaussian(np.full(3, 2.0), zero)
        assert metrics.frechet_distance(a, b) == 12
        unit = Gaussian(np.zeros(3), np.eye(3))
        assert metrics.frechet_distance(a, unit) == pytest.approx(3)

    def test_shapes_and_values_are_checked(self):
        a = Gaussian(np.zeros(3), np.eye(3))
        with pytest.raises(ValueError, match="must be"):
            metrics.frechet_distance(a, Gaussian(np.zeros(2), np.eye(2)))
        with pytest.raises(ValueError, match="not finite"):
            metrics.frechet_distance(a, Gaussian(np.full(3, np.nan), np.eye(3)))


class TestFrechetDistanceOfSets:
    @pytest.mark.filterwarnings("ignore::eval.statistics.SmallSetWarning")
    @pytest.mark.parametrize(("num", "other"), [(2, 3), (10, 300), (200, 300)])
    def test_equals_the_distance_of_gaussians(self, rng, num, other):
        f_NxD, g_MxD = correlated(rng, num, 24), correlated(rng, other, 24, shift=1)
        expected = metrics.frechet_distance(fit_gaussian(f_NxD), fit_gaussian(g_MxD))
        distance = metrics.frechet_distance_of_sets(f_NxD, g_MxD)
        assert distance == pytest.approx(expected, rel=1e-9)

    def test_wrong_shapes_are_refused(self):
        for shapes in (((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5, 3))):
            with pytest.raises(ValueError, match="must be"):
                metrics.frechet_distance_of_sets(*(np.zeros(shape) for shape in shapes))


class TestFrechetInfinity:
    def test_line_through_subset_distances(self, rng):
        f_NxD, reference = rng.normal(size=(2000, 8)), fit_gaussian(REAL[:, :8])
        result = metrics.frechet_infinity(f_NxD, reference)
        assert result.size == np.linspace(200, 2000, 15).astype(int).tolist()
        design = np.stack([np.ones(15), 1 / np.array(result.size)], axis=1)
        (value, slope), *_ = np.linalg.lstsq(design, np.array(result.distance))
        assert (result.value, result.slope) == pytest.approx((value, slope), rel=1e-9)
        whole = metrics.frechet_distance(fit_gaussian(f_NxD), reference)
        assert result.distance[-1] == pytest.approx(whole, rel=1e-9)
        assert metrics.frechet_infinity(f_NxD, reference) == result

    def test_removes_the_bias(self, rng):
        width = 16
        reference = Gaussian(np.zeros(width), np.eye(width))
        values, wholes = [], []
        for _ in range(8):
            result = metrics.frechet_infinity(rng.normal(size=(1000, width)), reference)
            values.append(result.value)
            wholes.append(result.distance[-1])
        assert np.mean(wholes) > 0.03  # the truth is 0
        assert abs(np.mean(values)) < 0.2 * np.mean(wholes)

    def test_few_samples_are_refused(self):
        with pytest.raises(ValueError, match="29 samples, but 30"):
            metrics.frechet_infinity(np.zeros((29, 2)), Gaussian(np.zeros(2), np.eye(2)))


class TestInceptionScore:
    def test_equals_torch_fidelity(self):
        score = metrics.inception_score(ARRAYS["logits"], split_size=30)
        assert score.mean == pytest.approx(PEERS["inception_score_mean"], rel=1e-10)
        assert score.std == pytest.approx(PEERS["inception_score_std"], rel=1e-8)

    def test_last_split_may_be_shorter(self):
        logits = ARRAYS["logits"]
        scores = [metrics.inception_score(logits[i : i + 120]).mean for i in (0, 120, 240)]
        score = metrics.inception_score(logits, split_size=120)
        assert score == pytest.approx((np.mean(scores), np.std(scores)))

    def test_known_scores(self):
        certain = np.where(np.arange(10)[:, None] % 5 == np.arange(5), 0.0, -5000.0)
        assert metrics.inception_score(certain).mean == pytest.approx(5)
        assert metrics.inception_score(np.zeros((10, 5))).mean == pytest.approx(1)
        assert metrics.inception_score(certain[[0, 0]]).mean == pytest.approx(1)

    def test_wrong_logits_are_refused(self):
        for logits in (np.zeros((0, 5)), np.zeros(5), np.array([[np.nan, 0]])):
            with pytest.raises(ValueError, match="must be finite"):
                metrics.inception_score(logits)


class TestKernelDistance:
    def test_equals_torch_fidelity(self):
        result = metrics.kernel_distance(SAMPLES, REAL, num_subsets=20, subset_size=100)
        assert result.mean == pytest.approx(PEERS["kernel_inception_distance_mean"], rel=1e-9)
        assert result.std == pytest.approx(PEERS["kernel_inception_distance_std"], rel=1e-9)

    def test_equals_the_sums_over_pairs(self):
        f, g = SAMPLES[:9], REAL[:9]

        def kernel(x, y):
            return (x @ y / 24 + 1) ** 3

        pairs = [(i, j) for i in range(9) for j in range(9)]
        within = sum(kernel(x[i], x[j]) for x in (f, g) for i, j in pairs if i != j) / 72
        across = sum(kernel(f[i], g[j]) for i, j in pairs) / 81
        result = metrics.kernel_distance(f, g, num_subsets=1)
        assert result == pytest.approx((within - 2 * across, 0, 1, 9), rel=1e-9)

    def test_wrong_shapes_are_refused(self):
        with pytest.raises(ValueError, match="must be"):
            metrics.kernel_distance(SAMPLES, REAL[:1])
        with pytest.raises(ValueError, match="must be"):
            metrics.kernel_distance(SAMPLES, REAL[:, 1:])


def hard_sets(rng):
    """Float32 sets full of ties, copies and near-ties, far from 0."""
    grid = rng.integers(0, 3, (150, 6)) * 0.25 + 1000
    fine = rng.normal(size=(150, 6)) * 1e-3 + 1000
    f_NxD = np.concatenate([grid, fine]).astype(np.float32)
    g_MxD = np.concatenate([grid[:50], grid[:50], fine[::-1], grid[100:]]).astype(np.float32)
    return f_NxD, g_MxD


def all_pairs(f_NxD, g_MxD):
    return cdist(f_NxD.astype(np.float64), g_MxD.astype(np.float64))


SETS = {
    "peers": lambda rng: (SAMPLES, REAL),
    "ties": hard_sets,
    "wide": lambda rng: tuple(rng.normal(size=(2, 200, 1000)).astype(np.float32) + 5),
    "one point": lambda rng: (np.full((20, 3), 0.1, np.float32), np.full((30, 3), 0.1, np.float32)),
}


@pytest.fixture(params=SETS)
def sets(request, rng, monkeypatch):
    monkeypatch.setattr(neighbours, "_TILE", 7000)  # several ragged tiles
    monkeypatch.setattr(neighbours, "_PAIR_TILE", 5000)
    return SETS[request.param](rng)


class TestPrecisionRecall:
    @pytest.mark.parametrize("k", [1, 3])
    def test_equals_all_pairs_in_float64(self, sets, k):
        f_NxD, g_MxD = sets
        d_MxN = all_pairs(g_MxD, f_NxD)
        radius_M = np.sort(all_pairs(g_MxD, g_MxD), axis=1)[:, k]
        radius_N = np.sort(all_pairs(f_NxD, f_NxD), axis=1)[:, k]
        precision = (d_MxN <= radius_M[:, None]).any(0).mean()
        recall = (d_MxN <= radius_N).any(1).mean()
        assert metrics.precision_recall(f_NxD, g_MxD, k) == (precision, recall)

    def test_equals_torch_fidelity(self):
        result = metrics.precision_recall(SAMPLES, REAL)
        assert result.precision == pytest.approx(PEERS["precision"], abs=1e-6)
        assert result.recall == pytest.approx(PEERS["recall"], abs=1e-6)

    def test_too_few_images_are_refused(self):
        with pytest.raises(ValueError, match="3 images, but more than 3"):
            metrics.precision_recall(SAMPLES[:3], REAL)


class TestDensityCoverage:
    @pytest.mark.parametrize("k", [1, 5])
    def test_equals_all_pairs_in_float64(self, sets, k):
        f_NxD, g_MxD = sets
        radius_M = np.sort(all_pairs(g_MxD, g_MxD), axis=1)[:, k]
        is_in_MxN = all_pairs(g_MxD, f_NxD) < radius_M[:, None]
        result = metrics.density_coverage(f_NxD, g_MxD, k)
        assert result.density == pytest.approx(is_in_MxN.sum() / (k * len(f_NxD)), rel=1e-12)
        assert result.coverage == is_in_MxN.any(1).mean()

    def test_set_with_itself(self):
        assert metrics.density_coverage(REAL, REAL) == (1, 1)


class TestNearest:
    def test_equals_all_pairs(self, sets):
        f_NxD, g_MxD = sets
        distance_Nxk, index_Nxk = neighbours.nearest(f_NxD, g_MxD, 4)
        d_NxM = all_pairs(f_NxD, g_MxD)
        np.testing.assert_allclose(distance_Nxk, np.sort(d_NxM, axis=1)[:, :4], rtol=1e-12)
        order_NxM = np.argsort(d_NxM, axis=1, kind="stable")
        np.testing.assert_array_equal(index_Nxk, order_NxM[:, :4])

    def test_copies_are_exactly_zero_and_the_first_wins(self, rng):
        f_NxD = rng.normal(size=(10, 64)) * 1e4
        distance_N, index_N = metrics.nearest_distances(f_NxD, np.concatenate([f_NxD, f_NxD]))
        np.testing.assert_array_equal(distance_N, 0)
        np.testing.assert_array_equal(index_N, np.arange(10))

    def test_copies_do_not_multiply_the_exact_differences(self, rng, monkeypatch):
        row_2xD = rng.normal(size=(2, 8)).astype(np.float32)
        f_NxD = row_2xD[rng.integers(0, 2, 500)]
        counts, original = [], neighbours._pair_distances

        def spy(f, g, row_P, column_P):
            counts.append(len(row_P))
            return original(f, g, row_P, column_P)

        monkeypatch.setattr(neighbours, "_pair_distances", spy)
        distance_Nxk, index_Nxk = neighbours.nearest(f_NxD, f_NxD, 4)
        assert sum(counts) == 2 * 4  # not 500 * 250
        np.testing.assert_array_equal(distance_Nxk, 0)
        for row, index_k in zip(f_NxD, index_Nxk, strict=True):
            np.testing.assert_array_equal(index_k, np.flatnonzero((f_NxD == row).all(1))[:4])

    def test_memory_is_flat(self, rng, monkeypatch):
        monkeypatch.setattr(neighbours, "_TILE", 2**16)
        f_NxD = rng.normal(size=(6000, 4))
        tracemalloc.start()
        metrics.nearest_distances(f_NxD, f_NxD)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6  # all pairs would take 288 MB

    def test_wrong_sets_are_refused(self):
        with pytest.raises(ValueError, match="no reference"):
            metrics.nearest_distances(np.zeros((2, 3)), np.zeros((0, 3)))
        with pytest.raises(ValueError, match="must be"):
            metrics.nearest_distances(np.zeros((2, 3)), np.zeros((2, 4)))
        with pytest.raises(ValueError, match="3 neighbours of 2"):
            neighbours.nearest(np.zeros((2, 3)), np.zeros((2, 3)), 3)
