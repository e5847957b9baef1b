import tracemalloc
import warnings

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from eval.metrics import (
    Gaussian,
    SmallSetWarning,
    fit_gaussian,
    frechet_distance,
    nearest_distances,
)


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
    @pytest.mark.parametrize("width", [1, 7, 64])
    def test_equals_matrix_square_root(self, rng, width):
        f_NxD, g_MxD = correlated(rng, 300, width), correlated(rng, 200, width, shift=0.5)
        expected = textbook_distance(f_NxD, g_MxD)
        a, b = fit_gaussian(f_NxD), fit_gaussian(g_MxD)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
        assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)

    def test_equals_closed_form_of_diagonal_gaussians(self, rng):
        mean_a, mean_b = rng.normal(size=(2, 50))
        spread_a, spread_b = rng.uniform(0.01, 100, (2, 50))
        expected = np.sum((mean_a - mean_b) ** 2) + np.sum((spread_a - spread_b) ** 2)
        a = Gaussian(mean_a, np.diag(spread_a**2))
        b = Gaussian(mean_b, np.diag(spread_b**2))
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)

    def test_singular_covariances_with_known_answer(self, rng):
        # Diagonal in a common basis, with zeros that overlap in part: the closed form still holds.
        basis, _ = np.linalg.qr(rng.normal(size=(40, 40)))
        spread_a, spread_b = rng.uniform(1, 2, (2, 40))
        spread_a[:25], spread_b[15:] = 0, 0
        mean = np.zeros(40)
        a = Gaussian(mean, basis * spread_a**2 @ basis.T)
        b = Gaussian(mean, basis * spread_b**2 @ basis.T)
        expected = np.sum((spread_a - spread_b) ** 2)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
        assert frechet_distance(a, a) < 1e-10

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
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)

    def test_distance_between_points(self):
        zero = np.zeros((3, 3))
        a, b = Gaussian(np.zeros(3), zero), Gaussian(np.full(3, 2.0), zero)
        assert frechet_distance(a, b) == 12
        assert frechet_distance(a, Gaussian(np.zeros(3), np.eye(3))) == pytest.approx(3)

    def test_no_warning_when_there_are_enough(self, rng):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit_gaussian(rng.normal(size=(65, 64)))

    def test_shapes_and_values_are_checked(self):
        a = Gaussian(np.zeros(3), np.eye(3))
        with pytest.raises(ValueError, match="must be"):
            frechet_distance(a, Gaussian(np.zeros(2), np.eye(2)))
        with pytest.raises(ValueError, match="not finite"):
            frechet_distance(a, Gaussian(np.full(3, np.nan), np.eye(3)))
        with pytest.raises(ValueError, match="N >= 2"):
            fit_gaussian(np.zeros((1, 3)))
        with pytest.raises(ValueError, match="not finite"):
            fit_gaussian(np.full((5, 3), np.inf))


class TestNearestDistances:
    @pytest.mark.parametrize("tile", [1, 7, 1000])
    def test_equals_all_pairs_for_any_tile(self, rng, tile):
        f_NxD, g_MxD = rng.normal(size=(20, 5)), rng.normal(size=(33, 5))
        distance_N, index_N = nearest_distances(f_NxD, g_MxD, tile)
        d_NxM = cdist(f_NxD, g_MxD)
        np.testing.assert_array_equal(distance_N, d_NxM.min(1))
        np.testing.assert_array_equal(index_N, d_NxM.argmin(1))

    def test_copies_are_exactly_zero_and_the_first_wins(self, rng):
        f_NxD = rng.normal(size=(10, 64)) * 1e4
        distance_N, index_N = nearest_distances(f_NxD, np.concatenate([f_NxD, f_NxD]), tile=6)
        np.testing.assert_array_equal(distance_N, 0)
        np.testing.assert_array_equal(index_N, np.arange(10))

    def test_memory_is_flat(self, rng):
        f_NxD = rng.normal(size=(6000, 4))
        tracemalloc.start()
        nearest_distances(f_NxD, f_NxD, tile=256)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4e6  # all pairs would take 288 MB

    def test_no_reference_is_refused(self):
        with pytest.raises(ValueError, match="no reference"):
            nearest_distances(np.zeros((2, 3)), np.zeros((0, 3)))
