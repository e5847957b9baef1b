"""Draws a grid of a prepared data set, decoded and labelled, to see that the data are right."""

from pathlib import Path

from dit_moe.config.command_line import command_parser, end, run_command, words

EPILOG = """\
examples:
  python -m dit_moe.data.preview --input data/pets --output pets.png
  python -m dit_moe.data.preview --input data/imagenet256 --autoencoder stabilityai/sd-vae-ft-mse \\
      --classes 207,360,387 --output preview.png

Latents are decoded from their posterior's mean, by the autoencoder that made them unless another is
given. Every second picture of a row is the mirror image of the one before it, where there are any.
"""
ROWS, COLUMNS = 8, 8


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.data.preview", __doc__, EPILOG)
    add = parser.add_argument
    add("--input", required=True, type=Path, help="folder of dit_moe.data.prepare")
    add("--output", type=Path, default=Path("preview.png"), help="picture (default: preview.png)")
    add("--classes", default="", metavar="0,1,2", help="class numbers (default: the first 8)")
    add("--autoencoder", metavar="FOLDER|FILE|NAME", help="decodes latents")
    arguments = parser.parse_args(argv)
    return run_command(
        lambda: draw(arguments.input, arguments.output, arguments.classes, arguments.autoencoder)
    )


def draw(folder: Path, output: Path, classes: str, autoencoder: str | None) -> None:
    """Writes the grid: one row a class, four examples and their mirror images.

    Raises:
      ConfigError: the set, a class or the autoencoder cannot be used.
    """
    # After the arguments are parsed: JAX takes seconds to import.
    import numpy as np

    from dit_moe.config import ConfigError, MeshConfig
    from dit_moe.data.prepared import Prepared, latent_space
    from dit_moe.devices.mesh import build_mesh
    from dit_moe.sampling.rendering import build_renderer
    from dit_moe.storage import images
    from dit_moe.storage.files import atomic

    if output.suffix not in (".png", ".jpg", ".webp"):
        raise ConfigError(f"output is {str(output)!r}; allowed: a name ending in .png")
    prepared = Prepared(folder)
    chosen = _classes(classes, prepared.card.classes)
    rows = [np.flatnonzero(prepared.label == c)[: COLUMNS // 2] for c in chosen]
    records = [prepared[int(i)] for row in rows for i in row]
    if not records:
        raise ConfigError(f"classes is {classes!r}, of which {str(folder)!r} holds no example")
    titles = [
        f"{record['label']} {prepared.card.classes[int(record['label'])][:20]}"
        for record in records
    ]
    space = latent_space(prepared.card, "autoencoder")
    if space is None:
        pairs = [(record["image"], record["image"][:, ::-1]) for record in records]
        pictures = np.stack([picture for pair in pairs for picture in pair])
    else:
        renderer = build_renderer(space, autoencoder, build_mesh(MeshConfig()))
        x_NxHxWxC = space.normalize(np.concatenate([record["mean"] for record in records]))
        pictures = renderer.render(x_NxHxWxC)
    with atomic(output) as temporary:
        views = len(pictures) // len(titles)
        images.grid(pictures, np.repeat(titles, views)).save(temporary)
    print(f"Wrote {output}.")


def _classes(text: str, names: tuple[str, ...]) -> list[int]:
    from dit_moe.config import ConfigError
    from dit_moe.data.classes import ModelClasses

    known = ModelClasses(tuple(range(len(names))), names)
    chosen = known.labels(words(text))
    if any(not 0 <= c < len(names) for c in chosen):
        raise ConfigError(
            f"classes is {text!r}; allowed: numbers from 0 to {len(names) - 1} with commas, such "
            "as 0,1,2"
        )
    return chosen or list(range(min(ROWS, len(names))))


if __name__ == "__main__":
    end(main)
