"""python -m eval.digits"""

from dit_moe.config.command_line import end
from eval.digits.command import main

end(main)
