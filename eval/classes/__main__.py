"""python -m eval.classes"""

from dit_moe.config.command_line import end

from .command import main

if __name__ == "__main__":
    end(main)
