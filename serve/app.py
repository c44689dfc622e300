"""The Ray Serve application: the gateway, and a deployment per model.

``serve deploy`` imports ``build``. Ray's own LLM application is not used: it cannot hold answers
back while weights change, does not pass on the engine's version stamps, and Ray pins another
release of vLLM for it.
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

from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import ModelConfig
from serve.access import Access, check_allowed, environment_keys, key_digest
from serve.asgi import Head
from serve.errors import JsonObject
from serve.gateway import ServerBusy, ServerLost, make_app
from serve.policies import ServeError, choose_policies, read_run
from serve.server import PolicyServer, server_environment
from serve.versions import EngineBroken

APPLICATION = "bi-ray"
GATEWAY = "gateway"
_GATEWAY_REQUESTS = 2048  # in progress at a time, all models together
_WAITING_REQUESTS = 1024  # per model, beyond those in progress; more are refused
_QUIET = LoggingConfig(enable_access_log=False)

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256 in hexadecimal


class ServeArgs(BaseModel):
    """Arguments of the application in ``serve/config.yaml``."""

    # errors do not show values: an API key may be among them by mistake
    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    run: str
    """Absolute path of the run directory, the same on every node."""
    models: list[str] | None = None
    """Names of policies: <arm>-sft, <arm>-rl or base; none: every one that the run trained."""
    follow_s: float = Field(default=2.0, ge=0)
    """Seconds between two looks for a newer version; 0: never."""
    api_key_digests: list[Digest] = []
    """Digests of API keys; the keys in the environment variable BI_RAY_API_KEYS are added."""
    allowed_hosts: list[str] = []
    """Names in the Host header that are accepted besides loopback ones."""
    allowed_origins: list[str] = []
    """Web pages that may send requests from a browser."""


class PolicyDeployment(PolicyServer):
    """A ``PolicyServer`` that has started when its constructor is done."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, run: Path, name: str, model: ModelConfig, rollout: RolloutConfig, follow_s: float
    ) -> None:
        super().__init__(run, name, model, rollout, follow_s)
        await self.start()


class _Handles:
    """The deployments of the models, as ``Servers``."""

    def __init__(self, handles: dict[str, DeploymentHandle]) -> None:
        self._handles = handles

    @property
    def names(self) -> Sequence[str]:
        return list(self._handles)

    async def card(self, name: str) -> JsonObject:
        with losses():
            return await self._handles[name].card.remote()

    async def answer(self, name: str, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
        pieces: Any = self._handles[name].options(stream=True).answer.remote(path, body)
        try:
            with losses():
                async for piece in pieces:
                    yield piece
        finally:
            pieces.cancel()  # has no effect on an answer that is complete


@contextmanager
def losses() -> Iterator[None]:
    """Tell a server that is busy or lost from an error that its code raised.

    Raises:
        ServerBusy, ServerLost: see there.
    """
    try:
        yield
    except BackPressureError as error:
        raise ServerBusy(str(error)) from error
    except (EngineBroken, DeploymentUnavailableError) as error:
        raise ServerLost(str(error)) from error
    except RayTaskError:
        raise  # by the server's own code
    except RayError as error:
        raise ServerLost(str(error)) from error


@serve.ingress()
class GatewayDeployment:
    """The application of ``make_app`` over the deployments of the models."""

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
    base = str(Path(config.model.path).absolute())
    model = config.model.model_copy(update={"path": base})
    models = {}
    for policy in choose_policies(run, config, args.models):
        deployment = _policy_deployment(policy.name, config.rollout)
        models[policy.name] = deployment.bind(
            run, policy.name, model, config.rollout, args.follow_s
        )
    digests = args.api_key_digests + [key_digest(key) for key in environment_keys()]
    access = Access(tuple(digests), tuple(args.allowed_hosts), tuple(args.allowed_origins))
    return _gateway_deployment().bind(models, access, model.stop)


def _policy_deployment(name: str, rollout: RolloutConfig) -> Any:
    deployment: Any = serve.deployment(PolicyDeployment)
    return deployment.options(
        name=name,
        max_ongoing_requests=rollout.max_sequences,
        max_queued_requests=_WAITING_REQUESTS,
        logging_config=_QUIET,
        ray_actor_options={
            "num_cpus": rollout.cpus_per_worker,
            "num_gpus": rollout.gpus_per_worker,
            "runtime_env": {"env_vars": server_environment(rollout)},
        },
    )


def _gateway_deployment() -> Any:
    deployment: Any = serve.deployment(GatewayDeployment)
    return deployment.options(
        name=GATEWAY,
        max_ongoing_requests=_GATEWAY_REQUESTS,
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": 0},
    )
