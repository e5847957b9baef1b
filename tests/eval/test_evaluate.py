import hashlib
import json
import os
import pickle
import types
import unittest.mock
import warnings

import numpy as np
import pytest
from PIL import Image

from dit_moe.config import ConfigError
from dit_moe.storage import files
from eval import collect as collect_module
from eval import fid, metric_table, metrics
from eval import judge as judging
from eval.choose import choose
from eval.evaluate import evaluate
from eval.features.weights import WeightsError
from eval.image_set import ImageSetError
from eval.image_sets import open_set
from eval.metric_table import METRICS
from eval.references import open_reference
from eval.statistics import SmallSetWarning, fit_gaussian

LABELS = np.arange(60) % 3


DESCRIPTION = {"network": "random projection", "weights_sha256": "0" * 64, "resize": "none"}


class FakeExtractor:
    """A fixed random projection. Remembers how many images it saw; fails after `fail_after`."""

    def __init__(self, fail_after=10**9):
        self.name = "inception"
        self.description = DESCRIPTION
        self.seen = 0
        self.left = fail_after

    def __call__(self, image_NxHxWxC):
        if len(image_NxHxWxC) > self.left:
            raise KeyboardInterrupt
        self.left -= len(image_NxHxWxC)
        self.seen += len(image_NxHxWxC)
        return features(image_NxHxWxC)


def features(image_NxHxWxC):
    assert image_NxHxWxC.dtype == np.uint8
    x_NxP = image_NxHxWxC.reshape(len(image_NxHxWxC), -1).astype(np.float32) / 255
    rng = np.random.RandomState(0)
    widths = {"pool": 8, "spatial": 5, "logits": 4}
    # Row by row: a matrix product may round by the number of rows.
    return {
        name: np.stack([x @ w for x in x_NxP]).astype(np.float32)
        for name, width in widths.items()
        for w in [rng.normal(size=(x_NxP.shape[1], width)).astype(np.float32)]
    }


def images(num, seed, top=256):
    return np.random.RandomState(seed).randint(0, top, (num, 4, 4, 3)).astype(np.uint8)


SAMPLES, REAL = images(60, 0), images(50, 1, 200)


@pytest.fixture
def samples(tmp_path):
    np.savez(tmp_path / "samples.npz", SAMPLES, LABELS)
    return tmp_path / "samples.npz"


@pytest.fixture
def reference(tmp_path):
    np.savez(tmp_path / "reference.npz", REAL, LABELS[:50])
    return tmp_path / "reference.npz"


@pytest.fixture
def judge(tmp_path):
    def run(samples, reference, names=None, extractor=None, **options):
        return evaluate(
            open_set(samples),
            open_reference(reference),
            extractor or FakeExtractor(),
            names,
            cache=tmp_path / "cache",
            batch_size=20,
            **options,
        )

    return run


def gaussian(f_NxD):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSetWarning)
        return fit_gaussian(f_NxD)


def distance(f_NxD, g_MxD):
    return metrics.frechet_distance(gaussian(f_NxD), gaussian(g_MxD))


