"""Draws images from a trained run: a grid to look at and a set to measure."""

from dit_moe.commands.sample import main
from dit_moe.config.command_line import end

if __name__ == "__main__":
    end(main)
