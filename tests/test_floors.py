import pytest

from tests.floors import constraints


def test_floors_become_constraints():
    assert constraints(["numpy>=2.0", "etils[epath]>=1.9.1"]) == ["numpy==2.0", "etils==1.9.1"]


def test_other_requirements_have_no_floor():
    with pytest.raises(ValueError, match="requirement is 'numpy<3'; allowed: name>=floor"):
        constraints(["numpy<3"])
