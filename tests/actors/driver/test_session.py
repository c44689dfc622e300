import asyncio
import json
import logging
import os
from pathlib import Path

import pytest

from actors.driver.driver import driver_concurrency
from actors.driver.session import KeptBatch, RLSession, Schedule, SessionError
from actors.driver.step_metrics import EngineWork
from actors.logs import FieldFilter
from bi_ray.batches.batch import LearnerBatch
from bi_ray.policy.version import PolicyVersion
from bi_ray.verification.verdicts import VerdictError

SYNCHRONOUS = Schedule(steps=100)


class Recorder:
    """A backend: makes batches that carry their number, and writes down what it was asked."""

    def __init__(self):
        self.made: list[int] = []
        self.synced: list[tuple[PolicyVersion, str]] = []
        self.fail_next = False
        self.validated = {2}
        self.ends_with: int | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def policy_of(self, step):
        return Path(f"policy_{step}")

    def last_step(self):
        return self.ends_with

    def engine_work(self):
        return EngineWork({}, 0)

    async def make_batch(self, step):
        await self.gate.wait()
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("no engine is left")
        self.made.append(step)
        return KeptBatch(LearnerBatch(samples=(), samples_total=step), {"reward": step / 10})

    async def sync(self, version, path):
        self.synced.append((version, str(path)))

    async def validate(self, step):
        return {"validation/val/greedy": 0.5} if step in self.validated else {}


def session(recorder, folder, incarnation=0, schedule=SYNCHRONOUS):
    return RLSession(incarnation, recorder, folder / "metrics.jsonl", schedule)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 20))


def test_every_rank_gets_one_batch_and_a_published_step_gets_one_row(tmp_path):
    async def scenario():
        recorder = Recorder()
        rl = session(recorder, tmp_path)
        incarnation = await rl.join(0)
        first, second = await asyncio.gather(rl.lease(1, incarnation), rl.lease(1, incarnation))
        assert first is second
        await rl.publish(incarnation, 1, Path("one"), {"loss": 2.0})
        await rl.lease(2, incarnation)
        await rl.publish(incarnation, 2, Path("two"), {"loss": 1.0})
        assert recorder.made == [1, 2, 3]  # the next begins at once
        assert recorder.synced == [((1, 0), "policy_0"), ((1, 1), "one"), ((1, 2), "two")]
        assert [(row["step"], row["reward"], row["loss"]) for row in rows(tmp_path)] == [
            (1, 0.1, 2.0),
            (2, 0.2, 1.0),
        ]
        assert [row.get("validation/val/greedy") for row in rows(tmp_path)] == [None, 0.5]

    run(scenario())


def test_step_0_is_validated_once_per_beginning_and_an_end_ends_the_leases(tmp_path):
    async def scenario():
        recorder = Recorder()
        recorder.validated = {0, 1, 2}
        recorder.ends_with = 2
        rl = session(recorder, tmp_path, schedule=Schedule(steps=10))
        for _ in range(2):  # a group that starts again before its first checkpoint
            incarnation = await rl.join(0)
            assert rows(tmp_path) == [{"step": 0, "validation/val/greedy": 0.5}]
        for step in (1, 2):
            assert await rl.lease(step, incarnation) is not None
            await rl.publish(incarnation, step, Path(str(step)), {})
        assert await rl.lease(3, incarnation) is None
        assert recorder.made == [1, 2]
        back = await rl.join(2)
        assert await rl.lease(3, back) is None
        assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2]

    run(scenario())


def test_learners_that_come_back_get_the_same_batches_and_the_engines_go_back_first(tmp_path):
    async def scenario():
        recorder = Recorder()
        rl = session(recorder, tmp_path)
        old = await rl.join(0)
        kept = []
        for step in (1, 2, 3):
            kept.append(await rl.lease(step, old))
            await rl.publish(old, step, Path(str(step)), {})
            if step == 1:
                await rl.checkpointed(1)
        new = await rl.join(1)
        assert new > old
        assert recorder.synced[-1] == ((new, 1), "policy_1")
        assert [row["step"] for row in rows(tmp_path)] == [1]
        assert await rl.lease(2, new) is kept[1]
        await rl.publish(new, 2, Path("2"), {})
        assert await rl.lease(3, new) is kept[2]
        await rl.publish(new, 3, Path("3"), {})
        await asyncio.sleep(0)
        assert recorder.made == [1, 2, 3, 4]  # nothing was generated twice
        assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]

    run(scenario())


