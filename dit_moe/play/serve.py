"""The page, served to this machine, from which nothing is sent anywhere."""

import contextlib
import importlib.util
import os
import socket
import tempfile
import threading
from collections.abc import Iterator

from dit_moe.config import ConfigError
from dit_moe.play.player import Player

PORT = 7860


def need_gradio() -> None:
    """Checks that the extra is installed.

    Raises:
      ConfigError: it is not.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(
            "gradio is not installed, of which the page is made; allowed: after pip install "
            "'dit-moe[play]'"
        )


def linger() -> None:
    """Does nothing until Ctrl-C."""
    threading.Event().wait()


@contextlib.contextmanager
def served(player: Player, host: str, port: int) -> Iterator[str]:
    """Within the block the page is there, at the address that is yielded.

    Pictures lie in a folder of their own until the block ends, and nothing else is served: not the
    run's folder, nor the one that the program was started in.

    Args:
      player: what is played with.
      host: the address of this machine to listen at.
      port: 0 for any that is free.

    Raises:
      ConfigError: the port is in use.
    """
    port = _checked(host, port)
    with tempfile.TemporaryDirectory() as folder, _environment(folder):
        # After the environment is set, which Gradio reads when it is imported.
        from gradio.themes import Base, Font  # pyright: ignore[reportMissingImports]

        from dit_moe.play.page import CSS, build_page

        local = [Font(name) for name in ("system-ui", "sans-serif")]
        page = build_page(player)
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size="20mb",
            theme=Base(primary_hue="teal", font=local, font_mono=local),
            css=CSS,
        )
        try:
            yield url
        finally:
            page.close(verbose=False)


def _checked(host: str, port: int) -> int:
    """The port, if it is free; or a free one for 0."""
    if not 0 <= port < 2**16:
        raise ConfigError(f"port is {port}; allowed: 0 (any that is free) to {2**16 - 1}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, *_, address = found[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return listener.getsockname()[1]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"port is {port} of host {host!r}, where nothing can listen ({error}); allowed: "
            "another --port, 0 for any that is free, and a --host of this machine"
        ) from None


@contextlib.contextmanager
def _environment(folder: str) -> Iterator[None]:
    """What Gradio is told by variables: where pictures lie, no telemetry, no proxy to itself."""
    here = ",".join(filter(None, (os.environ.get("NO_PROXY"), "localhost", "127.0.0.1")))
    settings = {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": here,
        "no_proxy": here,
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
