"""Moving averages with power-function profiles, and what is made of their snapshots."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from dit_moe.autoencoder.latent_space import (
    AutoencoderCard,
    LatentSpace,
    read_latent_space,
    write_latent_space,
)
from dit_moe.commands import post_hoc_ema
from dit_moe.config import MAX_SIGMA_REL, ConfigError, MeshConfig
from dit_moe.config.files import override, to_json
from dit_moe.devices.mesh import build_mesh, parameter_shardings
from dit_moe.models.parameters import abstract_parameters, logical_axes
from dit_moe.runs import ema_snapshots
from dit_moe.runs.ema_profiles import fit_profiles, profile_products
from dit_moe.runs.ema_snapshots import (
    drop_snapshots_after,
    read_track,
    save_snapshot,
    snapshot_folder,
    snapshot_steps,
)
from dit_moe.runs.ema_tracks import exponent, init_tracks, update_tracks
from dit_moe.runs.loading import load_run
from dit_moe.runs.post_hoc_ema import plan, rebuild
from dit_moe.training.loop import train
from tests.tiny import tiny

CONFIG = tiny(None, post_hoc_ema=(0.05, 0.1), post_hoc_ema_every=2)
LIKE = abstract_parameters(CONFIG.model)
STEPS, EVERY = 24, 3


def profile(t, gamma, end):
    """The paper's equation 2: the density of weight at time t of an average up to `end`."""
    return (gamma + 1) * t**gamma / end ** (gamma + 1)


class TestProfile:
    @pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.288])
    def test_its_standard_deviation_is_the_relative_width(self, sigma_rel):
        gamma = exponent(sigma_rel)
        assert gamma > 0
        total, mean, square = (
            quad(lambda t, k=k: t**k * profile(t, gamma, 1), 0, 1)[0] for k in range(3)
        )
        assert total == pytest.approx(1, rel=1e-9)
        assert np.sqrt(square - mean**2) == pytest.approx(sigma_rel, rel=1e-6)

    def test_the_widest_is_the_plain_mean(self):
        assert exponent(MAX_SIGMA_REL) == pytest.approx(0, abs=1e-9)

    def test_published_exponents(self):
        # Section 3.1: "gamma = 6.94 and 16.97 for sigma_rel = 0.10 and 0.05".
        assert (exponent(0.1), exponent(0.05)) == pytest.approx((6.94, 16.97), abs=0.005)

    def test_products_are_the_integrals(self):
        for t_a, t_b in [(3, 5), (5, 3), (4, 4)]:
            for gamma_a, gamma_b in [(17, 7), (0.5, 30), (6, 6)]:
                expected, _ = quad(
                    lambda t, a=(gamma_a, t_a), b=(gamma_b, t_b): profile(t, *a) * profile(t, *b),
                    *(0, min(t_a, t_b)),
                )
                arguments = (np.float64(v) for v in (t_a, gamma_a, t_b, gamma_b))
                assert profile_products(*arguments) == pytest.approx(expected, rel=1e-9)


class TestUpdate:
    def test_weights_are_the_integrals_of_the_profile(self):
        theta_TxD = np.random.default_rng(0).normal(size=(50, 3))
        tracks = init_tracks((0.05, 0.2), {"w": jnp.zeros(3)})
        update = jax.jit(update_tracks)
        for step, theta_D in enumerate(theta_TxD, start=1):
            tracks = update(tracks, {"w": jnp.float32(theta_D)}, jnp.int32(step))
            if step == 1:
                np.testing.assert_array_equal(tracks["0.05"]["w"], np.float32(theta_D))
        for sigma_rel, track in tracks.items():
            gamma = exponent(float(sigma_rel))
            weight_T = [quad(profile, t, t + 1, (gamma, 50))[0] for t in range(50)]
            np.testing.assert_allclose(track["w"], weight_T @ theta_TxD, rtol=2e-6, atol=1e-6)

    @pytest.mark.parametrize("step", [10, 10_000, 10_000_000])
    def test_the_weight_of_a_late_step_is_not_rounded_away(self, step):
        tracks = update_tracks({"0.05": {"w": jnp.zeros(1)}}, {"w": jnp.ones(1)}, jnp.int32(step))
        weight = -np.expm1((exponent(0.05) + 1) * np.log1p(-1 / step))
        np.testing.assert_allclose(tracks["0.05"]["w"], weight, rtol=1e-6)

    def test_what_stands_still_stays(self):
        parameters = {"w": jnp.float32([1.1, -3.3e-5, 7e8])}
        start = init_tracks((0.05, 0.1), parameters)
        tracks = jax.lax.fori_loop(
            1, 5000, lambda step, tracks: update_tracks(tracks, parameters, step), start
        )
        for track in tracks.values():
            np.testing.assert_array_equal(track["w"], parameters["w"])

    def test_no_tracks_cost_nothing(self):
        assert init_tracks((), {"w": jnp.ones(1)}) == {}
        assert update_tracks({}, {"w": jnp.ones(1)}, jnp.int32(1)) == {}