def test_calls_of_learners_that_were_replaced_are_refused(tmp_path):
    async def scenario():
        rl = session(Recorder(), tmp_path)
        old = await rl.join(0)
        await rl.join(0)
        with pytest.raises(SessionError, match="replaced"):
            await rl.lease(1, old)
        with pytest.raises(SessionError, match="replaced"):
            await rl.publish(old, 1, Path("x"), {})

    run(scenario())


def test_a_step_out_of_order_is_refused(tmp_path):
    async def scenario():
        rl = session(Recorder(), tmp_path)
        incarnation = await rl.join(0)
        with pytest.raises(
            SessionError, match="step 3 was requested while the policy is at step 0"
        ):
            await rl.lease(3, incarnation)

    run(scenario())


def test_a_rank_that_is_ahead_waits_until_the_engines_hold_the_step_before(tmp_path):
    """Ranks other than 0 do not publish, so they may ask for the next batch while rank 0 still
    writes.
    """

    async def scenario():
        recorder = Recorder()
        rl = session(recorder, tmp_path)
        incarnation = await rl.join(0)
        await rl.lease(1, incarnation)
        ahead = asyncio.ensure_future(rl.lease(2, incarnation))
        slow = asyncio.Event()

        async def slow_sync(version, path):
            await slow.wait()
            recorder.synced.append((version, str(path)))

        recorder.sync = slow_sync
        publishing = asyncio.ensure_future(rl.publish(incarnation, 1, Path("one"), {}))
        await asyncio.sleep(0.01)
        assert recorder.made == [1]
        slow.set()
        await publishing
        assert (await ahead).samples_total == 2
        assert await rl.lease(2, incarnation) is await ahead

    run(scenario())


def test_a_validation_without_verdicts_ends_every_rank_the_same_way(tmp_path):
    async def scenario():
        recorder = Recorder()
        rl = session(recorder, tmp_path)
        incarnation = await rl.join(0)
        await rl.lease(1, incarnation)
        ahead = asyncio.ensure_future(rl.lease(2, incarnation))

        async def no_verdicts(step):
            raise VerdictError("none of 4 responses could be judged")

        recorder.validate = no_verdicts
        with pytest.raises(VerdictError, match="none of 4"):
            await rl.publish(incarnation, 1, Path("one"), {})
        with pytest.raises(VerdictError, match="none of 4"):
            await ahead
        with pytest.raises(VerdictError, match="none of 4"):
            await rl.join(0)

    run(scenario())


def test_a_rank_that_is_ahead_when_the_group_is_replaced_is_refused(tmp_path):
    async def scenario():
        rl = session(Recorder(), tmp_path)
        old = await rl.join(0)
        await rl.lease(1, old)
        ahead = asyncio.ensure_future(rl.lease(2, old))
        await asyncio.sleep(0)
        await rl.join(0)
        with pytest.raises(SessionError, match="replaced"):
            await ahead

    run(scenario())


def test_a_batch_that_failed_is_made_again_after_a_join(tmp_path):
    async def scenario():
        recorder = Recorder()
        rl = session(recorder, tmp_path)
        incarnation = await rl.join(0)
        recorder.fail_next = True
        with pytest.raises(RuntimeError, match="no engine is left"):
            await rl.lease(1, incarnation)
        incarnation = await rl.join(0)
        assert (await rl.lease(1, incarnation)).samples_total == 1

    run(scenario())


def test_a_batch_in_the_making_is_finished_before_the_engines_change_weights(tmp_path):
    async def scenario():
        recorder = Recorder()
        rl = session(recorder, tmp_path)
        incarnation = await rl.join(0)
        recorder.gate.clear()
        waiting = asyncio.ensure_future(rl.lease(1, incarnation))
        await asyncio.sleep(0)
        joining = asyncio.ensure_future(rl.join(0))
        await asyncio.sleep(0.01)
        assert len(recorder.synced) == 1  # the join waits
        recorder.gate.set()
        again = await joining
        assert await rl.lease(1, again) is await waiting
        assert recorder.made == [1]

    run(scenario())


