"""What a command sets for its own process."""

import os
import platform
import subprocess
import sys

import pytest

from dit_moe.config.command_line import command_parser
from dit_moe.config.own_process import CACHE_SIZE, hold_memory, keep_programs

FAULTS = """
import resource, sys
from dit_moe.config.own_process import give_back, hold_memory
if sys.argv[1] == "hold":
    assert hold_memory({"JAX_PLATFORMS": "cpu"})
def block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes(bytearray(64 * 2**20))  # above what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
found = [block() for _ in range(4)][-1]
give_back()
print(found, block())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_that_was_freed_is_there_again():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}

    def faults(how: str) -> list[int]:
        command = [sys.executable, "-c", FAULTS, how]
        found = subprocess.run(command, env=clean, capture_output=True, check=True).stdout
        return [int(number) for number in found.split()]

    least = 64 * 2**20 // 4096 // 600  # pages may be huge ones
    assert faults("leave")[0] >= least
    held, given_back = faults("hold")
    assert held == 0
    assert given_back >= least


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_an_allocator_that_the_user_has_set_stays(name):
    assert not hold_memory({"JAX_PLATFORMS": "cpu", name: "1"})


def test_programs_are_kept_in_the_users_cache_folder(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_programs(environment)
    folder = environment["JAX_COMPILATION_CACHE_DIR"]
    assert folder.startswith(str(tmp_path / "dit_moe"))
    assert environment["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(CACHE_SIZE)
    own = {"JAX_COMPILATION_CACHE_DIR": "elsewhere"}
    keep_programs(own)
    assert own == {"JAX_COMPILATION_CACHE_DIR": "elsewhere"}


PROGRAMS = """
import sys
from dit_moe.config.command_line import command_parser
from dit_moe.config.own_process import keep_programs
keep_programs()
command_parser("x", None, "").parse_args(sys.argv[1:])
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(jnp.zeros(3))
"""


def test_the_flag_keeps_no_programs(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        environment.pop(name, None)
    for flags, kept in [(["--no_compilation_cache"], False), ([], True)]:
        subprocess.run([sys.executable, "-c", PROGRAMS, *flags], env=environment, check=True)
        assert any(tmp_path.rglob("*-cache")) == kept


def test_help_names_the_flag(capsys):
    with pytest.raises(SystemExit):
        command_parser("x", None, "").parse_args(["--help"])
    assert "--no_compilation_cache" in capsys.readouterr().out
