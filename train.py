"""Trains a model. Run the same command again to resume."""

from dit_moe.commands.train import main
from dit_moe.config.command_line import end

if __name__ == "__main__":
    end(main)
