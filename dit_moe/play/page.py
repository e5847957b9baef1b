"""The layout of the page, and what its parts tell each other. Needs the extra `play`."""

import contextlib
import html
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr  # pyright: ignore[reportMissingImports]

from dit_moe.config import SOLVERS, ConfigError
from dit_moe.config.guidance import GUIDES_OF_RUNS
from dit_moe.config.verbs import spoken
from dit_moe.play.brush import canvas
from dit_moe.play.drawer import Drawer, Drawn
from dit_moe.play.overlay import colours, layer_titles, overlay
from dit_moe.play.player import Answer, Player
from dit_moe.play.wishes import MOST_PICTURES, Wishes
from dit_moe.storage.colours import on_white

CSS = """
img, canvas { image-rendering: pixelated; }
.grid-wrap { min-height: 0 !important; }
.mask:not(.active, .inactive) { opacity: 0.5 !important; }
"""
_MIXED, _SWITCHED = "mixed on the way", "switched in the middle"
_HINT = """\
Choose a picture on the right, or bring one, and brush over what shall be drawn anew. All else stays
as it is."""


class _Column(NamedTuple):
    """What is shown of one run."""

    drawer: Drawer
    drawn: gr.State
    """A `Drawn`, or None before there is one."""
    head: gr.Markdown
    """Over which progress is shown."""
    gallery: gr.Gallery
    where: gr.Markdown
    """Which layer and call the experts are of."""
    experts: gr.AnnotatedImage


