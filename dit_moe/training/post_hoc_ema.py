"""The face of `commands/post_hoc_ema.py`, which is above this room and not imported by it."""

import runpy

if __name__ == "__main__":
    runpy.run_module("dit_moe.commands.post_hoc_ema", run_name="__main__")
