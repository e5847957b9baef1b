"""Moving averages of the parameters with power-function profiles, updated in training.

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
section 3.1. At time T the parameters of time t have the density of weight

    p(t) = (gamma + 1) t^gamma / T^(gamma + 1),   0 <= t <= T,

whose standard deviation over T, the relative width sigma_rel, does not depend on T. Averages of any
other width are made of snapshots of two such tracks afterwards: `training.post_hoc_ema`.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.models.parameters import Parameters

Tracks = dict[str, Parameters]
"""Averages by their relative width as text, such as "0.05"."""


def exponent(sigma_rel: float) -> float:
    """gamma of a relative width in (0, 12^-1/2); 12^-1/2 is gamma = 0, the plain mean.

    It solves sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), a cubic; of two solutions
    above -1, the larger one, whose profile rises with time.
    """
    s = sigma_rel**-2.0
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def init_tracks(widths: Iterable[float], parameters: Parameters) -> Tracks:
    """Tracks of relative widths before the first step: copies, so that both can be donated."""
    return {str(w): {path: jnp.copy(p) for path, p in parameters.items()} for w in widths}


def update_tracks(tracks: Tracks, parameters: Parameters, step: jax.Array) -> Tracks:
    """The tracks after the update that made `parameters`; pure.

    beta = (1 - 1/t)^(gamma + 1), equation 3 of the paper. The weights are then the integrals of
    p over each step exactly: parameters count as constant during the step that made them.

    Args:
      tracks: averages up to the step before.
      parameters: after the update of this step.
      step: its number, int32 scalar; the first is 1, after which a track equals the parameters.
    """

    def update(sigma_rel: str, track: Parameters) -> Parameters:
        # 1 - beta without the rounding of 1 - 1/t, which at large t is most of it in float32.
        weight = -jnp.expm1((exponent(float(sigma_rel)) + 1) * jnp.log1p(-1 / step))
        # Not beta * track + ...: rounded, the two factors would not sum to 1.
        return {path: e + weight * (parameters[path] - e) for path, e in track.items()}

    return {sigma_rel: update(sigma_rel, track) for sigma_rel, track in tracks.items()}
