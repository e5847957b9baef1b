"""Outputs that are gone: a pipe that nobody reads any longer, a file on a full disk."""

import io


class LostOutput(io.StringIO):
    """Every write raises the error."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error