def stored_profiles(num, widths=(0.05, 0.1)):
    t_I = np.repeat(np.arange(1.0, num + 1), len(widths))
    return t_I, np.tile([exponent(w) for w in widths], num)


class TestFit:
    def test_equals_least_squares_on_a_fine_grid(self):
        t_I, gamma_I = stored_profiles(6)
        t_G = (np.arange(20_000) + 0.5) / 20_000 * 6
        P_GxI = profile(t_G[:, None], gamma_I, t_I) * (t_G[:, None] < t_I)
        for sigma_rel in (0.03, 0.07, 0.2):
            p_G = profile(t_G, exponent(sigma_rel), 6)
            # A heavy row holds the sum of the coefficients to 1.
            system = np.concatenate([P_GxI, np.full((1, 12), 1e6)])
            x_I, *_ = np.linalg.lstsq(system, np.append(p_G, 1e6))
            error = np.linalg.norm(P_GxI @ x_I - p_G) / np.linalg.norm(p_G)
            x_RxI, error_R = fit_profiles(t_I, gamma_I, 6, np.array([exponent(sigma_rel)]))
            np.testing.assert_allclose(x_RxI[0], x_I, atol=1e-4)
            assert error_R[0] == pytest.approx(error, rel=1e-3)
            assert x_RxI.sum() == pytest.approx(1, abs=1e-9)

    def test_with_many_snapshots_it_is_the_papers(self):
        """The paper's algorithm 3 solves A x = b without holding the sum to 1."""
        t_I, gamma_I = stored_profiles(40)
        gamma = np.array([exponent(0.07)])
        A_IxI = profile_products(t_I[:, None], gamma_I[:, None], t_I, gamma_I)
        b_I = profile_products(t_I, gamma_I, np.float64(40), gamma)
        x_RxI, _ = fit_profiles(t_I, gamma_I, 40, gamma)
        np.testing.assert_allclose(x_RxI[0], np.linalg.solve(A_IxI, b_I), atol=1e-5)

    def test_stored_profiles_are_themselves(self):
        t_I, gamma_I = stored_profiles(64)
        x_RxI, error_R = fit_profiles(t_I, gamma_I, 64, gamma_I[-2:])
        np.testing.assert_allclose(x_RxI, np.eye(128)[-2:], atol=1e-8)
        assert error_R.max() < 1e-6

    @pytest.mark.parametrize(
        ("num", "sigma_rel", "most"),
        [(32, 0.03, 0.012), (32, 0.07, 0.001), (32, 0.2, 0.007), (8, 0.07, 0.015)],
    )
    def test_errors(self, num, sigma_rel, most):
        """The figures of docs/ema.md."""
        gamma = np.array([exponent(sigma_rel)])
        assert fit_profiles(*stored_profiles(num), num, gamma)[1][0] < most


