"""A folder that is not ours is never touched: refused in one line that says what to do."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bi_ray.cli import main as cli
from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.files.atomic import remove_leftovers, write_atomically
from bi_ray.files.errors import RunError
from bi_ray.report.writing import write_report
from bi_ray.runs.directory import RunDirectory, begin_directory, keep_config
from bi_ray.runs.stage_key import key_of

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs/quickstart.yaml"
PRETRAIN = ROOT / "configs/pretrain_tiny.yaml"
KEY = key_of({"a": 1}, {})


def snapshot(folder):
    """Every file below a folder: its content and when it was written."""
    return {
        file.relative_to(folder): (file.read_bytes(), file.stat().st_mtime_ns)
        if file.is_file()
        else None
        for file in folder.rglob("*")
    }


@pytest.fixture
def thesis(tmp_path):
    """A folder of somebody who has never heard of runs; nearly every name in it is one that runs
    use too.
    """
    folder = tmp_path / "thesis"
    for name in (
        "data/thesis.txt",
        "draft.tmp",
        "sub/cache.tmp",
        "config.yaml",
        "report/report.html",
        "data.old/x",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    (folder / ".lock").write_text("of another program")
    return folder


def assert_refused(arguments, folder, capsys, monkeypatch):
    before = snapshot(folder)
    monkeypatch.setattr(sys, "argv", ["bi-ray", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    output = capsys.readouterr().out
    assert stop.value.code == 2
    assert len(output.strip().splitlines()) == 1, output
    assert "error: " in output
    assert snapshot(folder) == before
    return output


@pytest.mark.parametrize(
    "command",
    [
        ["run", QUICKSTART, "--run"],
        ["run", QUICKSTART, "--from", "data", "--run"],
        ["readiness", QUICKSTART, "--run"],
        ["study", QUICKSTART, "--run"],
        ["pretrain", PRETRAIN, "--run"],
        ["submit", QUICKSTART, "--working-dir", ROOT, "--run"],
    ],
    ids=lambda command: "-".join(map(str, command[:1] + command[2:3])),
)
def test_no_command_works_in_a_folder_that_is_not_a_run(command, thesis, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    if command[0] == "study":
        monkeypatch.setattr(cli.console, "rule", lambda _: None)
    output = assert_refused([*command, thesis], thesis, capsys, monkeypatch)
    assert f"{thesis} has files and is not a run directory, so nothing was written there" in output


@pytest.mark.parametrize("place", [".", "~", "link", "../thesis"])
def test_wherever_its_name_points(place, thesis, capsys, monkeypatch):
    (thesis.parent / "link").symlink_to(thesis)
    monkeypatch.chdir(thesis)
    monkeypatch.setenv("HOME", str(thesis))
    named = {"~": Path.home(), "link": thesis.parent / "link"}.get(place, place)
    assert_refused(["pretrain", PRETRAIN, "--run", named], thesis, capsys, monkeypatch)


@pytest.mark.parametrize("name", ["report/report.html", "config.yaml", "data/thesis.txt"])
def test_a_report_replaces_nothing_but_a_report(name, thesis, capsys, monkeypatch):
    run = thesis.parent / "run"
    with RunDirectory(run):
        keep_config(load_config(QUICKSTART, RunConfig), run, replace=True)
    output = assert_refused(["report", run, "--out", thesis / name], thesis, capsys, monkeypatch)
    assert "is not a report, so it is not replaced; name another file" in output
    page = thesis / "new.html"
    assert write_report([run], page) == page
    assert write_report([run], page) == page  # one of ours is replaced
    (run / "report").mkdir()
    (run / "report" / "notes.md").write_text("mine")
    with pytest.raises(RunError, match=r"notes\.md is not part of a report; move it away"):
        write_report([run], None)
    assert (run / "report" / "notes.md").read_text() == "mine"


def test_check_replaces_nothing_but_verdicts(tmp_path, thesis, capsys, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        json.dumps({"question": "?", "response": "<answer>1</answer>", "answer": "1"}) + "\n"
    )
    arguments = ["check", rows, "--config", QUICKSTART, "--out"]
    monkeypatch.chdir(ROOT)
    output = assert_refused([*arguments, thesis / "draft.tmp"], thesis, capsys, monkeypatch)
    assert "does not contain verdicts; it was not replaced, choose another --out" in output


def test_an_unfinished_set_is_not_begun_in_a_folder_of_the_user(thesis, capsys, monkeypatch):
    partial = thesis.with_name("set.partial")
    thesis.rename(partial)
    monkeypatch.chdir(ROOT)
    arguments = ["data", QUICKSTART, "--out", partial.with_name("set"), "--problems", 2]
    assert "is not a run directory" in assert_refused(arguments, partial, capsys, monkeypatch)


# --- what is a run


def stage_without_a_mark(run):
    (run / "sft/bridge").mkdir(parents=True)
    record = {"key": "1a", "config": {}, "inputs": {}, "code_version": "0.1", "seconds": 2.0}
    (run / "sft/bridge/stage.json").write_text(json.dumps(record))


def study_without_a_mark(run):
    stage_without_a_mark(run / "seed_0")


def begun(run):
    with RunDirectory(run):
        pass


def volume(run):
    (run / "lost+found").mkdir(parents=True)


MAKERS = [
    lambda run: None,
    Path.mkdir,
    stage_without_a_mark,
    study_without_a_mark,
    begun,
    volume,
]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_run_is_one_also_where_it_was_copied_without_hidden_files(make, tmp_path):
    make(tmp_path / "run")
    before = snapshot(tmp_path / "run")
    with RunDirectory(tmp_path / "run"):
        pass
    begin_directory(tmp_path / "run")
    after = snapshot(tmp_path / "run")
    assert {name: after[name] for name in before if name.name != ".lock"} == {
        name: content for name, content in before.items() if name.name != ".lock"
    }


@pytest.mark.parametrize("content", ["4711", "", "of another program"])
def test_a_lock_file_alone_makes_no_run_of_a_folder(content, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/.lock").write_text(content)
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(RunError, match="is not a run directory"), RunDirectory(tmp_path / "mine"):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    begin_directory(tmp_path / "run")
    (tmp_path / "run/.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"run/\.lock"), RunDirectory(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


# --- files of the user inside a run


def finish(run, stage):
    with run.commit(stage, KEY) as folder:
        (folder / "artifact").write_text(stage)


def test_only_our_own_leftovers_go(tmp_path):
    begun(tmp_path / "run")
    kept = ["draft.tmp", "sub/cache.tmp", "work/sub/x.tmp", "data.old", "bi-ray-tmp-x"]
    for name in [
        *kept,
        ".bi-ray-tmp-data.0a1b.tmp",
        "work/rl/bridge/.bi-ray-tmp-metrics.jsonl.0a.tmp",
    ]:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("x")
    begun(tmp_path / "run")
    assert all((tmp_path / "run" / name).exists() for name in kept)
    assert not list((tmp_path / "run").rglob(".bi-ray-tmp-*"))


@pytest.mark.parametrize("stage", ["data", "sft/bridge"])
def test_a_stage_does_not_take_the_place_of_a_folder_of_the_user(stage, tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        (run.path / stage).mkdir(parents=True)
        (run.path / stage / "thesis.txt").write_text("mine")
        with pytest.raises(RunError, match=f"{stage} was not made by bi-ray: .*; move it away"):
            finish(run, stage)
        with pytest.raises(RunError, match="move it away"):
            run.forget_from(("data",), "data") if stage == "data" else finish(run, stage)
        assert (run.path / stage / "thesis.txt").read_text() == "mine"
        (run.path / "eval_base").mkdir()
        finish(run, "eval_base")  # an empty one is nobody's


def test_starting_again_removes_what_stages_made_and_nothing_else(tmp_path):
    order = ("data", "sft", "rl", "report")
    with RunDirectory(tmp_path / "run") as run:
        for stage in ("data", "sft/vanilla", "sft/bridge", "rl/bridge"):
            finish(run, stage)
        (run.path / "sft/notes.txt").write_text("mine")
        run.forget_from(order, "sft")
        assert [file.name for file in (run.path / "sft").iterdir()] == ["notes.txt"]
        assert not (run.path / "rl").exists()
        finish(run, "rl/bridge")
        (run.path / "rl/bridge/notes.txt").write_text("mine")
        finish(run, "sft/bridge")
        with pytest.raises(
            RunError, match=r"rl/bridge/notes\.txt was not made by the stage .*; move it away"
        ):
            run.forget_from(order, "sft")
        assert run.is_done("sft/bridge", KEY)  # refused before anything was removed
        (run.path / "rl/bridge/notes.txt").rename(run.path / "notes.txt")
        (run.path / "report").mkdir()
        (run.path / "report/slides.pdf").write_text("mine")
        with pytest.raises(RunError, match=r"slides\.pdf is not part of a report; move it away"):
            run.forget_from(order, "sft")
        assert run.is_done("rl/bridge", KEY)


def test_a_stage_on_another_disk_is_replaced_by_its_link_alone(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        finish(run, "data")
        (run.path / "data").rename(tmp_path / "elsewhere")
        (run.path / "data").symlink_to(tmp_path / "elsewhere")
        assert run.is_done("data", KEY)
        run.forget_from(("data",), "data")
        assert not (run.path / "data").exists()
        assert (tmp_path / "elsewhere/artifact").exists()


# --- names


BASE = load_config(QUICKSTART, RunConfig).model_dump(mode="json")
BAD = [
    "..",
    ".",
    "",
    "a/b",
    "../../escape",
    "x.tmp",
    ".hidden",
    "-x",
    "a b",
    "a\nb",
    "ü",
    "a" * 65,
    "a\\b",
    "a:b",
]


@pytest.mark.parametrize("arm", BAD)
def test_an_arm_that_cannot_name_a_folder_is_refused(arm):
    with pytest.raises(
        ValueError, match="cannot name an arm: use 1 to 64 letters, digits, - and _"
    ):
        RunConfig.model_validate(BASE | {"arms": {arm: "bridge"}})


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../../escape", "a\nb", "a" * 201, "a\\b"])
def test_a_run_has_a_name_that_a_folder_can_have(name):
    with pytest.raises(
        ValueError, match="cannot name a folder: use 1 to 200 characters, none of them / or"
    ):
        RunConfig.model_validate(BASE | {"name": name})
    assert RunConfig.model_validate(BASE | {"name": "RL of a 7B, v1.2"}).name == "RL of a 7B, v1.2"


@pytest.mark.parametrize("arm", ["a", "bridge", "pp_aug", "no-sft", "7", "A" * 64])
def test_an_arm_may_have_letters_digits_and_dashes(arm):
    assert list(RunConfig.model_validate(BASE | {"arms": {arm: "bridge"}}).arms) == [arm]


# --- kills


def test_what_a_killed_writer_left_goes_with_the_next_call(tmp_path):
    code = (
        "import time; from pathlib import Path\n"
        "from bi_ray.files.atomic import write_atomically, write_whole\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "with write_atomically(folder / 'set'), write_whole(folder / 'page'):\n"
        "    print('in', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline().strip() == "in"
    with write_atomically(tmp_path / "set") as folder:  # the other one lives: nothing of it goes
        (folder / "x").touch()
    remove_leftovers(tmp_path, "page")
    assert len(list(tmp_path.glob(".bi-ray-tmp-*"))) == 2
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    (tmp_path / ".bi-ray-tmp-another.0a.tmp").touch()
    with write_atomically(tmp_path / "set") as folder:
        (folder / "y").touch()
    remove_leftovers(tmp_path, "page")
    assert sorted(os.listdir(tmp_path)) == [".bi-ray-tmp-another.0a.tmp", "set"]
    assert os.listdir(tmp_path / "set") == ["y"]


def test_a_leftover_that_nobody_can_vouch_for_stays(tmp_path, monkeypatch):
    """As NFS does it: an exclusive lock wants a file that is open for writing."""
    (tmp_path / ".bi-ray-tmp-page.0a.tmp").touch()
    (tmp_path / ".bi-ray-tmp-link.0a.tmp").symlink_to("nowhere")
    holder = os.open(tmp_path / ".bi-ray-tmp-page.0a.tmp", os.O_RDWR)
    flock = fcntl.flock

    def flock_of_nfs(descriptor, operation):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    flock(holder, fcntl.LOCK_EX)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [".bi-ray-tmp-page.0a.tmp"]
    os.close(holder)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [".DS_Store", "policy/.nfs00000001", "policy/.cache/x"])
def test_hidden_files_are_in_nobody_s_way(tmp_path, name):
    with RunDirectory(tmp_path / "run") as run:
        for _ in range(2):
            finish(run, "sft/bridge")
            (run.path / "sft/bridge" / name).parent.mkdir(parents=True, exist_ok=True)
            (run.path / "sft/bridge" / name).touch()
        run.forget_from(("sft",), "sft")
        assert not (run.path / "sft").exists()
