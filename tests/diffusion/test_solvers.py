import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from dit_moe.config import SOLVERS, TIME_GRIDS, SolverConfig
from dit_moe.diffusion.denoiser import Denoised, unit_variance
from dit_moe.diffusion.integrate import sample
from dit_moe.diffusion.solvers import build_solver, step_noise, stochastic
from dit_moe.diffusion.solvers.adaptive import DORMAND_PRINCE
from dit_moe.diffusion.solvers.exponential import weights
from dit_moe.diffusion.solvers.runge_kutta import MIDPOINT, runge_kutta
from tests.diffusion.gaussian import DDPM, DENOISERS, DEVIATION, FLOW, MEAN, OBJECTIVES, parts
from tests.diffusion.gaussian import along_the_flow as exact

KEYS = jax.random.split(jax.random.key(0), 4)
LABELS = jnp.arange(4)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, 2, 2, 1))


def solve(name, denoiser, z, times, lowest=0.0, key_N=KEYS, **options):
    """The solver alone."""
    config = SolverConfig(name, len(times) - 1, **options).resolve(FLOW.config)
    run, n = build_solver(config, lowest), len(z)
    return jax.jit(lambda z: run(denoiser, z, key_N[:n], LABELS[:n], times))(jnp.asarray(z))


def even(steps):
    return np.linspace(0.95, 0.3, steps + 1)


def even_in_lambda(steps):
    # What the first step, which has no past, does wrong is weighted by exp(lambda).
    return 1 / (1 + np.exp(np.linspace(-5, 1.5, steps + 1)))


@pytest.mark.parametrize("objective", ["rectified_flow", "ddpm"])
@pytest.mark.parametrize(
    ("solver", "order", "grid", "counts"),
    [
        ("euler", 1, even, (32, 64, 128)),
        # One more than in general, because variances on the path are quadratic in t.
        ("midpoint", 3, even, (32, 64, 128)),
        ("heun", 2, even, (32, 64, 128)),
        ("rk4", 4, even, (4, 8, 16)),
        ("dpmpp_2m", 2, even_in_lambda, (32, 64, 128)),
        ("dpmpp_3m", 3, even_in_lambda, (64, 128, 256)),
        ("unipc", 3, even_in_lambda, (64, 128, 256)),
    ],
)
def test_order_of_convergence(objective, solver, order, grid, counts):
    errors = []
    with jax.enable_x64():
        for count in counts:
            times = grid(count)
            z = solve(solver, DENOISERS[objective], exact(Z[:1], times[0]), times)
            errors.append(np.abs(z - exact(Z[:1], times[-1])).max())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2, errors


@pytest.mark.parametrize("solver", SOLVERS)
def test_few_steps_give_numbers(solver):
    """On every grid, for both objectives; there are no zero divisions at t = 1 and t = 0."""
    grids = TIME_GRIDS if "time_grid" in SOLVERS[solver] else (None,)
    cases = [
        case
        for case in itertools.product(OBJECTIVES, grids, (1, 2, 3))
        if (case[0], solver) != ("rectified_flow", "ancestral")
        and (case[1] in (None, "uniform") or case[2] == 3)
    ]

    def draw(objective, grid, steps):
        return sample(
            OBJECTIVES[objective],
            DENOISERS[objective],
            KEYS[:2],
            LABELS[:2],
            (2, 2, 1),
            solver,
            steps,
            time_grid=grid,
        )

    samples = jax.jit(lambda: [draw(*case) for case in cases])()  # compiled together: faster
    for case, x in zip(cases, samples, strict=True):
        assert np.isfinite(x).all(), case
        assert np.abs(x - MEAN).max() < 3, case  # ten deviations


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_depends_on_its_key_alone(solver):
    def network(z, t, y):
        value = jnp.tanh(z * (1 + 2 * y[:, None, None, None]))
        return DENOISERS["ddpm"](z, t, y).replace(noise=value, clean=-value)

    options = {"dopri5": {"tolerance": 0.05}, "ddim": {"eta": 0.5}}.get(solver, {})

    @jax.jit
    def run(key_N, y_N):
        return sample(DDPM, network, key_N, y_N, (2, 2, 1), solver, 8, **options)

    others = np.array([2, 2, 1, 3])
    one, other = run(KEYS, LABELS), run(KEYS[others], LABELS[others])
    np.testing.assert_array_equal(one[others], other)


