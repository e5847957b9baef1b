from tests.xla import known


def test_flags_that_xla_does_not_have_are_left_out():
    flag = "--xla_backend_optimization_level=0"
    assert known(["--xla_no_such_flag=1", flag, "--xla_nor_this=false"]) == [flag]
