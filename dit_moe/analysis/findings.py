"""DiT-MoE's observations about experts (Fei et al. 2024), held to a checkpoint."""

import numpy as np
import scipy.stats

from dit_moe.analysis.record import Finding, Inputs, InputsName, Layer, Verdict

MATTERS = 0.01
"""Corrected share of the expert's entropy, mean over layers, from which on something matters."""
CHANCE = 0.05
"""p-value, median over layers, from which on it may be chance."""
TREND = 0.5
"""Rank correlation from which on there is a trend."""
MIN_POINTS = 4
"""Layers, or time bins, without which no trend can be told."""

PREFERENCE = "Experts are chosen by position and time step, hardly by class."
DEPTH = "In deeper layers the choice moves from position to dispersion and balance."
EARLY = "Experts are more concentrated early in sampling (in noise) and more even after half."


def findings(name: InputsName, inputs: Inputs, num_classes: int) -> tuple[Finding, ...]:
    """The three observations, each with a verdict and the numbers behind it.

    Args:
      name: of the inputs.
      inputs: what was found on them.
      num_classes: how many classes they show.
    """
    layers = inputs.layers
    if all(layer.balance > 1 - 1e-9 and layer.time.bits < 1e-9 for layer in layers):
        share = float(np.mean([layer.position.share for layer in layers]))
        reason = (
            "Every expert takes equally many tokens at every time, by the router's rule, whatever "
            f"the class and the depth; position explains {share:.1%} of the choice."
        )
        claims = PREFERENCE, DEPTH, EARLY
        return tuple(Finding(claim, name, "cannot be told", reason) for claim in claims)
    return (
        Finding(PREFERENCE, name, *_preference(layers, num_classes)),
        Finding(DEPTH, name, *_depth(layers)),
        Finding(EARLY, name, *_early(layers)),
    )


def _preference(layers: tuple[Layer, ...], num_classes: int) -> tuple[Verdict, str]:
    share = {k: float(np.mean([getattr(layer, k).share for layer in layers])) for k in _FACTORS}
    matters = {k: share[k] >= MATTERS and _p_value(layers, k) <= CHANCE for k in _FACTORS}
    weaker = not matters["label"] or share["label"] <= min(share["position"], share["time"]) / 2
    parts = [
        f"{title} {share[k]:.1%}{'' if matters[k] else ' (hardly anything, or chance)'}"
        for k, title in _FACTORS.items()
    ]
    reason = f"Of the choice, mean over layers, above chance: {', '.join(parts)}."
    if num_classes == 1:
        return "cannot be told", f"{reason} Only one class was shown."
    held = [matters["position"], matters["time"], weaker]
    if all(held):
        return "holds", reason
    if not (matters["position"] or matters["time"]):
        return "does not hold", reason
    return "holds in part", reason


def _depth(layers: tuple[Layer, ...]) -> tuple[Verdict, str]:
    position = [layer.position.share for layer in layers]
    balance = [layer.balance for layer in layers]
    reason = (
        f"From block {layers[0].block} to {layers[-1].block} position goes from explaining "
        f"{position[0]:.1%} of the choice to {position[-1]:.1%}, and balance from {balance[0]:.3f} "
        f"to {balance[-1]:.3f}"
    )
    if len(layers) < MIN_POINTS:
        return "cannot be told", f"{reason}; {len(layers)} MoE layers are too few for a trend."
    depth = np.arange(len(layers))
    trends = _trend(depth, position), _trend(depth, balance)
    reason += (
        f"; rank correlation with depth {trends[0]:+.2f} (position) and {trends[1]:+.2f} (balance)."
    )
    return _verdict(trends[0] <= -TREND, trends[1] >= TREND), reason


def _early(layers: tuple[Layer, ...]) -> tuple[Verdict, str]:
    by_time = np.array([layer.concentration_by_time for layer in layers], float)  # None is NaN
    bins = by_time.shape[1]
    served = np.flatnonzero(~np.isnan(by_time).all(axis=0))
    mean_B = np.nanmean(by_time[:, served], axis=0)
    early = (served + 0.5) / bins > 0.5
    if early.all() or not early.any() or len(served) < MIN_POINTS:
        reason = f"{len(served)} of {bins} parts of the time range were seen, too few for a trend."
        return "cannot be told", reason
    noisy, clean = mean_B[early].mean(), mean_B[~early].mean()
    trend = _trend(served, mean_B)
    reason = (
        f"Concentration of the load (0 even, 1 one expert), mean over layers: {noisy:.4f} in the "
        f"noisy half, {clean:.4f} in the clean half; rank correlation with noise {trend:+.2f}."
    )
    return _verdict(bool(noisy > 1.1 * clean), trend >= TREND), reason


_FACTORS = {"position": "position", "time": "time step", "label": "class"}


def _p_value(layers: tuple[Layer, ...], factor: str) -> float:
    return float(np.median([getattr(layer, factor).p_value for layer in layers]))


def _trend(x: np.ndarray, y: np.ndarray | list[float]) -> float:
    """Spearman's rank correlation; 0 of a constant."""
    return 0.0 if np.ptp(y) == 0 else float(scipy.stats.spearmanr(x, y)[0])  # pyright: ignore


def _verdict(*held: bool) -> Verdict:
    if all(held):
        return "holds"
    return "holds in part" if any(held) else "does not hold"