def test_learners_that_come_back_from_behind_a_checkpoint_get_its_batches_again(tmp_path):
    """The newest checkpoint was damaged: its batches were dropped, and are made again by the
    restored weights.
    """

    async def scenario():
        recorder = Recorder()
        rl = session(recorder, tmp_path)
        incarnation = await rl.join(0)
        for step in (1, 2, 3, 4):
            await rl.lease(step, incarnation)
            await rl.publish(incarnation, step, Path(str(step)), {})
            if step in (2, 4):
                await rl.checkpointed(step)
        back = await rl.join(2)
        assert recorder.synced[-1] == ((back, 2), "policy_2")
        assert [row["step"] for row in rows(tmp_path)] == [1, 2]
        recorder.made.clear()
        for step in (3, 4, 5):
            batch = await rl.lease(step, back)
            assert batch.samples_total == step
            await rl.publish(back, step, Path(str(step)), {})
        assert recorder.made[:2] == [3, 4]
        assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]

    run(scenario())


class SlowRecorder(Recorder):
    """Whose waits are long: an own gate for each call that a test names."""

    def __init__(self):
        super().__init__()
        self.gates: dict[tuple[str, int], asyncio.Event] = {}
        self.calls = {"sync": 0, "validate": 0, "make_batch": 0}

    async def _wait(self, name):
        self.calls[name] += 1
        if gate := self.gates.get((name, self.calls[name])):
            await gate.wait()

    async def make_batch(self, step):
        await self._wait("make_batch")
        return await super().make_batch(step)

    async def sync(self, version, path):
        await self._wait("sync")
        await super().sync(version, path)

    async def validate(self, step):
        await self._wait("validate")
        return await super().validate(step)


@pytest.mark.parametrize("ends", ["before", "while", "after"])
@pytest.mark.parametrize("call", ["sync", "validate", "make_batch"])
def test_a_join_whose_learners_died_does_not_touch_what_is_their_successors(call, ends, tmp_path):
    """The dead one's call waits in a sync, a validation, or for a batch, and ends whenever it
    likes.
    """

    async def scenario():
        recorder = SlowRecorder()
        recorder.validated = {0}
        rl = session(recorder, tmp_path)
        gate = recorder.gates[call, 1] = asyncio.Event()
        if call == "make_batch":  # the join before it begins the batch that the dead one waits for
            await rl.join(0)
            await asyncio.sleep(0)
        dead = asyncio.ensure_future(rl.join(0))
        await asyncio.sleep(0.005)
        joining = asyncio.ensure_future(rl.join(0))
        if ends == "before":
            gate.set()
        await asyncio.sleep(0.005)
        if ends == "while":
            gate.set()
            await asyncio.sleep(0.005)
        if ends == "after" and call == "validate":  # the one wait that may be broken off
            await joining
        gate.set()
        incarnation = await joining
        with pytest.raises(SessionError, match="replaced"):
            await dead
        assert incarnation == rl.incarnation
        for step in (1, 2, 3):
            assert await rl.lease(step, incarnation) is not None
            await rl.publish(incarnation, step, Path(str(step)), {})
        assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3]
        assert recorder.synced[-4:] == [((incarnation, 0), "policy_0")] + [
            ((incarnation, i), str(i)) for i in (1, 2, 3)
        ]

    run(scenario())


def test_of_three_joins_at_once_the_newest_one_counts(tmp_path):
    async def scenario():
        recorder = Recorder()
        recorder.validated = {0}
        rl = session(recorder, tmp_path)
        answers = await asyncio.gather(*(rl.join(0) for _ in range(3)), return_exceptions=True)
        assert [isinstance(answer, SessionError) for answer in answers] == [True, True, False]
        assert answers[-1] == 3
        assert [row["step"] for row in rows(tmp_path)] == [0]

    run(scenario())


def test_a_join_that_the_engines_did_not_follow_can_be_repeated(tmp_path):
    async def scenario():
        recorder = Recorder()
        recorder.validated = {0}
        rl = session(recorder, tmp_path)
        recorder.sync, whole = refuse, recorder.sync
        with pytest.raises(RuntimeError, match="no rollout worker"):
            await rl.join(0)
        recorder.sync = whole
        incarnation = await rl.join(0)
        assert await rl.lease(1, incarnation) is not None

    async def refuse(version, path):
        raise RuntimeError("no rollout worker took it")

    run(scenario())


