"""Names on the Hugging Face hub, and why something cannot be had from there."""

import re

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(source: str) -> bool:
    """Whether it looks like "user/name"; anything on this machine goes before."""
    return _NAME.fullmatch(source) is not None


def reason(error: Exception) -> str:
    """An error of the hub's client in a few words: their messages are pages long."""
    first_line = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first_line}"
