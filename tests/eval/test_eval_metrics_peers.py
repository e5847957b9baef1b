"""The metrics beside torch-fidelity's and pytorch-fid's functions on the same features."""

import numpy as np
import pytest

from eval import metrics
from eval.references import write_reference
from eval.statistics import fit_gaussian

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def features():
    """Samples [700, 256] and real [600, 256], float64, like pooled ones: positive, correlated."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(256, 256)) / 16
    return tuple(
        np.maximum(rng.normal(size=(num, 256)) @ mixing * scale + 0.2, 0)
        for num, scale in ((700, 1.1), (600, 1))
    )


# pytorch-fid asks SciPy's sqrtm for what SciPy 1.18 has no more.
@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_frechet_distance(features):
    from pytorch_fid.fid_score import calculate_frechet_distance

    a, b = map(fit_gaussian, features)
    expected = calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_statistics_and_frechet_distance(features):
    import torch
    from torch_fidelity import metric_fid

    statistics = [metric_fid.fid_features_to_statistics(torch.tensor(f)) for f in features]
    expected = metric_fid.fid_statistics_to_metric(*statistics, False)
    distance = metrics.frechet_distance(*map(fit_gaussian, features))
    assert distance == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


def test_kernel_distance(features):
    import torch
    from torch_fidelity import metric_kid

    settings = {"kid_subsets": 10, "kid_subset_size": 500, "rng_seed": 2020, "verbose": False}
    expected = metric_kid.kid_features_to_metric(*map(torch.tensor, features), **settings)
    result = metrics.kernel_distance(*features, num_subsets=10, subset_size=500)
    assert result.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert result.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


@pytest.mark.parametrize("shuffle", [False, True])
def test_inception_score(features, shuffle):
    import torch
    from torch_fidelity import metric_isc

    logits = features[0] * 3
    expected = metric_isc.isc_features_to_metric(torch.tensor(logits), shuffle=shuffle)
    if shuffle:
        logits = logits[np.random.RandomState(2020).permutation(700)]
    score = metrics.inception_score(logits, split_size=70)
    assert score.mean == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert score.std == pytest.approx(expected["inception_score_std"], rel=1e-6)


@pytest.mark.parametrize("save_cpu_ram", [False, True])
def test_precision_recall(features, save_cpu_ram):
    import torch
    from torch_fidelity import metric_prc

    tensors = map(torch.tensor, features)
    expected = metric_prc.prc_features_to_metric(*tensors, save_cpu_ram=save_cpu_ram, verbose=False)
    result = metrics.precision_recall(*features)
    assert 0.1 < result.precision < 1
    assert result.precision == pytest.approx(expected["precision"], abs=1e-6)
    assert result.recall == pytest.approx(expected["recall"], abs=1e-6)


def test_pytorch_fid_reads_saved_statistics(features, tmp_path):
    """What --save_reference writes, by its own reader."""
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    real = fit_gaussian(features[1])
    write_reference(tmp_path / "a.npz", {"pool": real}, {"features": {}, "num": 600})
    mean, covariance = fid_score.compute_statistics_of_path(
        str(tmp_path / "a.npz"), None, 1, 256, "cpu"
    )
    np.testing.assert_array_equal(mean, real.mean)
    np.testing.assert_array_equal(covariance, real.covariance)
