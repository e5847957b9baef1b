"""From counts to numbers."""

import numpy as np

from dit_moe.analysis.counts import Counts
from dit_moe.analysis.information import (
    Dependence,
    dependence_between,
    dependence_within,
    entropy,
    mutual_information,
)
from dit_moe.analysis.record import Information, Inputs, Layer, Paths, TrueExperts
from dit_moe.config import ModelConfig
from dit_moe.models.parameters import places
from dit_moe.moe.assignments import ExpertRanges


def summarize(counts: Counts, model: ModelConfig, seed: int) -> Inputs:
    """The numbers of one kind of inputs.

    Args:
      counts: of all inputs.
      model: the network.
      seed: of the permutations that tell what is chance.
    """
    rng = np.random.default_rng([seed, 1])
    tokens_per_input = counts.position_NxSxLxE.shape[1]
    position = dependence_within(counts.position_NxSxLxE, np.arange(tokens_per_input), rng)
    time = dependence_within(counts.time_NxVxLxE, counts.bin_V, rng)
    hist_NxLxE = counts.time_NxVxLxE.sum(axis=1, dtype=np.int64)
    label = dependence_between(hist_NxLxE, counts.class_N, len(counts.classes), rng)

    count_LxBxE = counts.position_time_LxBxSxE.sum(axis=2)
    count_LxE = count_LxBxE.sum(axis=1)
    null_LxE = counts.null_LxBxE.sum(axis=1)
    tokens = int(counts.visits_B.sum()) * tokens_per_input
    bits_L, bits_LxB = entropy(count_LxE), entropy(count_LxBxE)
    blocks = [(block, place.moe) for block, place in enumerate(places(model)) if place.moe]
    position_LxB = _ratio(mutual_information(counts.position_time_LxBxSxE), bits_LxB)
    served_LxB = count_LxBxE.any(axis=-1)
    layers = []
    for i, (block, moe) in enumerate(blocks):
        ranges = ExpertRanges.of(moe)
        # A single expert has no entropy to normalise.
        most = np.log2(max(moe.num_experts + len(moe.cheap_experts), 2))
        load_E = count_LxE[i] / max(count_LxE[i].sum(), 1)
        both = (count_LxE + null_LxE)[i]
        extra = both[ranges.routed : ranges.stack].sum() / max(both.sum(), 1)
        layers.append(
            Layer(
                block=block,
                load=tuple(load_E[: ranges.none].tolist()),
                entropy_bits=float(bits_L[i]),
                balance=float(bits_L[i] / most),
                effective_experts=float(2 ** bits_L[i]),
                busiest=float(load_E.max()),
                experts_per_token=float(count_LxE[i].sum() / tokens),
                position=_information(position, i, bits_L[i]),
                time=_information(time, i, bits_L[i]),
                label=_information(label, i, bits_L[i]),
                concentration_by_time=_where(served_LxB[i], 1 - bits_LxB[i] / most),
                position_share_by_time=_where(served_LxB[i], position_LxB[i]),
                unconditional=float(extra),
                true_experts=_true_experts(counts, i, ranges.stack) if ranges.cheap else None,
            )
        )
    shared_bits = mutual_information(counts.coactivation_LxExE)
    next_bits = entropy(counts.coactivation_LxExE.sum(axis=1))
    visits = int(counts.visits_B.sum())
    return Inputs(
        images=len(counts.class_N),
        null_images=round(counts.null_visits / (visits / len(counts.class_N))),
        tokens=tokens,
        null_tokens=counts.null_visits / (counts.null_visits + visits),
        layers=tuple(layers),
        coactivation_bits=tuple(shared_bits.tolist()),
        coactivation_share=tuple(_ratio(shared_bits, next_bits).tolist()),
        paths=_paths(counts),
    )


def _true_experts(counts: Counts, i: int, stack: int) -> TrueExperts:
    """How many of the experts with weights, the first `stack`, compute a token in layer i."""
    count_BxS = counts.position_time_LxBxSxE[i, :, :, :stack].sum(axis=-1)
    tokens, visits_B = count_BxS.shape[1], counts.visits_B
    null = counts.null_LxBxE[i, :, :stack].sum() / max(counts.null_visits * tokens, 1)
    return TrueExperts(
        by_time=_where(visits_B > 0, count_BxS.mean(axis=1) / np.maximum(visits_B, 1)),
        by_position=tuple((count_BxS.sum(axis=0) / visits_B.sum()).tolist()),
        null=float(null) if counts.null_visits else None,
    )


def _paths(counts: Counts) -> Paths:
    path_PxL, count_P = counts.paths()
    # The entropy of each layer's first expert.
    single = [entropy(np.bincount(first_P, weights=count_P)) for first_P in path_PxL.T]
    bits = float(entropy(count_P))
    return Paths(
        tokens=int(count_P.sum()),
        distinct=len(count_P),
        entropy_bits=bits,
        effective=2**bits,
        independent_bits=float(np.sum(single)),
        seen_once=float(np.sum(count_P == 1) / count_P.sum()),
    )


def _information(found: Dependence, i: int, expert_bits: float) -> Information:
    corrected = float(found.bits[i] - found.chance[i])
    most = expert_bits - found.chance[i]  # the same where the expert follows from the thing
    return Information(
        bits=float(found.bits[i]),
        chance_bits=float(found.chance[i]),
        corrected_bits=corrected,
        share=float(_ratio(np.asarray(corrected), np.asarray(most))),
        p_value=float(found.p_value[i]),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Their quotient; 0 where an expert that is always the same has no entropy."""
    return np.where(whole > 1e-9, part / np.where(whole > 1e-9, whole, 1), 0.0)


def _where(served_B: np.ndarray, value_B: np.ndarray) -> tuple[float | None, ...]:
    pairs = zip(served_B, value_B, strict=True)
    return tuple(float(value) if served else None for served, value in pairs)
