"""What tests of runs at a URI share: a stage, a checkpoint, and waiting for a thread."""

import time

from bi_ray.config.training import SFTConfig
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.remote import Remote
from bi_ray.runs.stage_key import key_of

KEY = key_of({"sft": SFTConfig(epochs=5)}, {"data": "1a"})
ORDER = ("data", "sft", "rl")
LONG = "x" * 7_000_000  # longer than one part of an upload


def finish(run, stage, text="made"):
    with run.commit(stage, KEY) as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "artifact").write_text(text)
        (folder / "empty").touch()


def content(run, stage):
    return (run.artifact(stage) / "deep" / "er" / "artifact").read_text()


def checkpoint(work, step, text="weights"):
    def fill(folder):
        (folder / "policy").mkdir()
        (folder / "policy" / "model").write_text(text)
        (folder / "reference").write_text(text)

    # As trainings do it, first: a checkpoint that is sent takes the metrics along.
    with open(work / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step}}}\n')
    (work / "checkpoints").mkdir(exist_ok=True)
    StepDirectories(work / "checkpoints", keep_last=9).write(step, fill)


def steps_at(place):
    return [int(name.rpartition("_")[2]) for name in Remote(place.uri).checkpoints("work")]


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
