"""How pages look: a room's page.html, in the frame that all pages share."""

import importlib.resources

import jinja2


def template(package: str) -> jinja2.Template:
    """The page.html of a package, which extends base.html and draws by charts.html of this one."""
    shared = importlib.resources.files("dit_moe.report")
    texts = {name: shared / name for name in ("base.html", "charts.html")}
    texts["page.html"] = importlib.resources.files(package) / "page.html"
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({n: p.read_text(encoding="utf-8") for n, p in texts.items()}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda x: f"{x:.2%}"
    environment.filters["digits"] = lambda x: f"{x:.3f}"
    return environment.get_template("page.html")
