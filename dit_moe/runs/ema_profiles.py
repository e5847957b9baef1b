"""Which sums of stored averages come closest to an average of another length."""

import numpy as np

Numbers = np.ndarray | np.float64


def profile_products(t_a: Numbers, gamma_a: Numbers, t_b: Numbers, gamma_b: Numbers) -> np.ndarray:
    """Integrals of the products of two power-function profiles, float64; all broadcast.

    For t_a <= t_b, with p from `runs.ema_tracks`, the integral of p_a p_b over 0 to t_a is
    (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_a / t_b)^gamma_b / t_b
    (Karras et al. 2024, appendix C.2).
    """
    earlier, later = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    power = np.where(t_a < t_b, gamma_b, gamma_a)
    factor = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factor * (earlier / later) ** power / later


def fit_profiles(
    t_I: np.ndarray, gamma_I: np.ndarray, t: float, gamma_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of stored profiles that come closest to those of some averages that end at t.

    Least squares as in appendix C.2 of the paper. Beyond it, coefficients sum to 1: parameters
    that stand still are then rebuilt as they are, however few the snapshots.

    Args:
      t_I: steps of the stored profiles, float64 [I].
      gamma_I: their exponents, float64 [I].
      t: step at which the wanted averages end.
      gamma_R: their exponents, float64 [R].

    Returns:
      Coefficients [R, I], and the relative L2 errors of the fitted profiles [R].
    """
    A_IxI = profile_products(t_I[:, None], gamma_I[:, None], t_I, gamma_I)
    B_IxR = profile_products(t_I[:, None], gamma_I[:, None], np.float64(t), gamma_R)
    # Profiles scaled to norm 1, for the sake of the condition.
    norm_I = np.sqrt(np.diag(A_IxI))
    A_IxI = A_IxI / (norm_I[:, None] * norm_I)
    B_IxR = B_IxR / norm_I[:, None]
    # The last row: the sum of the coefficients; the last column: its Lagrange multiplier.
    one_1xI = 1 / norm_I[None]
    system = np.block([[A_IxI, one_1xI.T], [one_1xI, np.zeros((1, 1))]])
    right = np.concatenate([B_IxR, np.ones((1, len(gamma_R)))])
    x_IxR = np.linalg.lstsq(system, right)[0][:-1]
    square_R = profile_products(np.float64(t), gamma_R, np.float64(t), gamma_R)
    error_R = np.sum(x_IxR * (A_IxI @ x_IxR - 2 * B_IxR), axis=0) / square_R + 1
    return (x_IxR / norm_I[:, None]).T, np.sqrt(np.maximum(error_R, 0))
