import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, WorkerCrashedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.app import losses
from serve.gateway import ServerBusy, ServerLost
from serve.versions import EngineBroken, MixedVersions


def raised_there(error):
    """As the caller of an actor gets what its code has raised."""
    return RayTaskError("answer", "traceback", error).as_instanceof_cause()


def seen_as(error):
    with pytest.raises(Exception) as seen, losses():
        raise error
    return type(seen.value)


@pytest.mark.parametrize(
    "error",
    [
        raised_there(EngineBroken("its process ended")),
        ActorDiedError(),
        ActorUnavailableError("unreachable", None),
        WorkerCrashedError(),
        DeploymentUnavailableError(DeploymentID("bridge-rl", "bi-ray")),
    ],
)
def test_a_server_that_is_gone_is_lost(error):
    assert seen_as(error) is ServerLost


@pytest.mark.parametrize(
    "error", [raised_there(KeyError("x")), raised_there(MixedVersions("of 1 and 2")), KeyError("x")]
)
def test_an_error_of_its_code_is_not_a_loss(error):
    assert seen_as(error) is type(error)


def test_a_full_queue_is_not_a_loss():
    assert seen_as(BackPressureError(num_queued_requests=9, max_queued_requests=8)) is ServerBusy