def walk(steps, seed=0):
    """Parameters by step that wander away from where they began, as in training."""
    rng = np.random.default_rng(seed)
    theta = {path: rng.normal(size=p.shape) for path, p in LIKE.items()}
    for _ in range(steps):
        theta = {path: v + 0.05 * rng.normal(size=v.shape) for path, v in theta.items()}
        yield {path: jnp.float32(v) for path, v in theta.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with snapshots of a random walk, and averages that were tracked directly."""
    workdir = tmp_path_factory.mktemp("ema") / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(to_json(CONFIG))
    update = jax.jit(update_tracks)
    zeros = {path: jnp.zeros(p.shape) for path, p in LIKE.items()}
    direct = {}
    tracks, others = (init_tracks(w, zeros) for w in (CONFIG.train.post_hoc_ema, (0.07, 0.14)))
    for step, parameters in enumerate(walk(STEPS), start=1):
        tracks, others = (update(t, parameters, step) for t in (tracks, others))
        if step % EVERY == 0:
            save_snapshot(workdir, step, tracks)
            direct[step] = jax.device_get({**tracks, **others, "last": parameters})
    return workdir, direct


@pytest.fixture
def run(trained, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(trained[0], tmp_path / "run")


def command(workdir, output, sigma_rel="0.07", *more):
    arguments = ["--workdir", workdir, "--sigma_rel", sigma_rel, "--output", output, *more]
    return post_hoc_ema.main([str(a) for a in arguments])


class TestRebuild:
    @pytest.mark.parametrize("step", [STEPS // 2, None])
    def test_a_track_is_its_snapshot(self, trained, step):
        workdir, direct = trained
        for recipe in plan(workdir, CONFIG.train.post_hoc_ema, step):
            assert (recipe.step, recipe.num_reads) == (step or STEPS, 1)
            for path, value in rebuild(recipe).items():
                wanted = direct[recipe.step][str(recipe.sigma_rel)][path]
                np.testing.assert_array_equal(value, wanted)

    @pytest.mark.parametrize(("sigma_rel", "step"), [(0.07, 18), (0.07, 24), (0.14, 24)])
    def test_other_widths_are_as_if_tracked(self, trained, sigma_rel, step):
        workdir, direct = trained
        (recipe,) = plan(workdir, [sigma_rel], step)
        rebuilt = rebuild(recipe)
        wanted, last = direct[step][str(sigma_rel)], direct[step]["last"]
        # Beside how far the average is from the parameters themselves.
        off, away = (
            np.sqrt(sum(np.sum((other[path] - wanted[path]) ** 2) for path in wanted))
            for other in (rebuilt, last)
        )
        assert off < 0.02 * away, (off, away)


class TestCommand:
    def test_one_width_is_a_run_folder(self, trained, tmp_path, capsys):
        workdir, direct = trained
        output = tmp_path / "new"
        assert command(workdir, output, "0.1", "--step", 18) == 0
        assert "sigma_rel 0.1 at step 18: profile within 0.00%" in capsys.readouterr().out
        assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]
        assert not (output / "latents.json").exists()
        for ema in (True, False):
            found = load_run(output, ema)
            assert (found.config, found.step) == (CONFIG, 18)
            for path, value in direct[18]["0.1"].items():
                np.testing.assert_array_equal(found.parameters[path], value)
        recipe = json.loads((output / "post_hoc_ema.json").read_text())
        assert recipe["coefficients"]["0.1"] == {"18": pytest.approx(1)}

    def test_several_widths_are_folders(self, run, tmp_path):
        space = LatentSpace(AutoencoderCard("a", "0" * 64, 1.0), mean=(0.5,), std=(2.0,))
        write_latent_space(run, space, resuming=False)
        output = tmp_path / "deep" / "new"
        # The last two are one to six digits.
        names = ["sigma_0.05", "sigma_0.1", "sigma_0.1000001"]
        assert command(run, output, "0.05,0.1,0.1000001") == 0
        for name in names:
            assert read_latent_space(output / name) == space
            assert load_run(output / name).step == STEPS
        assert sorted(p.name for p in output.iterdir()) == names

    @pytest.mark.parametrize(
        ("sigma_rel", "more", "message"),
        [
            ("0.3", (), "sigma_rel is 0.3; allowed: above 0, below 12^-1/2 (0.2886)"),
            ("0", (), "sigma_rel is 0; allowed"),
            ("nan", (), "sigma_rel is nan; allowed"),
            ("wide", (), "sigma_rel is 'wide'; allowed: numbers"),
            ("", (), "sigma_rel is ''; allowed: different numbers"),
            ("0.1,0.1", (), "sigma_rel is '0.1,0.1'; allowed: different numbers"),
            (
                "0.07",
                ("--step", 7),
                "step is 7; allowed: a snapshot's (3, 6, 9, 12, 15, 18, 21, 24)",
            ),
            ("0.01", (), "sigma_rel is 0.01, which the 8 snapshots up to step 24 make with an"),
        ],
    )
    def test_what_cannot_be_made_is_one_sentence(
        self, trained, tmp_path, capsys, sigma_rel, more, message
    ):
        assert command(trained[0], tmp_path / "new", sigma_rel, *more) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_the_nearest_that_is_offered_can_be_made(self, trained, capsys):
        for sigma_rel in (0.01, 0.28):
            with pytest.raises(ConfigError, match="the nearest is ") as caught:
                plan(trained[0], [sigma_rel])
            nearest = float(str(caught.value).rpartition(" ")[2])
            # Its three digits may lie a little outside.
            assert plan(trained[0], [nearest + np.sign(0.1 - sigma_rel) * 1e-3])

    def test_an_output_that_exists(self, trained, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert command(trained[0], tmp_path) == 2
        assert "which is there already; allowed: a new one" in capsys.readouterr().err

    def test_not_a_run(self, tmp_path, capsys):
        assert command(tmp_path / "none", tmp_path / "new") == 2
        assert "is not a folder; allowed: a run" in capsys.readouterr().err
        assert command(tmp_path, tmp_path / "new") == 2
        assert "config.json does not exist" in capsys.readouterr().err

    def test_a_run_without_snapshots(self, tmp_path, capsys):
        for config in (tiny(None), CONFIG):
            (tmp_path / "config.json").write_text(to_json(config))
            assert command(tmp_path, tmp_path / "new") == 2
            assert "has no EMA snapshots; allowed: a run that was" in capsys.readouterr().err

    def test_a_damaged_snapshot_is_named_and_nothing_written(self, run, tmp_path, capsys):
        snapshot = snapshot_folder(run) / str(STEPS)
        (data,) = (snapshot / "sigma_0.1" / "d").iterdir()
        data.write_bytes(data.read_bytes()[:-100])
        assert command(run, tmp_path / "new", "0.1") == 2
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith(f"error: EMA snapshot {STEPS} in")
        assert [p.name for p in tmp_path.iterdir()] == ["run"]
        # As the message says.
        snapshot.rename(snapshot.with_name(f"damaged-{STEPS}"))
        assert command(run, tmp_path / "new", "0.1") == 0

    def test_another_model_is_no_snapshot_of_this_run(self, run, tmp_path, capsys):
        model = dataclasses.replace(CONFIG.model, width=32)
        (run / "config.json").write_text(to_json(dataclasses.replace(CONFIG, model=model)))
        assert command(run, tmp_path / "new") == 2
        assert "cannot be read" in capsys.readouterr().err

    def test_an_interrupt_leaves_nothing(self, trained, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(ema_snapshots, "fingerprints", interrupt)
        assert command(trained[0], tmp_path / "new") == 130
        assert not list(tmp_path.iterdir())


class TestSnapshots:
    def test_sharded_tracks_come_back_whole(self, tmp_path):
        mesh = build_mesh(MeshConfig(data=2, fsdp=4))
        path = "trunk.segments.0.blocks.0.attention.qkv.kernel"
        like = {path: LIKE[path]}
        sharding = parameter_shardings(mesh, LIKE, logical_axes(CONFIG.model))[path]
        (parameters,) = walk(1)
        value = jax.device_put(parameters[path], sharding)
        assert not value.sharding.is_fully_replicated
        save_snapshot(tmp_path, 3, {"0.05": {path: value}})
        restored = read_track(tmp_path, 3, "0.05", like)
        np.testing.assert_array_equal(restored[path], parameters[path])

    @pytest.mark.parametrize("place", range(4))
    def test_one_flipped_bit_of_the_values_is_noticed(self, run, place):
        # Random values do not compress: most of the file is values.
        (data,) = (snapshot_folder(run) / "6" / "sigma_0.1" / "d").iterdir()
        content = bytearray(data.read_bytes())
        content[(2 * place + 1) * len(content) // 8] ^= 1
        data.write_bytes(content)
        with pytest.raises(ConfigError, match=r"EMA snapshot 6 in .* cannot be read"):
            read_track(run, 6, "0.1", LIKE)

    def test_later_ones_are_dropped_before_they_are_made_again(self, run):
        leftover = snapshot_folder(run) / "12.orbax-checkpoint-tmp"
        shutil.copytree(snapshot_folder(run) / "12", leftover)
        drop_snapshots_after(run, 10)
        assert snapshot_steps(run) == [3, 6, 9]
        assert not leftover.exists()
        drop_snapshots_after(run.parent, 0)  # no snapshots, no folder
        assert not snapshot_folder(run.parent).exists()

    def test_a_failed_save_is_told_and_costs_only_itself(self, run, capsys):
        tracks = {"0.05": {"w": jnp.ones(3)}}
        blocked = snapshot_folder(run)
        shutil.rmtree(blocked)
        blocked.write_text("a file where the folder should be")
        save_snapshot(run, 8, tracks)
        out = capsys.readouterr().out
        assert out.startswith(f"EMA snapshot 8 could not be saved in {blocked}: ")
        assert "Not a directory" in out
        blocked.unlink()
        save_snapshot(run, 10, tracks)
        assert snapshot_steps(run) == [10]


class TestConfig:
    def test_on_the_command_line(self):
        config = override(CONFIG, ["--config.train.post_hoc_ema=0.03, 0.2"])
        assert config.train.post_hoc_ema == (0.03, 0.2)
        assert override(CONFIG, ["--config.train.post_hoc_ema="]).train.post_hoc_ema == ()

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("0.05,0.3", "post_hoc_ema.1 is '0.3'; input should be less than 0.28"),
            ("0", "post_hoc_ema.0 is '0'; input should be greater than 0"),
            ("nan", "post_hoc_ema.0 is 'nan'"),
            ("0.1,0.10", "post_hoc_ema is 0.1, 0.1; allowed: every width once"),
        ],
    )
    def test_wrong_widths(self, value, message):
        with pytest.raises(ConfigError) as caught:
            override(CONFIG, [f"--config.train.post_hoc_ema={value}"])
        assert f"config.train.{message}" in str(caught.value)


class TestTraining:
    def test_snapshots_resume_to_the_bit_and_make_averages(self, tmp_path):
        settings = dataclasses.replace(CONFIG.train, checkpoint_every=3)
        config = dataclasses.replace(CONFIG, train=settings)
        whole, again = tmp_path / "whole", tmp_path / "again"
        # Of a start that came to no checkpoint.
        save_snapshot(whole, 1, {"0.05": {"w": jnp.ones(3)}})
        train(config, whole)
        assert snapshot_steps(whole) == [2, 4, 6]
        shutil.copytree(whole, again)
        shutil.rmtree(again / "checkpoints" / "6")
        save_snapshot(again, 5, {"0.05": {"w": jnp.ones(3)}})  # of another course of the run
        train(config, again)
        assert snapshot_steps(again) == [2, 4, 6]
        for step in (4, 6):
            for path, value in read_track(whole, step, "0.1", LIKE).items():
                np.testing.assert_array_equal(value, read_track(again, step, "0.1", LIKE)[path])
        # Killed after its last checkpoint.
        shutil.rmtree(snapshot_folder(again) / "6")
        train(config, again)
        assert snapshot_steps(again) == [2, 4, 6]
        assert command(again, tmp_path / "new", "0.05") == 0
        averaged = load_run(tmp_path / "new").parameters
        for path, value in read_track(whole, 6, "0.05", LIKE).items():
            np.testing.assert_array_equal(averaged[path], value)