class _Page:
    """The parts, in the order in which they are laid out."""

    def __init__(self, player: Player):
        self.player = player
        with gr.Row():
            with gr.Column(scale=2, min_width=340):
                self.fields = _fields(player)
                self._tabs()
            with gr.Column(scale=3 * len(player.drawers), min_width=420):
                with gr.Row():
                    tops = [_top(drawer) for drawer in player.drawers]
                self.sliders = _sliders(player)
                with gr.Row():
                    bottoms = [_bottom(drawer) for drawer in player.drawers]
        self.columns = [
            _Column(drawer, gr.State(None), *top, *bottom)
            for drawer, top, bottom in zip(player.drawers, tops, bottoms, strict=True)
        ]

    def _tabs(self) -> None:
        with gr.Tab("Draw"):
            self.draw = gr.Button("Draw", variant="primary")
        with gr.Tab("Walk"):
            classes = list(self.player.classes)
            self.end = [
                gr.Dropdown(classes, value=classes[-1], label="to the class"),
                gr.Number(1, label="to the seed", precision=0),
                gr.Radio([_MIXED, _SWITCHED], value=_MIXED, label="the class is"),
            ]
            self.walk = gr.Button("Walk", variant="primary")
        with gr.Tab("Paint", visible=all(drawer.paints for drawer in self.player.drawers)):
            gr.Markdown(_HINT)
            self.editor = _editor()
            self.paint = gr.Button("Paint", variant="primary")

    def connect(self) -> None:
        """Tells each part what to do when another one is used."""
        self._on_click(self.draw, [], self.player.draw)
        self._on_click(
            self.walk,
            self.end,
            lambda wishes, end, seed, how, tell: self.player.walk(
                wishes, end, seed, how == _MIXED, tell
            ),
        )
        self._on_click(self.paint, [self.editor], self.player.paint)
        for slider in self.sliders:
            self._show_experts(slider.input)
        for column in self.columns:
            column.gallery.select(_chosen, column.drawn, self.editor, show_progress="hidden")

    def _on_click(
        self, button: gr.Button, more: list[Any], respond: Callable[..., list[Answer]]
    ) -> None:
        """Draws for every column. The answer begins with the wishes, then it has what is more."""
        count = len(self.fields)

        # Gradio knows the tracker by its default, and among the first parameters alone.
        def answer(progress: gr.Progress = gr.Progress(), *values: Any) -> list[Any]:  # noqa: B008
            classes, *others = values[:count]

            def tell(done: int, total: int) -> None:
                progress((done, total), desc="drawing", unit="pictures")

            with _told():
                answers = respond(Wishes(tuple(classes), *others), *values[count:], tell=tell)
            calls = max(0 if a.drawn.first is None else len(a.drawn.first) for a in answers)
            step = gr.Slider(maximum=max(calls, 2), value=(calls + 1) // 2)
            return [part for a in answers for part in (a.drawn, _gallery(a))] + [step]

        shown = [part for column in self.columns for part in (column.drawn, column.gallery)]
        clicked = button.click(
            answer,
            [*self.fields, *more],
            [*shown, self.sliders[0]],
            concurrency_id="network",
            show_progress_on=[column.head for column in self.columns],
        )
        self._show_experts(clicked.success)

    def _show_experts(self, event: Callable[..., Any]) -> None:
        """Lays the experts over the pictures of every column, at what the sliders say."""

        def show(step: int, layer: int, *drawn: Drawn | None) -> dict[Any, Any]:
            shown: dict[Any, Any] = {}
            for column, there in zip(self.columns, drawn, strict=True):
                parts = _experts(column.drawer, there, step, layer)
                shown |= zip((column.where, column.experts), parts, strict=True)
            return shown

        event(
            show,
            [*self.sliders, *(column.drawn for column in self.columns)],
            [part for column in self.columns for part in (column.where, column.experts)],
            show_progress="hidden",
            trigger_mode="always_last",
        )


def build_page(player: Player) -> gr.Blocks:
    """The page, ready to be served."""
    title = " and ".join(drawer.name for drawer in player.drawers)
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        _Page(player).connect()
    return blocks.queue(default_concurrency_limit=1)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Within the block, what is the user's to mend is told on the page, in a sentence."""
    try:
        yield
    except ConfigError as error:
        text = html.escape(spoken(str(error)), quote=False)
        raise gr.Error(text, duration=None, print_exception=False) from None


def _fields(player: Player) -> list[Any]:
    """Those of `Wishes`, in its order, filled from the first run's config."""
    config = player.drawers[0].config
    sample, guidance = config.sample, config.sample.guidance
    chain = config.objective.sampled_timesteps
    solvers = [name for name in SOLVERS if chain is not None or name != "ancestral"]
    classes = list(player.classes)
    chosen = gr.Dropdown(classes, value=classes[:1], multiselect=True, label="classes, in turn")
    with gr.Row():
        number = gr.Number(8, label=f"pictures, up to {MOST_PICTURES}", precision=0)
        seed = gr.Number(0, label="seed", precision=0)
    with gr.Row():
        solver = gr.Dropdown(["auto", *solvers], value=sample.solver, label="solver")
        steps = gr.Number(sample.steps, label="steps", precision=0)
    with gr.Row():
        guide = gr.Dropdown(list(GUIDES_OF_RUNS), value=guidance.guide, label="guidance")
        scale = gr.Number(guidance.scale, label="guidance scale; 1: none")
    with gr.Row():
        low = gr.Number(guidance.interval[0], label="guided from; 0: picture")
        high = gr.Number(guidance.interval[1], label="guided to; 1: noise")
    return [chosen, number, seed, solver, steps, guide, scale, low, high]


def _editor() -> gr.ImageEditor:
    return gr.ImageEditor(
        label="picture to paint on",
        format="png",
        sources=("upload", "clipboard"),
        brush=gr.Brush(default_size=40, colors=["#ff3070"], color_mode="fixed"),
        layers=False,
        transforms=(),
        buttons=[],
        canvas_size=(512, 512),
    )


def _top(drawer: Drawer) -> tuple[gr.Markdown, gr.Gallery]:
    """Which run it is, and its pictures."""
    experts = "" if drawer.config.model.mixtures else "; a dense model, without experts"
    with gr.Column(min_width=320):
        head = gr.Markdown(f"### {html.escape(drawer.name)}\nstep {drawer.step:,}{experts}")
        gallery = gr.Gallery(
            show_label=False,
            format="png",
            columns=4,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            buttons=[],
            interactive=False,
        )
    return head, gallery


def _bottom(drawer: Drawer) -> tuple[gr.Markdown, gr.AnnotatedImage]:
    """The same pictures under their experts."""
    model = drawer.config.model
    with gr.Column(min_width=320, visible=bool(model.mixtures)):
        where = gr.Markdown("experts")
        experts = gr.AnnotatedImage(
            show_label=False, format="png", color_map=colours(model), buttons=[]
        )
    return where, experts


def _sliders(player: Player) -> tuple[gr.Slider, gr.Slider]:
    """Two sliders: the call of the network, and the layer."""
    layers = max(len(drawer.config.model.mixtures) for drawer in player.drawers)
    with gr.Row(visible=layers > 0):
        step = gr.Slider(1, 2, value=1, step=1, label="call of the network")
        layer = gr.Slider(1, max(layers, 2), value=layers, step=1, label="layer with experts")
    return step, layer


def _gallery(answer: Answer) -> list[tuple[Any, str]]:
    pictures = [canvas(picture) for picture in on_white(answer.drawn.pictures)]
    return list(zip(pictures, answer.captions, strict=True))


def _experts(drawer: Drawer, drawn: Drawn | None, step: int, layer: int) -> tuple[str, Any]:
    """What is shown, and the overlay: beyond the last call or layer, as another run may have more,
    that one."""
    if drawn is None or drawn.first is None:
        reason = "" if drawn is None else ": dopri5 takes steps of its own for each picture"
        return f"experts{reason}", None
    model = drawer.config.model
    calls, layers = drawn.first.shape[:2]
    step, layer = min(step, calls), min(layer, layers)
    shown = overlay(drawn.pictures, drawn.first, step - 1, layer - 1, model)
    block = layer_titles(model)[layer - 1]
    where = f"experts of {block} at call {step} of {calls}, from noise to picture"
    return where, (shown.picture, shown.regions)


def _chosen(drawn: Drawn | None, event: gr.SelectData) -> Any:
    """The picture that was clicked on, to be painted on."""
    return gr.skip() if drawn is None else canvas(on_white(drawn.pictures)[event.index])
