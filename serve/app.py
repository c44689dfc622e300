"""The Ray Serve application: the door, and a deployment per model. ``build`` is what ``serve deploy`` imports.

Ray's own LLM application is not used: it cannot hold answers back while weights change, does not hand on the engine's
version stamps, and Ray pins another release of vLLM for it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from bi_ray.config import ModelConfig, RolloutConfig
from serve.asgi import Head
from serve.door import ServerBusy, key_digest, make_app
from serve.policies import ServeError, choose_policies, read_run
from serve.server import PolicyServer, server_environment

APPLICATION = "bi-ray"
API_KEYS_VARIABLE = "BI_RAY_API_KEYS"
_DOOR_REQUESTS = 2048  # under way at a time, all models together
_WAITING_REQUESTS = 1024  # per model, beyond those under way; more are refused
_QUIET = LoggingConfig(enable_access_log=False)


class ServeArgs(BaseModel):
    """Arguments of the application in ``serve/config.yaml``."""

    model_config = ConfigDict(extra="forbid")

    run: str  # absolute path of the run directory, seen from every node
    models: list[str] | None = None  # <arm>-sft, <arm>-rl or base; none: every one that the run trained
    follow_s: float = Field(default=2.0, ge=0)  # how often to look for a newer version; 0: never
    api_key_digests: list[str] = []  # SHA-256 in hexadecimal; the environment's BI_RAY_API_KEYS come on top


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
        return await self._handles[name].card.remote()

    async def answer(self, name: str, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
        pieces: Any = self._handles[name].options(stream=True).answer.remote(path, body)
        try:
            async for piece in pieces:
                yield piece
        except BackPressureError as error:
            raise ServerBusy(str(error)) from error
        finally:
            pieces.cancel()  # of no effect on an answer that is whole


@serve.ingress()
class DoorDeployment:
    """The application of ``make_app`` over the deployments."""

    def __init__(self, handles: dict[str, DeploymentHandle], key_digests: Sequence[str], stop: Sequence[str]) -> None:
        self._servers = _Handles(handles)
        self._key_digests = key_digests
        self._stop = stop

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._servers, self._key_digests, self._stop)


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
        raise ServeError(f"run: {run} is no absolute path; servers have other working directories than you")
    config = read_run(run)
    rollout, model = config.rollout, config.model.model_copy(update={"path": str(Path(config.model.path).absolute())})
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
        name="door", max_ongoing_requests=_DOOR_REQUESTS, logging_config=_QUIET, ray_actor_options={"num_cpus": 0}
    )
    return door.bind(models, [*args.api_key_digests, *map(key_digest, environment_keys())], model.stop)


def environment_keys() -> list[str]:
    """The API keys in the environment, between commas."""
    return [key for part in os.environ.get(API_KEYS_VARIABLE, "").split(",") if (key := part.strip())]