def test_ddim_with_eta_one_is_the_posterior():
    """DDPM, eq. 6 and 7, with IDDPM's betas of the visited timesteps."""
    visited = np.arange(10) * 100
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[visited]
    before = np.append(1, alpha_bar[:-1])
    alpha = alpha_bar / before
    x = np.asarray(step_noise(KEYS, 0, (2, 2, 1)), np.float64)
    actual = sample(DDPM, DENOISERS["ddpm"], KEYS, LABELS, (2, 2, 1), "ddim", 10, eta=1.0)
    for number, i in enumerate(range(9, -1, -1), start=1):
        a, b = alpha_bar[i], before[i]
        noise = np.sqrt(1 - a) * (x - np.sqrt(a) * MEAN) / (a * DEVIATION**2 + 1 - a)
        x_0 = (x - np.sqrt(1 - a) * noise) / np.sqrt(a)
        mean = np.sqrt(b) * (1 - alpha[i]) / (1 - a) * x_0
        mean += np.sqrt(alpha[i]) * (1 - b) / (1 - a) * x
        variance = (1 - b) / (1 - a) * (1 - alpha[i])
        x = mean + np.sqrt(variance) * np.asarray(step_noise(KEYS, number, (2, 2, 1)))
    np.testing.assert_allclose(actual, x, rtol=1e-4, atol=1e-5)


def test_ddim_without_eta_is_euler():
    times = FLOW.times(5)
    np.testing.assert_array_equal(
        solve("ddim", DENOISERS["rectified_flow"], Z, times, eta=0.0),
        solve("euler", DENOISERS["rectified_flow"], Z, times),
    )


@pytest.mark.parametrize(("solver", "options"), [("euler_maruyama", {}), ("ddim", {"eta": 1.0})])
@pytest.mark.parametrize("objective", ["rectified_flow", "ddpm"])
def test_stochastic_solvers_keep_the_moments_of_gaussian_data(objective, solver, options):
    key_N = jax.random.split(jax.random.key(3), 64)
    y_N = jnp.zeros(64, jnp.int32)
    run = jax.jit(
        lambda: sample(
            OBJECTIVES[objective], DENOISERS[objective], key_N, y_N, (8, 8, 1), solver, 200,
            **options,
        )
    )  # fmt: skip
    x = np.asarray(run(), np.float64)
    assert abs(x.mean() - MEAN) < 0.01
    assert abs(x.std() - DEVIATION) < 0.02
    # Noise is drawn for every pixel.
    assert abs(np.corrcoef(x[:, 0, 0, 0], x[:, 0, 1, 0])[0, 1]) < 0.5


def moments(solver, steps, monkeypatch, **options):
    """Mean and variance of what it draws of Gaussian data, whose steps are linear: without noise,
    and with each draw alone."""
    monkeypatch.setattr(
        stochastic,
        "step_noise",
        lambda key_N, number, shape: 1.0 * (jnp.arange(steps + 2) == number)[:, None, None, None],
    )
    config = SolverConfig(solver, steps, **options).resolve(FLOW.config)
    times, y_N = np.linspace(1, 0, steps + 1), jnp.zeros(steps + 2, jnp.int32)
    with jax.enable_x64():
        z = stochastic.step_noise(None, 0, None)
        run = build_solver(config, 0.0)
        x = jax.jit(lambda z: run(DENOISERS["rectified_flow"], z, None, y_N, times))(z)
    *alone, mean = np.asarray(x).ravel()
    return mean, np.sum(np.square(alone - mean))


@pytest.mark.parametrize(("solver", "options"), [("euler_maruyama", {}), ("ddim", {"eta": 1.0})])
def test_weak_order_of_convergence(solver, options, monkeypatch):
    counts = (64, 128, 256)
    drawn = np.array([moments(solver, count, monkeypatch, **options) for count in counts])
    np.testing.assert_allclose(drawn[:, 0], MEAN, rtol=1e-6)  # exact at any number of steps
    errors = np.abs(drawn[:, 1] - DEVIATION**2)
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - 1) < 0.2, errors


def test_moments_of_euler_maruyama(monkeypatch):
    """Each step's effect on mean and variance, from SiT's equation with w(t) = t."""
    mean, variance = 0.0, 1.0
    times = np.linspace(1, 0, 9)
    for t, t_next in itertools.pairwise(times):
        last, dt = t_next == 0, t_next - t
        total = (1 - t) ** 2 * DEVIATION**2 + t**2
        # velocity and score are linear in z; the score is -(z - (1 - t) MEAN) / total.
        slope = (t - (1 - t) * DEVIATION**2) / total
        drift = slope + (0 if last else t / 2 / total)
        mean += dt * (drift * (mean - (1 - t) * MEAN) - MEAN)
        variance = (1 + dt * drift) ** 2 * variance + (0 if last else -t * dt)
    assert abs(variance**0.5 / DEVIATION - 1) > 0.03  # eight steps are not exact
    drawn = moments("euler_maruyama", 8, monkeypatch)
    np.testing.assert_allclose(drawn, (mean, variance), rtol=1e-6)