class TestEvaluate:
    def test_every_metric_is_that_of_the_features(self, judge, samples, reference):
        f, g = features(SAMPLES), features(REAL)
        result = judge(samples, reference, list(METRICS))["metrics"]
        assert list(result) == list(METRICS)
        assert result["fid"]["value"] == distance(f["pool"], g["pool"])
        assert result["sfid"]["value"] == distance(f["spatial"], g["spatial"])
        score = metrics.inception_score(f["logits"])
        assert (result["is"]["value"], result["is"]["std"]) == score
        precision, recall = metrics.precision_recall(f["pool"], g["pool"])
        assert result["pr"] == {"precision": precision, "recall": recall, "k": 3}
        density, coverage = metrics.density_coverage(f["pool"], g["pool"])
        assert result["dc"] == {"density": density, "coverage": coverage, "k": 5}
        kernel = metrics.kernel_distance(f["pool"], g["pool"])
        assert result["kid"]["value"] == kernel.mean
        assert result["kid"]["subset_size"] == 50
        infinity = metrics.frechet_infinity(f["pool"], gaussian(g["pool"]))
        assert result["fid_infinity"]["value"] == infinity.value
        of_class = [
            metrics.frechet_distance_of_sets(f["pool"][c == LABELS], g["pool"][LABELS[:50] == c])
            for c in range(3)
        ]
        assert result["per_class"]["by_class"] == dict(zip("012", of_class, strict=True))
        assert result["per_class"]["mean"] == np.mean(of_class)
        nearest, index = metrics.nearest_distances(f["pool"], g["pool"])
        assert result["nearest"]["smallest"] == nearest.min()
        closest = result["nearest"]["closest"][0]
        assert (closest["sample"], closest["reference"]) == (
            nearest.argmin(),
            index[closest["sample"]],
        )

    def test_result_says_how_it_was_made(self, judge, samples, reference):
        result = judge(samples, reference)
        assert list(result["metrics"]) == ["fid", "sfid", "is", "pr"]
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        for name, path, num in (("samples", samples, 60), ("reference", reference, 50)):
            expected = hashlib.sha256(path.read_bytes()).hexdigest()
            assert (result[name]["sha256"], result[name]["num"]) == (expected, num)
        assert result["features"] == {"name": "inception", **DESCRIPTION}
        assert {"numpy", "jax", "scikit-learn"} <= result["versions"].keys()
        for few in ("60 samples are too few", "50 reference images are too few"):
            assert any(few in note for note in result["notes"])

    def test_folder_equals_npz(self, judge, tmp_path, samples, reference):
        (tmp_path / "folder").mkdir()
        for i, image in enumerate(REAL):
            Image.fromarray(image).save(tmp_path / "folder" / f"{i:03}.png")
        names = ["fid", "pr"]
        of_folder = judge(samples, tmp_path / "folder", names)["metrics"]
        assert of_folder == judge(samples, reference, names)["metrics"]

    def test_pairwise_metrics_take_evenly_spaced_reference_images(self, judge, samples, reference):
        result = judge(samples, reference, ["fid", "dc"], pairwise_reference=20)
        assert result["reference"]["num_pairwise"] == 20
        f, g = features(SAMPLES)["pool"], features(REAL)["pool"]
        assert result["metrics"]["fid"]["value"] == distance(f, g)
        rows = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37, 40, 42, 45, 47]
        coverage = metrics.density_coverage(f, g[rows]).coverage
        assert result["metrics"]["dc"]["coverage"] == coverage

    def test_metrics_do_not_depend_on_each_other(self, judge, samples, reference):
        together = judge(samples, reference, list(METRICS), pairwise_reference=20)
        assert together["reference"]["num_pairwise"] == 20
        for name in METRICS:
            alone = judge(samples, reference, [name], pairwise_reference=20)["metrics"]
            assert alone[name] == together["metrics"][name], name

    @pytest.mark.parametrize(
        ("label_N", "is_shuffled"),
        [
            (np.sort(LABELS), True),
            (np.sort(LABELS)[::-1], True),
            (LABELS, False),
            (np.zeros(60, int), False),
            (None, False),
        ],
    )
    def test_inception_score_of_class_folders(
        self, judge, tmp_path, reference, label_N, is_shuffled, monkeypatch
    ):
        monkeypatch.setattr(metric_table, "_SPLIT_SIZE", 20)
        arrays = [SAMPLES] if label_N is None else [SAMPLES, label_N]
        np.savez(tmp_path / "labelled.npz", *arrays)
        result = judge(tmp_path / "labelled.npz", reference, ["is"])
        logit_NxK = features(SAMPLES)["logits"]
        if is_shuffled:
            logit_NxK = logit_NxK[np.random.RandomState(0).permutation(60)]
        expected = metrics.inception_score(logit_NxK, 20)
        assert result["metrics"]["is"]["value"] == expected.mean
        order = "shuffled, seed 0" if is_shuffled else "as stored"
        assert result["metrics"]["is"]["order"] == order
        assert any("class by class" in note for note in result["notes"]) == is_shuffled


