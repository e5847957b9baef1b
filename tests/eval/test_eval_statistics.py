import tracemalloc
import warnings

import numpy as np
import pytest

from eval.statistics import Gaussian, GaussianAccumulator, SmallSetWarning, fit_gaussian


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def accumulate(f_NxD, *lengths):
    accumulator = GaussianAccumulator(f_NxD.shape[1])
    start = 0
    for length in lengths:
        accumulator.add(f_NxD[start : start + length])
        start += length
    assert len(accumulator) == len(f_NxD)
    return accumulator


def assert_same(a, b):
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.covariance, b.covariance)


class TestGaussianAccumulator:
    @pytest.mark.parametrize("num", [2, 2047, 2048, 2049, 5000])
    def test_equals_numpy(self, rng, num):
        f_NxD = rng.normal(size=(num, 7)) @ rng.normal(size=(7, 7)) + 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallSetWarning)
            gaussian = accumulate(f_NxD, num).gaussian()
        np.testing.assert_allclose(gaussian.mean, f_NxD.mean(0), rtol=1e-13)
        expected = np.cov(f_NxD, rowvar=False)
        np.testing.assert_allclose(gaussian.covariance, expected, rtol=1e-11, atol=1e-13)

    def test_same_to_the_bit_for_any_pieces(self, rng):
        f_NxD = rng.normal(size=(3000, 5)).astype(np.float32)
        whole = accumulate(f_NxD, 3000).gaussian()
        assert_same(accumulate(f_NxD, *[1] * 3000).gaussian(), whole)
        assert_same(accumulate(f_NxD, 64, 0, 2000, 500, 436).gaussian(), whole)

    def test_far_mean_costs_no_digits(self, rng):
        # The textbook sum of squares minus squared sum would leave nothing of the covariance.
        f_NxD = rng.normal(size=(4000, 4))
        shifted = f_NxD + 2.0**30
        exact = shifted - 2.0**30  # what is left of the features after the shift, exactly
        covariance = accumulate(shifted, 4000).gaussian().covariance
        np.testing.assert_allclose(covariance, np.cov(exact, rowvar=False), rtol=1e-6, atol=1e-7)

    def test_goes_on_from_a_file_to_the_bit(self, rng, tmp_path):
        f_NxD = rng.normal(size=(4500, 6))
        np.savez(tmp_path / "state.npz", **accumulate(f_NxD[:3000], 3000).state())
        with np.load(tmp_path / "state.npz", allow_pickle=False) as archive:
            resumed = GaussianAccumulator.from_state(archive)
        resumed.add(f_NxD[3000:])
        assert_same(resumed.gaussian(), fit_gaussian(f_NxD))

    def test_looking_changes_nothing(self, rng):
        f_NxD = rng.normal(size=(3000, 3))
        accumulator = accumulate(f_NxD[:2500], 2500)
        accumulator.gaussian()
        accumulator.state()["mean"] += 1
        accumulator.add(f_NxD[2500:])
        assert_same(accumulator.gaussian(), fit_gaussian(f_NxD))

    def test_memory_is_flat(self, rng):
        f_NxD = rng.normal(size=(50000, 32)).astype(np.float32)
        tracemalloc.start()
        accumulate(f_NxD, 50000).gaussian()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4e6  # a float64 copy would take 13 MB

    def test_wrong_rows_are_refused_and_not_taken_in(self):
        accumulator = GaussianAccumulator(3)
        with pytest.raises(ValueError, match=r"\(2, 4\), but must be \[N, 3\]"):
            accumulator.add(np.zeros((2, 4)))
        with pytest.raises(ValueError, match="not finite"):
            accumulator.add(np.array([[0, 0, 0], [0, np.nan, 0]]))
        assert len(accumulator) == 0
        accumulator.add(np.zeros((1, 3)))
        with pytest.raises(ValueError, match="1 rows"):
            accumulator.gaussian()


class TestFitGaussian:
    def test_warns_of_small_sets_alone(self, rng):
        with pytest.warns(SmallSetWarning, match="64 images in 64 dimensions"):
            fit_gaussian(rng.normal(size=(64, 64)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit_gaussian(rng.normal(size=(65, 64)))

    def test_wrong_features_are_refused(self):
        with pytest.raises(ValueError, match="N >= 2"):
            fit_gaussian(np.zeros((1, 3)))
        with pytest.raises(ValueError, match="not finite"):
            fit_gaussian(np.full((5, 3), np.inf))


class TestRoot:
    def test_is_a_root_of_regular_and_singular_covariances(self, rng):
        factor_DxR = rng.normal(size=(20, 8))
        for covariance, rank in (
            (factor_DxR @ factor_DxR.T, 8),
            (factor_DxR @ factor_DxR.T + np.eye(20), 20),
            (np.zeros((20, 20)), 0),
        ):
            root = Gaussian(np.zeros(20), covariance).root
            assert root.shape == (20, rank)
            np.testing.assert_allclose(root @ root.T, covariance, atol=1e-12)