def variance_preserving(times):
    """alpha, sigma and lambda of x_t = alpha x_0 + sigma noise."""
    ratio = times / (1 - times)
    alpha = 1 / np.sqrt(1 + ratio**2)
    return alpha, ratio * alpha, -np.log(ratio)


def clean_of(x, t):
    scale = np.sqrt((1 - t) ** 2 + t**2)
    return np.asarray(parts(x * scale, np.float64(t))[0])


def dpm_solver_2m(x, times):
    """Lu et al. 2022 (DPM-Solver++), algorithm 2, as it stands."""
    alpha, sigma, lam = variance_preserving(times)
    h = np.diff(lam)
    buffer = [clean_of(x, times[0])]
    for i in range(1, len(times)):
        d = buffer[-1]
        if i > 1:
            r = h[i - 2] / h[i - 1]
            d = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(-h[i - 1]) * d
        buffer.append(clean_of(x, times[i]))
    return x


def polynomial_3m(x, times):
    """DPM-Solver++ of order 3: the exact integral of a parabola, by quadrature."""
    alpha, sigma, lam = variance_preserving(times)
    buffer = [clean_of(x, times[0])]
    for i in range(1, len(times)):
        s, e = lam[i - 1], lam[i]
        nodes = lam[max(0, i - 3) : i]

        def weight(k, s=s, e=e, nodes=nodes):
            if len(nodes) == 2:  # algorithm 2's
                r = (nodes[1] - nodes[0]) / (e - s)
                return (1 - np.exp(s - e)) * ((-1 / (2 * r)) if k == 0 else 1 + 1 / (2 * r))
            others = np.delete(nodes, k)
            basis = lambda u: np.prod((u - others) / (nodes[k] - others))  # noqa: E731
            return integrate.quad(lambda u: np.exp(u - e) * basis(u), s, e, epsabs=1e-13)[0]

        mean = sum(weight(k) * m for k, m in enumerate(buffer[-len(nodes) :]))
        x = sigma[i] / sigma[i - 1] * x + alpha[i] * mean
        buffer.append(clean_of(x, times[i]))
    return x


def unipc_2(x, times):
    """Zhao et al. 2023, algorithms 5 to 8 with data prediction, order 2 and B_2(h) = e^h - 1."""
    alpha, sigma, lam = variance_preserving(times)
    outputs = [clean_of(x, times[0])]
    for i in range(1, len(times)):
        h = lam[i] - lam[i - 1]
        phi_1 = np.expm1(-h)
        linear = sigma[i] / sigma[i - 1] * x - alpha[i] * phi_1 * outputs[-1]
        ratios, differences = [], []
        if i > 1:
            ratios.append((lam[i - 2] - lam[i - 1]) / h)
            differences.append((outputs[-2] - outputs[-1]) / ratios[0])
        predicted = linear - alpha[i] * phi_1 * sum(0.5 * d for d in differences)
        if i == len(times) - 1:
            return predicted
        outputs.append(clean_of(predicted, times[i]))
        differences.append(outputs[-1] - outputs[-2])
        ratios.append(1.0)
        phi, factorial, b = phi_1 / -h - 1, 1, []
        for k in range(1, len(ratios) + 1):
            b.append(phi * factorial / phi_1)
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        matrix = np.array([np.power(ratios, k) for k in range(len(ratios))])
        rho = [0.5] if len(ratios) == 1 else np.linalg.solve(matrix, b)
        x = linear - alpha[i] * phi_1 * sum(c * d for c, d in zip(rho, differences, strict=True))
    raise AssertionError