class TestStoredStatistics:
    @pytest.fixture
    def statistics(self, tmp_path):
        pool, spatial = (gaussian(features(REAL)[name]) for name in ("pool", "spatial"))
        arrays = {"mu": pool.mean, "sigma": pool.covariance}
        np.savez(tmp_path / "fid.npz", **arrays)
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
        np.savez(tmp_path / "adm.npz", REAL[:20], LABELS[:20], **arrays)
        return tmp_path

    def test_pytorch_fid(self, judge, statistics, samples):
        result = judge(samples, statistics / "fid.npz")
        assert list(result["metrics"]) == ["fid", "is"]
        expected = distance(features(SAMPLES)["pool"], features(REAL)["pool"])
        assert result["metrics"]["fid"]["value"] == pytest.approx(expected, rel=1e-9)
        assert any("does not say by which network" in note for note in result["notes"])

    def test_adm_reference_batch(self, judge, statistics, samples):
        extractor = FakeExtractor()
        result = judge(samples, statistics / "adm.npz", extractor=extractor)
        f, g = features(SAMPLES), features(REAL)
        for name, output in (("fid", "pool"), ("sfid", "spatial")):
            expected = distance(f[output], g[output])
            assert result["metrics"][name]["value"] == pytest.approx(expected, rel=1e-9)
        precision = metrics.precision_recall(f["pool"], g["pool"][:20]).precision
        assert result["metrics"]["pr"]["precision"] == precision
        assert extractor.seen == 1 + 60 + 20  # one for the width
        only_statistics = FakeExtractor()
        judge(samples, statistics / "adm.npz", ["fid", "sfid"], only_statistics)
        assert only_statistics.seen == 1 + 60

    def test_wrong_statistics_are_refused(self, judge, tmp_path, samples):
        square = np.eye(8)
        for arrays, message in (
            ({"mu": np.zeros(8)}, "statistics without sigma"),
            ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"with D >= 1"),
            ({"mu": np.zeros(8), "sigma": np.eye(7)}, r"but must be \(D,\) and \(D, D\)"),
            ({"mu": np.zeros(8), "sigma": np.triu(np.ones((8, 8)))}, "is not symmetric"),
            ({"mu": np.full(8, np.nan), "sigma": square}, "not finite"),
            ({"mu": np.zeros(8, int), "sigma": square}, "mu is int64"),
            ({"mu": np.zeros(8), "sigma": square - 0.2}, "has the eigenvalue -0.6, but"),
            ({"mu": np.zeros(9), "sigma": np.eye(9)}, "9 features, but 'inception' has 8"),
        ):
            np.savez(tmp_path / "wrong.npz", **arrays)
            with pytest.raises(ImageSetError, match=message):
                judge(samples, tmp_path / "wrong.npz", ["fid"])

    def test_statistics_beyond_what_can_be_computed_with(self, judge, tmp_path, samples):
        for mu, sigma in ((1e200, 1.0), (0.0, 1e308)):
            arrays = {"mu": np.full(8, mu), "sigma": sigma * np.eye(8)}
            np.savez(tmp_path / "huge.npz", **arrays)
            with pytest.raises(ImageSetError, match="not finite, or beyond any feature's"):
                judge(samples, tmp_path / "huge.npz", ["fid"])

    def test_wrong_width_is_noticed_at_once(self, judge, tmp_path, samples):
        np.savez(tmp_path / "wrong.npz", mu=np.zeros(9), sigma=np.eye(9))
        extractor = FakeExtractor()
        with pytest.raises(ImageSetError, match="9 features"):
            judge(samples, tmp_path / "wrong.npz", ["fid"], extractor)
        assert extractor.seen == 1

    def test_rounded_covariances_are_taken(self, tmp_path):
        x_NxD = np.random.RandomState(0).normal(size=(20, 50)) * 1e3
        sigma = np.cov(x_NxD, rowvar=False).astype(np.float32)  # singular
        assert np.linalg.eigvalsh(sigma.astype(np.float64)).min() < 0
        np.savez(tmp_path / "rounded.npz", mu=np.zeros(50), sigma=sigma)
        assert open_reference(tmp_path / "rounded.npz").gaussian["pool"].covariance.shape == (
            50,
            50,
        )

    def test_files_with_images_are_hashed_once(self, statistics, monkeypatch):
        spy = unittest.mock.Mock(wraps=files.sha256)
        monkeypatch.setattr(files, "sha256", spy)
        reference = open_reference(statistics / "adm.npz")
        assert reference.images is not None
        assert reference.images.sha256 == reference.sha256
        assert spy.call_count == 1

    def test_pickles_are_refused_unread(self, judge, tmp_path, samples):
        for name in ("img64.pkl", "stats.pt"):
            (tmp_path / name).write_bytes(pickle.dumps({"fid": {}}))
            with pytest.raises(ImageSetError, match="is a pickle, which is refused"):
                judge(samples, tmp_path / name)
        np.savez(tmp_path / "o.npz", mu=np.array([{}], object), sigma=np.eye(1), allow_pickle=True)
        with pytest.raises(ImageSetError, match="mu holds pickled Python objects"):
            judge(samples, tmp_path / "o.npz")


