"""Fields of log records, by which the lines of a run can be filtered."""

from __future__ import annotations

import asyncio
import io
import logging

import pytest

from actors.logs import log_fields, start_logging

log = logging.getLogger("actors.rollout.pool")


@pytest.fixture
def lines():
    """The stderr of an actor's process."""
    root, packages = logging.getLogger(), [logging.getLogger(name) for name in ("actors", "bi_ray")]
    levels = [package.level for package in packages]
    handler = start_logging("driver")
    handler.stream = io.StringIO()
    yield handler.stream
    root.removeHandler(handler)
    for package, level in zip(packages, levels, strict=True):
        package.setLevel(level)


def test_a_line_ends_with_its_fields(lines):
    with log_fields(step=12, version="1.12"):
        log.warning("engine %d died", 2, extra={"worker": 2})
    assert lines.getvalue().endswith(
        "WARNING actors.rollout.pool: engine 2 died actor=driver worker=2 step=12 version=1.12\n"
    )


def test_fields_end_with_their_block_and_the_call_itself_has_precedence(lines):
    with log_fields(step=1), log_fields(worker=3):
        log.info("inner")
        log.info("other step", extra={"step": 2})
    log.info("outside")
    ends = [line.split(": ", 1)[1] for line in lines.getvalue().splitlines()]
    assert ends == [
        "inner actor=driver worker=3 step=1",
        "other step actor=driver worker=3 step=2",
        "outside actor=driver",
    ]


def test_a_task_keeps_the_fields_with_which_it_began(lines):
    async def work():
        await asyncio.sleep(0)
        log.info("at work")

    async def scenario():
        with log_fields(step=7):
            task = asyncio.create_task(work())
        with log_fields(step=8):
            await task

    asyncio.run(scenario())
    assert lines.getvalue().endswith("at work actor=driver step=7\n")


def test_a_traceback_comes_after_the_fields(lines):
    log.error("it failed", exc_info=ValueError("reason"), extra={"step": 4})
    first, *rest = lines.getvalue().splitlines()
    assert first.endswith("it failed actor=driver step=4")
    assert rest[-1] == "ValueError: reason"