@pytest.mark.parametrize(
    ("solver", "published"),
    [("dpmpp_2m", dpm_solver_2m), ("dpmpp_3m", polynomial_3m), ("unipc", unipc_2)],
)
def test_multistep_formulas(solver, published):
    times = np.array([0.97, 0.9, 0.7, 0.55, 0.3, 0.1, 0.02])
    scale = np.sqrt((1 - times) ** 2 + times**2)
    with jax.enable_x64():
        expected = published(Z / scale[0], times) * scale[-1]
        actual = solve(solver, DENOISERS["rectified_flow"], Z, times)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_orders_at_both_ends():
    predict, correct = weights(np.array([1, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1, 0]), 3)
    np.testing.assert_array_equal((predict != 0).sum(axis=1), [1, 1, 2, 3, 3, 2, 1])
    np.testing.assert_allclose(predict.sum(axis=1), 1)
    np.testing.assert_allclose(correct[1:].sum(axis=1), 1)
    np.testing.assert_array_equal(correct[1], [0.5, 0.5, 0, 0])


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc"])
@pytest.mark.peers
# Diffusers makes NumPy arrays of tensors by what NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_multistep_solvers_of_diffusers(solver):
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    if solver == "unipc":
        scheduler = diffusers.UniPCMultistepScheduler(solver_order=2, final_sigmas_type="zero")
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=2)
    scheduler.set_timesteps(8)
    sigma = scheduler.sigmas.double().numpy()
    times = sigma / (1 + sigma)
    scale = np.sqrt((1 - times) ** 2 + times**2)
    x = torch.tensor(Z / scale[0])
    for i, timestep in enumerate(scheduler.timesteps):
        noise = torch.tensor(np.asarray(parts(x.numpy() * scale[i], times[i])[1]))
        x = scheduler.step(noise, timestep, x).prev_sample
    actual = solve(solver, DENOISERS["rectified_flow"], Z, times)
    np.testing.assert_allclose(actual, x.numpy(), rtol=1e-3, atol=1e-4)


def stiff_velocity(z, t, label, module):
    """Without closed form, and sharper for some images than for others."""
    return module.tanh((1 + label) * z + module.sin(7 * t)) + z * t


def stiff(z, t, y):
    t = jnp.reshape(t, (-1, 1, 1, 1))
    velocity = stiff_velocity(z, t, y[:, None, None, None], jnp)
    return Denoised(clean=z - t * velocity, noise=z + (1 - t) * velocity, variance=z[..., :0])


def stiff_truth():
    ends = [
        integrate.solve_ivp(
            lambda t, z, label=label: stiff_velocity(z, t, label, np),
            (1, 0),
            start.ravel(),
            method="DOP853",
            rtol=1e-13,
            atol=1e-13,
        ).y[:, -1]
        for label, start in enumerate(Z)
    ]
    return np.reshape(ends, Z.shape)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_dopri5_meets_its_tolerance(tolerance):
    with jax.enable_x64():
        z = solve("dopri5", stiff, Z, np.linspace(1, 0, 1001), tolerance=tolerance)
    assert tolerance / 1000 < np.abs(np.asarray(z) - stiff_truth()).max() < 10 * tolerance


@pytest.mark.parametrize(("method", "order"), [(MIDPOINT, 2), (DORMAND_PRINCE, 5)])
def test_order_where_nothing_is_special(method, order):
    counts = (32, 64, 128)

    def end(steps):
        times = np.linspace(1, 0, steps + 1)
        return jax.jit(lambda z: runge_kutta(method)(stiff, z, KEYS, LABELS, times))(Z)

    with jax.enable_x64():
        errors = [np.abs(end(count) - stiff_truth()).max() for count in counts]
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - order) < 0.2, errors


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_dopri5_has_a_last_attempt(attempts, capfd):
    evaluations = []

    def counted(z, t, y):
        jax.debug.callback(evaluations.append, t)
        return stiff(z, t, y)

    z = solve("dopri5", counted, Z, np.linspace(1, 0, attempts + 1), tolerance=1e-6)
    jax.effects_barrier()
    assert np.isfinite(z).all()
    assert len(evaluations) == 1 + 6 * attempts
    assert f"tolerance for 4 images within {attempts} steps" in capfd.readouterr().out


@pytest.mark.parametrize(("solver", "expected"), [("heun", 7), ("rk4", 13), ("unipc", 4)])
def test_a_ddpm_network_is_not_asked_below_its_first_timestep(solver, expected):
    low, high = DDPM.time_range
    asked = []

    def denoiser(z, t, y):
        jax.debug.callback(asked.append, t)
        return DENOISERS["ddpm"](z, t, y)

    solve(solver, denoiser, Z, DDPM.times(4), lowest=low)
    jax.effects_barrier()
    assert len(asked) == expected
    assert min(asked) >= low * (1 - 1e-6)
    assert max(asked) <= high


def test_the_start_has_the_variance_of_the_path():
    """z at times[0] < 1 is not pure noise."""

    def denoiser(z, t, y):
        return Denoised(clean=z, noise=z, variance=z[..., :0])

    x = sample(FLOW, denoiser, KEYS, LABELS, (2, 2, 1), "euler", 1, time_grid="karras")
    noise = step_noise(KEYS, 0, (2, 2, 1))
    np.testing.assert_allclose(x * unit_variance(80 / 81), noise, rtol=1e-6)
