"""Warnings of the driver's process on their way to the command."""

from __future__ import annotations

import logging
import threading

import pytest

from actors.driver import notes
from actors.driver.notes import NoteFollower, NoteKeeper


@pytest.fixture
def keeper():
    made = NoteKeeper()
    made.install()
    yield made
    logging.getLogger("actors").removeHandler(made)


def test_warnings_of_the_actors_are_kept_once_and_handed_out_once(keeper):
    log = logging.getLogger("actors.rollout.pool")
    log.info("not for everybody")
    log.warning("engine %d died", 1)
    log.warning("engine %d died", 1)
    logging.getLogger("ray").warning("somebody else's")
    assert keeper.after(0) == (1, ["engine 1 died"])
    log.error("engine 2 died", exc_info=ValueError("with a traceback"))
    assert keeper.after(1) == (2, ["engine 2 died"])
    assert keeper.after(2) == (2, [])
    for number in range(1500):
        log.warning("%d", number)
    count, kept = keeper.after(2)
    assert (count, len(kept), kept[-1]) == (1502, 1000, "1499")


def test_notes_are_shown_as_they_come_and_the_last_ones_too(keeper, monkeypatch):
    monkeypatch.setattr(notes, "_POLL_S", 0.01)
    monkeypatch.setattr(notes.ray, "get", lambda call, timeout: call())
    shown, came = [], threading.Event()

    class Method:
        @staticmethod
        def remote(seen):
            return lambda: keeper.after(seen)

    def show(line):
        shown.append(line)
        came.set()

    follower = NoteFollower(type("Driver", (), {"notes": Method}), show)
    logging.getLogger("actors.driver.driver").warning("first")
    assert came.wait(5)
    logging.getLogger("actors.driver.driver").warning("last")
    follower.stop()
    assert shown == ["first", "last"]
