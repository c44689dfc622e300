"""The Ray Serve application: the gateway, and a deployment per model. ``build`` is what ``serve
deploy`` imports.

Ray's own LLM application is not used: it cannot hold answers back while weights change, does not
hand on the engine's version stamps, and Ray pins another release of vLLM for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from bi_ray.config import ModelConfig, RolloutConfig
from serve.access import Access, check_allowed, environment_keys, key_digest
from serve.asgi import Head
from serve.door import ServerBusy, ServerLost, make_app
from serve.policies import ServeError, choose_policies, read_run
from serve.server import PolicyServer, server_environment
from serve.versions import EngineBroken

APPLICATION = "bi-ray"
_DOOR_REQUESTS = 2048  # under way at a time, all models together
_WAITING_REQUESTS = 1024  # per model, beyond those under way; more are refused
_QUIET = LoggingConfig(enable_access_log=False)


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256 in hexadecimal


class ServeArgs(BaseModel):
    """Arguments of the application in ``serve/config.yaml``."""

    # an input may be a key by mistake
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    run: str  # absolute path of the run directory, seen from every node
    # <arm>-sft, <arm>-rl or base; none: every one that the run trained
    models: list[str] | None = None
    follow_s: float = Field(default=2.0, ge=0)  # how often to look for a newer version; 0: never
    # of API keys; those in the environment's BI_RAY_API_KEYS are added
    api_key_digests: list[Digest] = []
    # names in the Host header that are accepted besides loopback ones
    allowed_hosts: list[str] = []
    allowed_origins: list[str] = []  # web pages that may send requests from a browser


class PolicyDeployment(PolicyServer):
    """A ``PolicyServer`` that is ready when it is made."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, run: Path, name: str, model: ModelConfig, rollout: RolloutConfig, follow_s: float
    ) -> None:
        super().__init__(run, name, model, rollout, follow_s)
        await self.start()


class _Handles:
    """The deployments as ``Servers``."""

    def __init__(self, handles: dict[str, DeploymentHandle]) -> None:
        self._handles = handles

    @property
    def names(self) -> Sequence[str]:
        return list(self._handles)

    async def card(self, name: str) -> dict[str, Any]:
        with losses():
            return await self._handles[name].card.remote()

    async def answer(self, name: str, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
        pieces: Any = self._handles[name].options(stream=True).answer.remote(path, body)
        try:
            with losses():
                async for piece in pieces:
                    yield piece
        finally:
            pieces.cancel()  # of no effect on an answer that is whole


@contextmanager
def losses() -> Iterator[None]:
    """Tell a server that is busy or lost from an error that it raised."""
    try:
        yield
    except BackPressureError as error:
        raise ServerBusy(str(error)) from error
    except (EngineBroken, DeploymentUnavailableError) as error:
        raise ServerLost(str(error)) from error
    except RayTaskError:
        raise  # an error of its code
    except RayError as error:
        raise ServerLost(str(error)) from error


@serve.ingress()
class DoorDeployment:
    """The application of ``make_app`` over the deployments."""

    def __init__(
        self, handles: dict[str, DeploymentHandle], access: Access, stop: Sequence[str]
    ) -> None:
        self._servers = _Handles(handles)
        self._access = access
        self._stop = stop

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._servers, self._access, self._stop)


def build(args: ServeArgs | dict[str, Any]) -> serve.Application:
    """The application for a run.

    Args:
        args: Serve gives those of a configuration file as a dict.

    Raises:
        ServeError, ConfigError, CheckpointError: the run cannot be served as asked.
        pydantic.ValidationError: an argument is unknown, absent or of another type.
    """
    args = ServeArgs.model_validate(args)
    run = Path(args.run)
    if not run.is_absolute():
        raise ServeError(
            f"run: {run} is not an absolute path; servers do not share your working directory"
        )
    check_allowed(args.allowed_hosts, args.allowed_origins)
    config = read_run(run)
    rollout, model = (
        config.rollout,
        config.model.model_copy(update={"path": str(Path(config.model.path).absolute())}),
    )
    deploy_policy: Any = serve.deployment(PolicyDeployment)
    deploy_door: Any = serve.deployment(DoorDeployment)
    models = {
        policy.name: deploy_policy.options(
            name=policy.name,
            max_ongoing_requests=rollout.max_sequences,
            max_queued_requests=_WAITING_REQUESTS,
            logging_config=_QUIET,
            ray_actor_options={
                "num_cpus": rollout.cpus_per_worker,
                "num_gpus": rollout.gpus_per_worker,
                "runtime_env": {"env_vars": server_environment(rollout)},
            },
        ).bind(run, policy.name, model, rollout, args.follow_s)
        for policy in choose_policies(run, config, args.models)
    }
    door = deploy_door.options(
        name="door",
        max_ongoing_requests=_DOOR_REQUESTS,
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": 0},
    )
    digests = [*args.api_key_digests, *map(key_digest, environment_keys())]
    access = Access(tuple(digests), tuple(args.allowed_hosts), tuple(args.allowed_origins))
    return door.bind(models, access, model.stop)