class TestCache:
    def test_reference_runs_once_by_content(self, judge, tmp_path, samples, reference):
        first = judge(samples, reference)
        reference.rename(tmp_path / "moved.npz")
        extractor = FakeExtractor()
        second = judge(samples, tmp_path / "moved.npz", extractor=extractor)
        assert second["metrics"] == first["metrics"]
        assert extractor.seen == 60
        # Neither other images nor another network find it.
        np.savez(tmp_path / "moved.npz", REAL[::-1])
        other_images, other_network = FakeExtractor(), FakeExtractor()
        judge(samples, tmp_path / "moved.npz", extractor=other_images)
        other_network.description = {**DESCRIPTION, "resize": "other"}
        judge(samples, tmp_path / "moved.npz", extractor=other_network)
        assert (other_images.seen, other_network.seen) == (110, 110)

    def test_only_references_stay(self, judge, tmp_path, samples, reference):
        judge(samples, reference, ["fid"])
        (folder,) = (tmp_path / "cache").iterdir()
        assert folder.name.startswith("reference-")
        # FID keeps no features.
        assert sorted(file.name for file in folder.iterdir()) == ["lock", "state.npz"]

    def test_statistics_of_a_reference_are_taken_once(self, judge, samples, reference):
        judge(samples, reference, ["fid"])
        extractor = FakeExtractor()
        judge(samples, reference, ["fid", "sfid"], extractor)
        assert extractor.seen == 60

    @pytest.mark.parametrize("names", [["fid"], ["fid", "sfid", "is", "pr"]])
    def test_goes_on_where_it_stopped(self, judge, samples, reference, names):
        expected = judge(samples, reference, names)
        extractor = FakeExtractor(fail_after=40)
        with pytest.raises(KeyboardInterrupt):
            judge(samples, reference, names, extractor)
        resumed = FakeExtractor()
        assert judge(samples, reference, names, resumed) == expected
        assert resumed.seen == 60 - 40  # the first two batches were saved

    def test_a_crash_costs_what_was_not_saved_in_time(self, judge, samples, reference, monkeypatch):
        class Crash(FakeExtractor):
            def __call__(self, image_NxHxWxC):
                if self.seen == 40:
                    raise MemoryError
                return super().__call__(image_NxHxWxC)

        expected = judge(samples, reference)
        # Batches at 10 and 20 seconds after the start, then at 20 and 30 after the last storing.
        for seconds, seen in ((60.0, 60), (20.0, 20)):
            monkeypatch.setattr(collect_module, "_SAVE_EVERY", seconds)
            clock = unittest.mock.Mock(side_effect=range(0, 10**6, 10))
            monkeypatch.setattr(collect_module, "time", types.SimpleNamespace(monotonic=clock))
            with pytest.raises(MemoryError):
                judge(samples, reference, extractor=Crash())
            resumed = FakeExtractor()
            assert judge(samples, reference, extractor=resumed) == expected
            assert resumed.seen == seen

    def test_parts_of_other_runs_do_not_count(self, judge, tmp_path, samples, reference):
        expected = judge(samples, reference)
        (folder,) = (tmp_path / "cache").iterdir()

        def interrupted(batch_size, fail_after):
            with pytest.raises(KeyboardInterrupt):
                evaluate(
                    open_set(samples),
                    open_reference(reference),
                    FakeExtractor(fail_after),
                    cache=tmp_path / "cache",
                    batch_size=batch_size,
                )

        for lost in ("state.npz", "part-000000014.npz"):
            for file in folder.glob("*.npz"):
                file.unlink()
            interrupted(7, 20)
            interrupted(7, 20)
            assert (folder / "part-000000014.npz").exists()
            (folder / lost).unlink()
            interrupted(12, 24)
            assert sorted(file.name for file in folder.glob("part-*")) == ["part-000000000.npz"]
            assert judge(samples, reference) == expected
            assert judge(samples, reference) == expected  # from the cache

    def test_two_at_once_are_refused(self, judge, tmp_path, samples, reference):
        class Nested(FakeExtractor):
            def __call__(self, image_NxHxWxC):
                with pytest.raises(ImageSetError, match="is in use by another evaluation of"):
                    judge(samples, reference)
                return super().__call__(image_NxHxWxC)

        judge(samples, reference, extractor=Nested())

    def test_arrays_alone_are_handed_to_savez(self, judge, samples, reference, monkeypatch):
        # Before 2.1, NumPy takes its later argument `allow_pickle` for an array.
        spy = unittest.mock.Mock(wraps=np.savez)
        monkeypatch.setattr(collect_module.np, "savez", spy)
        judge(samples, reference)
        assert spy.call_count > 1
        for call in spy.call_args_list:
            assert all(isinstance(x, np.ndarray) for x in call.kwargs.values())

    def test_damaged_files_are_made_again(self, judge, tmp_path, samples, reference):
        expected = judge(samples, reference)
        (folder,) = (tmp_path / "cache").iterdir()
        for file in sorted(folder.glob("*.npz")):
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2])
            extractor = FakeExtractor()
            assert judge(samples, reference, extractor=extractor) == expected
            assert extractor.seen == 110

    @pytest.mark.parametrize("damage", [lambda x: x[:1], lambda x: np.full_like(x, np.nan)])
    def test_states_of_other_shapes_or_numbers_are_made_again(
        self, judge, tmp_path, samples, reference, damage
    ):
        expected = judge(samples, reference, ["fid"])
        (state,) = (tmp_path / "cache").glob("*/state.npz")
        with np.load(state) as file:
            arrays = dict(file)
        np.savez(state, **(arrays | {"pool/scatter": damage(arrays["pool/scatter"])}))
        assert judge(samples, reference, ["fid"]) == expected