@pytest.mark.parametrize("learners", [1, 64, 70, 500])
def test_calls_that_wait_leave_room_for_the_one_on_which_they_wait(learners, tmp_path):
    """An actor serves so many calls at a time; `tests/integration/test_driver_calls.py` has a real
    one.
    """

    async def scenario():
        rl = session(Recorder(), tmp_path)
        places = asyncio.Semaphore(driver_concurrency(learners))

        async def call(method, *arguments):
            async with places:
                return await method(*arguments)

        def wait_for_batch(step):
            return [
                asyncio.ensure_future(call(rl.lease, step, incarnation)) for _ in range(learners)
            ]

        incarnation = await call(rl.join, 0)
        await asyncio.gather(*wait_for_batch(1))
        ahead = wait_for_batch(2)
        await asyncio.sleep(0.01)
        await call(rl.publish, incarnation, 1, Path("1"), {})
        await asyncio.gather(*ahead)
        dead = wait_for_batch(3)
        await asyncio.sleep(0.01)
        incarnation = await call(rl.join, 0)
        await asyncio.gather(*wait_for_batch(1))
        refused = await asyncio.gather(*dead, return_exceptions=True)
        assert all(isinstance(answer, SessionError) for answer in refused)

    run(scenario())


def test_the_rows_that_a_checkpoint_knows_outlast_a_power_cut(tmp_path, monkeypatch):
    on_disk = []

    async def scenario():
        schedule = Schedule(steps=100, must_settle=lambda step: step == 2)
        rl = session(Recorder(), tmp_path, schedule=schedule)
        incarnation = await rl.join(0)
        monkeypatch.setattr(os, "fsync", lambda descriptor: on_disk.append(len(rows(tmp_path))))
        for step in (1, 2, 3):
            await rl.lease(step, incarnation)
            await rl.publish(incarnation, step, Path(str(step)), {})
        assert on_disk == [2]  # both rows, before the learners go on to the checkpoint of step 2

    run(scenario())


def test_what_is_logged_in_the_work_of_a_step_has_its_step_and_version(tmp_path):
    seen = []

    class LoggingRecorder(Recorder):
        async def make_batch(self, step):
            log_a_line("batch")
            return await super().make_batch(step)

        async def sync(self, version, path):
            log_a_line("sync")
            await super().sync(version, path)

    def log_a_line(what):
        record = logging.LogRecord("actors", logging.INFO, __file__, 1, what, None, None)
        FieldFilter({"actor": "driver"}).filter(record)
        seen.append((what, record.step, str(getattr(record, "version", None))))

    async def scenario():
        rl = session(LoggingRecorder(), tmp_path)
        incarnation = await rl.join(0)
        await rl.lease(1, incarnation)
        await rl.publish(incarnation, 1, Path("one"), {})
        await rl.lease(2, incarnation)

    run(scenario())
    assert seen[:3] == [("sync", 0, "1.0"), ("batch", 1, "1.0"), ("sync", 1, "1.1")]
    assert [(what, step) for what, step, _ in seen[3:]] == [("batch", 2)]


def test_a_batch_that_fails_is_logged_at_once_with_its_traceback_and_step(tmp_path, caplog):
    async def scenario():
        recorder = Recorder()
        recorder.fail_next = True
        await session(recorder, tmp_path).join(0)
        await asyncio.sleep(0.01)  # nobody has asked for the batch

    run(scenario())
    [record] = [record for record in caplog.records if "batch 1 failed" in record.message]
    assert isinstance(record.exc_info[1], RuntimeError)
    assert record.step == 1


def test_the_rows_of_metrics_are_read_when_they_change_and_not_at_every_lease(tmp_path):
    class Counting(Recorder):
        reads = 0

        def last_step(self):
            self.reads += 1
            return super().last_step()

    async def scenario():
        recorder = Counting()
        rl = session(recorder, tmp_path)
        incarnation = await rl.join(0)
        before = recorder.reads
        await asyncio.gather(*(rl.lease(1, incarnation) for _ in range(50)))
        assert recorder.reads == before
        await rl.publish(incarnation, 1, Path("1"), {})
        assert recorder.reads == before + 1

    run(scenario())
