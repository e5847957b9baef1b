"""The findings of an analysis in Markdown."""

from pathlib import Path

from dit_moe.analysis.record import Analysis, Inputs, InputsName

TITLES: dict[InputsName, str] = {
    "training": "Noised training data",
    "sampling": "Sampling trajectories",
}


def markdown(analysis: Analysis) -> str:
    """The text of analysis.md."""
    s = analysis.settings
    lines = [
        f"# What the experts of {analysis.name} do",
        "",
        f"Step {analysis.step:,}, parameters {s.parameters}; {s.num_images} images of "
        f"{len(s.classes)} classes, {s.time_bins} parts of the time range, seed {s.seed}. "
        "Numbers are defined in docs/analysis.md.",
    ]
    for name, inputs in analysis.inputs.items():
        lines += ["", f"## {TITLES[name]}", ""]
        for f in analysis.findings:
            if f.inputs == name:
                lines.append(f"- {f.claim} **{f.verdict.capitalize()}.** {f.reason}")
        lines += ["", *_table(inputs), *true_experts(inputs), "", _paths(inputs)]
    lines += ["", "## Pictures", ""]
    for file, caption in analysis.pictures.items():
        lines += [caption, "", f"![{Path(file).stem}]({file})", ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(inputs: Inputs) -> list[str]:
    """By layer. Position, time step and class: share of the choice explained above chance."""
    lines = [
        "| block | position | time step | class | balance | busiest | experts per token | "
        "unconditional expert |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layer in inputs.layers:
        shares = (f"{f.share:.2%}" for f in (layer.position, layer.time, layer.label))
        lines.append(
            f"| {layer.block} | {' | '.join(shares)} | {layer.balance:.3f} | {layer.busiest:.1%} | "
            f"{layer.experts_per_token:.2f} | {layer.unconditional:.1%} |"
        )
    return lines


def true_experts(inputs: Inputs) -> list[str]:
    """By layer and part of the time range, where cheap experts leave fewer to some tokens."""
    found = {layer.block: layer.true_experts for layer in inputs.layers if layer.true_experts}
    if not found:
        return []
    bins = len(next(iter(found.values())).by_time)
    lines = [
        "",
        "Experts per token without the cheap ones, by time from data to noise, and with the null "
        "label:",
        "",
        f"| block | {' | '.join(f'{b / bins:.2f}' for b in range(bins))} | null label |",
        "|---" * (bins + 2) + "|",
    ]
    for block, true in found.items():
        cells = ("-" if n is None else f"{n:.2f}" for n in (*true.by_time, true.null))
        lines.append(f"| {block} | {' | '.join(cells)} |")
    return lines


def _paths(inputs: Inputs) -> str:
    p = inputs.paths
    return (
        f"{p.tokens:,} tokens took {p.distinct:,} distinct paths of first experts through the "
        f"layers: {p.entropy_bits:.2f} bits, as {p.effective:,.0f} equally frequent ones would "
        f"(layers that chose independently: {p.independent_bits:.2f} bits); {p.seen_once:.1%} of "
        f"the tokens were alone on theirs. {inputs.null_tokens:.1%} of all tokens carried the "
        "null label."
    )
