import pytest

from bi_ray.runs.layout import (
    damaged_name,
    folders_of_checkpoints,
    is_in_checkpoint,
    kind_of,
    stage_files,
    stage_of,
    step_at,
    step_name,
    step_of,
    steps_in,
    work_of,
)


@pytest.mark.parametrize(
    ("name", "step"),
    [("step_7", 7), ("step_0", None), ("step_07", None), ("step_7.damaged", None), ("7", None)],
)
def test_the_step_of_a_checkpoint(name, step):
    assert step_of(name) == step
    assert step_at(f"work/rl/bridge/{name}") == (step or 0)


def test_names_are_read_as_they_are_written():
    assert step_of(step_name(12)) == 12
    assert kind_of(stage_of("sft", "bridge")) == "sft"
    assert work_of("sft/bridge") == "work/sft/bridge"
    assert is_in_checkpoint("checkpoints/step_3/policy/model.safetensors")
    assert not is_in_checkpoint("metrics.jsonl")


def test_checkpoints_and_stages_are_found(tmp_path):
    for folder in ("data", "sft/a", "work/rl/a", ".bi-ray-tmp-rl", "sft/.bi-ray-tmp-b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "stage.json").touch()
    stages = [file.parent.relative_to(tmp_path).as_posix() for file in stage_files(tmp_path)]
    assert stages == ["data", "sft/a"]
    work = tmp_path / "work/rl/a"
    (work / step_name(2)).mkdir()
    (work / "checkpoints" / damaged_name(step_name(3))).mkdir(parents=True)
    assert steps_in(work) == {2}
    assert steps_in(tmp_path / "absent") == set()
    assert folders_of_checkpoints(work) == {work, work / "checkpoints"}
