"""The state machine of a worker: every transition there is, and that there are no others."""

from __future__ import annotations

from itertools import product

import pytest

from actors.rollout.worker_state import TRANSITIONS, IllegalTransition, WorkerHealth, WorkerState

S = WorkerState
SUSPECT_S, DEAD_S = 30.0, 120.0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def worker_in(state: WorkerState) -> tuple[WorkerHealth, Clock]:
    """A worker brought to a state by its public methods alone."""
    clock = Clock()
    health = WorkerHealth(SUSPECT_S, DEAD_S, clock)
    path = {
        S.STARTING: [],
        S.STALE: ["started"],
        S.HEALTHY: ["started", "synced"],
        S.SUSPECT: ["started", "synced", "failed"],
        S.DEAD: ["lost"],
        S.DRAINING: ["started", "synced", "drain"],
        S.RETIRED: ["started", "synced", "drain", "retired"],
    }
    for step in path[state]:
        getattr(health, step)()
    assert health.state is state
    return health, clock


# What each event does in each state; a pair that is not named is refused.
EVENTS = {
    "started": {S.STARTING: S.STALE},
    "synced": {S.STALE: S.HEALTHY},
    "heartbeat": {
        S.STARTING: S.STARTING,
        S.STALE: S.STALE,
        S.HEALTHY: S.HEALTHY,
        S.SUSPECT: S.HEALTHY,
        S.DRAINING: S.DRAINING,
    },
    "failed": {state: S.SUSPECT if state is S.HEALTHY else state for state in S},
    "tick": {state: state for state in S},
    "lost": {S.STARTING: S.DEAD, S.STALE: S.DEAD, S.HEALTHY: S.DEAD, S.SUSPECT: S.DEAD},
    "restarted": {S.DEAD: S.STARTING},
    "drain": {S.HEALTHY: S.DRAINING},
    "retired": {S.DRAINING: S.RETIRED},
}


@pytest.mark.parametrize(("event", "state"), list(product(EVENTS, S)))
def test_every_event_in_every_state(event, state):
    health, _ = worker_in(state)
    if state in EVENTS[event]:
        getattr(health, event)()
        assert health.state is EVENTS[event][state]
    else:
        with pytest.raises(IllegalTransition):
            getattr(health, event)()
        assert health.state is state


def test_nothing_leads_from_dead_but_a_new_start():
    assert TRANSITIONS[S.DEAD] == {S.STARTING}
    assert TRANSITIONS[S.RETIRED] == frozenset()
    assert set(TRANSITIONS) == set(S)


def test_silence_makes_suspect_then_dead_and_not_a_moment_early():
    health, clock = worker_in(S.HEALTHY)
    clock.now += SUSPECT_S
    health.tick()
    assert health.state is S.HEALTHY
    clock.now += 0.001
    health.tick()
    assert health.state is S.SUSPECT
    clock.now += DEAD_S - SUSPECT_S - 0.001
    health.tick()
    assert health.state is S.SUSPECT
    clock.now += 0.001
    health.tick()
    assert health.state is S.DEAD


def test_a_sign_of_life_starts_the_silence_anew():
    health, clock = worker_in(S.HEALTHY)
    for _ in range(10):
        clock.now += SUSPECT_S
        health.heartbeat()
        health.tick()
        assert health.state is S.HEALTHY


def test_a_long_start_is_no_silence():
    health, clock = worker_in(S.STARTING)
    clock.now += 10 * DEAD_S
    health.tick()
    assert health.state is S.STARTING
    health.started()
    health.synced()
    health.tick()
    assert health.state is S.HEALTHY


def test_a_failed_call_asks_for_a_sign_of_life():
    health, _ = worker_in(S.HEALTHY)
    health.failed()
    assert health.state is S.SUSPECT
    health.heartbeat()
    assert health.state is S.HEALTHY


def test_thresholds_must_ascend():
    with pytest.raises(ValueError, match="dead_after_s"):
        WorkerHealth(30, 30, Clock())
