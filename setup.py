"""What the wheel holds beside `dit_moe`, inside of it: a checkout has these folders at its top.

Installed there, `eval` and `configs` would be names that anyone's own files may have. All that
stands in pyproject.toml is not repeated here.
"""

from setuptools import find_packages, setup

INSIDE = {"dit_moe.eval": "eval", "dit_moe.configs": "configs"}

setup(
    packages=[
        *find_packages(include=["dit_moe*"]),
        *INSIDE,
        *(f"dit_moe.{name}" for name in find_packages(include=["eval.*"])),
    ],
    package_dir=INSIDE,
)
