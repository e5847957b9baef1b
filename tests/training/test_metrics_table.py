"""metrics.csv, whole or damaged."""

import pytest

from dit_moe.training.metrics_table import MetricsTable

GOOD = "step,loss\n5,1\n10,2\n"


def reopened(folder, text: str | bytes) -> str:
    """What metrics.csv is after a run goes on from step 10 and writes a row."""
    path = folder / "metrics.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    MetricsTable(folder, 10).append(15, {"loss": 3.0})
    return path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD + "15,9\n20,9\n",  # done again
        GOOD + "15",  # half-written
        GOOD.encode() + bytes(4096),  # blocks that a power cut left empty
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
    ],
)
def test_rows_up_to_the_step_are_kept(text, tmp_path, capsys):
    assert reopened(tmp_path, text) == GOOD + "15,3\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["", "step,loss\n"])
def test_a_table_without_rows(text, tmp_path, capsys):
    assert reopened(tmp_path, text) == "step,loss\n15,3\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (GOOD + "abc,3\n", GOOD),
        (GOOD + "8.0,3\n", GOOD),
        (GOOD + ",3\n", GOOD),
        (GOOD + "8,x\n", GOOD),
        (GOOD + "12\n", GOOD),
        (GOOD + GOOD, GOOD),
        (GOOD + "9" * 5000 + ",1\n", GOOD),
        (GOOD + '"' + "a" * 200_000 + '",1\n', GOOD),
        (GOOD + '8,"3\n' + "20,4\n" * 3, GOOD),
        (GOOD.encode() + b"\0\0\0,1\n", GOOD),
        (GOOD.encode() + "8,é\n".encode("latin1"), GOOD),
        ("step,loss\n5,1\nx\n10,2\n", GOOD),
        ("\n" + GOOD, "step,loss\n"),
        ("step,lo", "step,loss\n"),
        ("step,loss,loss\n5,1,2\n", "step,loss\n"),
        (b"\xff\xfe\0" * 50, "step,loss\n"),
    ],
)
def test_damage_costs_the_damaged_rows_and_is_kept_aside(damage, kept, tmp_path, capsys):
    assert reopened(tmp_path, damage) == kept + "15,3\n"
    whole = damage.encode() if isinstance(damage, str) else damage
    assert (tmp_path / "damaged-metrics.csv").read_bytes() == whole
    assert "metrics.csv is damaged: " in capsys.readouterr().out


def test_a_column_that_comes_later_is_empty_in_the_rows_before(tmp_path, capsys):
    table, path = MetricsTable(tmp_path, 0), tmp_path / "metrics.csv"
    table.append(1, {"loss": 1.0, "norm": float("nan")})
    table.append(2, {"norm": 1234567.0, "later": 1.0})
    assert path.read_text() == "step,loss,norm,later\n1,1,,\n2,,1.23457e+06,1\n"
    # When the run goes on, too, from a step before.
    resumed = MetricsTable(tmp_path, 1)
    resumed.append(2, {"loss": 2.0, "validation/loss": 3.0})
    resumed.append(3, {"loss": 1.5})
    expected = ["step,loss,norm,later,validation/loss", "1,1,,,", "2,2,,,3", "3,1.5,,,"]
    assert path.read_text().splitlines() == expected
    assert capsys.readouterr().out == ""


def test_a_table_that_is_removed_begins_again(tmp_path):
    table = MetricsTable(tmp_path, 0)
    table.append(1, {"loss": 1.0, "norm": 2.0})
    (tmp_path / "metrics.csv").unlink()
    table.append(3, {"loss": 2.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n3,2\n"


def test_what_is_told_of_a_step_later_fills_its_row(tmp_path, capsys):
    table, path = MetricsTable(tmp_path, 0), tmp_path / "metrics.csv"
    table.append(1, {"loss": 1.0})
    table.append(1, {"judged": 5.0})
    table.append(2, {"loss": 0.5})
    assert path.read_text() == "step,loss,judged\n1,1,5\n2,0.5,\n"
    # By the next start, too.
    MetricsTable(tmp_path, 2).append(2, {"judged": 4.0})
    assert path.read_text() == "step,loss,judged\n1,1,5\n2,0.5,4\n"
    assert capsys.readouterr().out == ""