class TestRefusals:
    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], "--metrics is empty; allowed: fid, sfid"),
            (["fod"], "--metrics holds 'fod'; allowed: fid, sfid"),
        ],
    )
    def test_unknown_metrics(self, judge, samples, reference, names, message):
        with pytest.raises(ImageSetError, match=message):
            judge(samples, reference, names)

    def test_impossible_metrics(self, tmp_path, reference):
        images = open_reference(reference)
        with pytest.raises(ImageSetError, match="'sfid', which needs the features' output 'spat"):
            choose(["sfid"], "dinov2", images)
        assert choose(None, "dinov2", images) == ["fid", "pr"]
        np.savez(tmp_path / "stats.npz", mu=np.zeros(8), sigma=np.eye(8))
        stored = open_reference(tmp_path / "stats.npz")
        with pytest.raises(ImageSetError, match="'kid', which needs images"):
            choose(["fid", "kid"], "inception", stored)
        with pytest.raises(ImageSetError, match="'sfid', which needs the reference's statistics"):
            choose(["sfid"], "inception", stored)

    def test_wrong_sets(self, judge, tmp_path, samples, reference):
        other = tmp_path / "other.npz"
        np.savez(other, np.zeros((30, 8, 8, 3), np.uint8))
        with pytest.raises(ImageSetError, match=r"images of 4x4, but .* of 8x8"):
            judge(samples, other)
        np.savez(other, REAL)
        with pytest.raises(ImageSetError, match="has no labels, which per_class needs"):
            judge(samples, other, ["per_class"])
        np.savez(other, REAL[:1])
        with pytest.raises(ImageSetError, match="holds 1 image, but 2 are needed"):
            judge(other, reference)
        np.savez(other, REAL[:3])
        with pytest.raises(ImageSetError, match="3 images, but more than 3 are needed"):
            judge(other, reference)
        np.savez(other, REAL[:10], np.full(10, 7))
        with pytest.raises(ImageSetError, match=r"no class that both .* has 7, .* has 0, 1, 2;"):
            judge(other, reference, ["per_class"])
        np.savez(other, REAL[:10], np.arange(10))
        with pytest.raises(ImageSetError, match="needs a class with 2 images"):
            judge(other, reference, ["per_class"])

    def test_bad_networks(self, judge, samples, reference):
        class Broken(FakeExtractor):
            factor = np.float32(1)

            def __call__(self, image_NxHxWxC):
                outputs = super().__call__(image_NxHxWxC)
                return {"pool": outputs["pool"] * self.factor}

        extractor = Broken()
        with pytest.raises(ImageSetError, match="have no output 'spatial'"):
            judge(samples, reference, ["sfid"], extractor)
        extractor.name, extractor.factor = "dinov2", np.float32(np.nan)
        with pytest.raises(ImageSetError, match="images 0 to 19 are not finite"):
            judge(samples, reference, ["fid"], extractor)


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path, samples, reference, monkeypatch):
        def load_extractor(name, weights, batch_size):
            return run.extractor

        monkeypatch.setattr(judging, "load_extractor", load_extractor)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

        def run(*more, output=tmp_path / "new" / "result.json", samples=samples):
            arguments = ["--samples", samples, "--reference", reference, "--weights", "none"]
            return fid.main([*map(str, arguments), "--output", str(output), *map(str, more)])

        run.extractor = FakeExtractor()
        return run

    def test_writes_result_and_prints_a_table(self, run, tmp_path, capsys):
        assert run() == 0
        result = json.loads((tmp_path / "new" / "result.json").read_text())
        printed = capsys.readouterr().out
        assert f"{result['metrics']['fid']['value']:.5g}" in printed
        for title in ("FID", "sFID", "Inception Score", "precision", "recall", "60 images"):
            assert title in printed
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["result.json"]
        assert (tmp_path / "xdg" / "dit_moe" / "eval").is_dir()

    def test_fid_is_named_by_inception_alone(self, run, tmp_path, capsys):
        run.extractor.name = "dinov2"
        assert run("--metrics", "fid", "--features", "dinov2", "--cache", tmp_path / "here") == 0
        assert "Fréchet distance (dinov2)" in capsys.readouterr().out
        assert (tmp_path / "here").is_dir()
        assert not (tmp_path / "xdg").exists()

    def test_names_that_are_no_text(self, run, tmp_path, samples):
        strange = samples.rename(tmp_path / os.fsdecode(b"\xff.npz"))
        assert run("--metrics", "fid", samples=strange) == 0
        result = json.loads((tmp_path / "new" / "result.json").read_text(encoding="utf-8"))
        assert result["samples"]["path"].endswith("?.npz")

    def test_mistakes_end_with_one_sentence(self, run, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        (tmp_path / "loop").symlink_to("loop")
        for arguments in (
            {"samples": tmp_path / "absent.npz"},
            {"samples": tmp_path / "file"},
            {"samples": tmp_path / "loop"},
            {"output": tmp_path},
            {"output": tmp_path / "samples.npz"},
            {"output": tmp_path / "file" / "result.json"},
        ):
            assert run(**arguments) == 2
        assert run("--metrics", "fid,none") == 2
        assert run("--batch_size", 0) == 2
        errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
        assert len(errors) == 8
        assert not (tmp_path / "new").exists()

    def test_mistakes_are_of_one_kind(self, tmp_path, samples, reference):
        arguments = [f"--samples={samples}", f"--reference={reference}", "--weights=none"]
        for more in (
            ["--output=a.txt"],
            [f"--output={tmp_path}"],
            ["--output=a.json", "--batch_size=0"],
        ):
            with pytest.raises(ConfigError):
                fid._run(fid._parser().parse_args([*arguments, *more]))
        assert issubclass(ImageSetError, ConfigError)
        assert issubclass(WeightsError, ConfigError)

    def test_interruption_is_told(self, run, capsys):
        run.extractor = FakeExtractor(fail_after=0)
        assert run() == 130
        assert "Give the same command again" in capsys.readouterr().err

    def test_help_teaches(self, capsys):
        with pytest.raises(SystemExit) as info:
            fid.main(["--help"])
        assert info.value.code == 0
        text = capsys.readouterr().out
        assert all(name in text for name in METRICS)
        assert "examples:" in text
