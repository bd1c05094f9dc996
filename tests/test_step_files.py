import numpy as np
import pyarrow.parquet
import pytest

from rcprobe.errors import RunError
from rcprobe.measured import Measured, PairTable, Step
from rcprobe.step_files import check_done, load_step, mark_done, read_arrays, save_step, write_arrays

PAIRS = 5


def table():
    numbers = np.arange(PAIRS, dtype=np.int64)
    return PairTable(numbers, numbers % 2, numbers // 2, numbers + 1, -numbers, numbers * 3, numbers > 1)


def step(name="margin"):
    draw = np.random.default_rng(0)
    one = draw.normal(size=PAIRS)
    one[2] = np.nan
    cube = draw.normal(size=(PAIRS, 3, 2))
    cube[1, 2] = np.nan
    columns = {"value": one, "fact": one * 1e-300, "scores": cube, "by head": np.moveaxis(cube.copy(), 0, 0)[:, ::-1]}
    return Step(
        seed=3,
        step=40,
        loss=0.1 + 0.2,
        measured=(Measured(name, "swapped", 3, 40, columns, table()), Measured("x", "same_target", 3, 40, {}, table())),
        accuracy={"swapped": {"26 letters": (1 / 3, float("nan"))}},
        excluded={"swapped": {"too long": 4}},
        skipped={"storage (swapped)": "no circuit"},
    )


def test_a_step_comes_back_number_for_number(tmp_path):
    given = step()
    save_step(tmp_path / "step", given)
    found = load_step(tmp_path / "step")
    assert (found.seed, found.step, found.loss) == (3, 40, 0.1 + 0.2)
    assert (found.excluded, found.skipped) == (given.excluded, given.skipped)
    assert repr(found.accuracy) == repr(given.accuracy)
    for one, other in zip(found.measured, given.measured, strict=True):
        assert (one.metric, one.pairing, one.seed, one.step) == (other.metric, other.pairing, 3, 40)
        assert list(one.columns) == list(other.columns)
        for name, column in other.columns.items():
            np.testing.assert_array_equal(one.columns[name], column, strict=True)
        for name, column in vars(other.table).items():
            np.testing.assert_array_equal(getattr(one.table, name), column, strict=True)


def test_others_read_the_rows_without_rcprobe(tmp_path):
    save_step(tmp_path / "step", step())
    rows = pyarrow.parquet.read_table(tmp_path / "step" / "00-margin-swapped.parquet").to_pydict()
    assert rows["fact"] == [0, 1, 2, 3, 4]
    assert rows["trained"] == [False, False, True, True, True]
    assert rows["value.value"][0] == step().measured[0].columns["value"][0]


def test_a_metrics_name_never_leads_out_of_the_folder(tmp_path):
    save_step(tmp_path / "run" / "step", step("../../../evil"))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert load_step(tmp_path / "run" / "step").measured[0].metric == "../../../evil"


def test_without_its_marker_a_step_counts_for_nothing(tmp_path):
    save_step(tmp_path / "step", step())
    (tmp_path / "step" / "done.json").unlink()
    with pytest.raises(RunError, match=r"done\.json"):
        load_step(tmp_path / "step")
    save_step(tmp_path / "step", step())  # over what was left
    assert load_step(tmp_path / "step").step == 40


@pytest.mark.parametrize("marker", ["{}", '{"files": []}', '{"files": {"../x": "0"}}', '{"files": {"gone": "0"}}'])
def test_a_marker_that_is_not_ours_is_refused(marker, tmp_path):
    (tmp_path / "done.json").write_text(marker)
    with pytest.raises(RunError, match=str(tmp_path)):
        check_done(tmp_path)


@pytest.mark.parametrize("text", ["{}", '{"seed": 0, "step": 1, "measured": 3}'])
def test_a_step_that_says_something_else_is_refused(text, tmp_path):
    (tmp_path / "step.json").write_text(text)
    mark_done(tmp_path, ["step.json"])
    with pytest.raises(RunError, match=r"step\.json: isn't what rcprobe writes"):
        load_step(tmp_path)


def test_arrays_that_are_views_are_written_as_they_read(tmp_path):
    cube = np.arange(24.0).reshape(2, 3, 4)
    views = {"turned": cube.transpose(2, 0, 1), "every other": cube[:, ::2], "backwards": cube[::-1]}
    write_arrays(tmp_path / "x.safetensors", views)
    for name, array in read_arrays(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(array, views[name], strict=True)


def test_a_tensor_file_that_is_cut_short_is_named(tmp_path):
    write_arrays(tmp_path / "x.safetensors", {"x": np.ones(9)})
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-1])
    with pytest.raises(RunError, match=r"x\.safetensors"):
        read_arrays(tmp_path / "x.safetensors")
