"""What `bi-ray serve` does: starts Ray and Ray Serve, waits for the engines, says how to ask, and
stops in order.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    LoggingConfig,
    ReplicaState,
)
from rich.console import Console

from actors.cluster import connect
from bi_ray.config import RayConfig, RunConfig
from bi_ray.data.problems import ProblemRow, read_problems
from bi_ray.policy.chat import conversation
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.runs.display import Display
from bi_ray.runs.process import job_id
from bi_ray.tasks.registry import build_task
from serve.access import (
    API_KEYS_VARIABLE,
    check_allowed,
    environment_keys,
    file_keys,
    is_loopback,
    key_digest,
    option_keys,
)
from serve.app import APPLICATION, ServeArgs, build
from serve.policies import MAKE_AGAIN, ServeError, choose_policies, read_run, require_whole
from serve.proxy import CALLBACK, KEEP_ALIVE_S

_FOLLOW_S = 2.0
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line says.

    Attributes:
        run: run directory.
        models: names of the models, None for all.
        host: address to listen at.
        port: port there.
        api_keys: clients must send one of these, of the file's or of the environment's.
        api_key_file: has a key a line; None for no file.
        allowed_hosts: names in the Host header that are accepted besides loopback ones.
        allowed_origins: web pages that may send requests from a browser.
        follow: take newer versions while the run continues.
        address: of the Ray cluster to serve on; None: see ``cluster_of``.
    """

    run: Path
    models: list[str] | None
    host: str
    port: int
    api_keys: list[str]
    api_key_file: Path | None
    allowed_hosts: list[str]
    allowed_origins: list[str]
    follow: bool
    address: str | None = None


def serve_run(options: ServeOptions, console: Console) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ServeError, ConfigError, CheckpointError, ClusterError: it cannot be served as asked;
        nothing is left running.
    """
    run = options.run.absolute()
    config = read_run(run)
    policies = choose_policies(run, config, options.models)
    names = [policy.name for policy in policies]
    keys = _keys(options)
    check_allowed(options.allowed_hosts, options.allowed_origins)
    _require_free(options.host, options.port)
    problem = first_problem(run, config)
    for policy in policies:
        require_whole(policy)  # the servers do too, but here it shows before anything starts
    cluster, note = cluster_of(config.ray, options.address)
    args = ServeArgs(
        run=str(run),
        models=names,
        follow_s=_FOLLOW_S if options.follow else 0,
        api_key_digests=[key_digest(key) for key in keys],
        allowed_hosts=options.allowed_hosts,
        allowed_origins=options.allowed_origins,
    )
    os.environ.pop(API_KEYS_VARIABLE, None)  # the processes of Ray and vLLM need no keys
    display = Display(console)
    if note is not None:
        display.note(note)
    config = config.model_copy(update={"ray": cluster})
    # Signals after Ray, which sets handlers of its own when it starts.
    with _ray_serve(config, len(names), options), _stop_signal() as stop:
        if _start(args, config, display, stop):
            greeting = _greeting(options, config, problem, names, bool(keys))
            console.print(greeting, highlight=False, markup=False, soft_wrap=True)
            stop.wait()
            display.note("stopping")


def _keys(options: ServeOptions) -> list[str]:
    """All API keys: of the command line, of the file and of the environment.

    Raises:
        ServeError: one of them is unusable, or there are none where other machines can ask.
    """
    keys = option_keys(options.api_keys)
    if options.api_key_file:
        keys += file_keys(options.api_key_file)
    keys += environment_keys()
    if not keys and not is_loopback(options.host):
        raise ServeError(
            f"--host {options.host}: other machines can reach it, so it needs an API key: add --api-key-file FILE or "
            f"--api-key KEY, or set {API_KEYS_VARIABLE}"
        )
    return keys


def first_problem(run: Path, config: RunConfig) -> ProblemRow:
    """A problem of the run's first test set.

    Raises:
        ServeError: the set is damaged or absent.
    """
    folder = run / "data" / config.evaluation.sets[0]
    try:
        return read_problems(folder)[0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ServeError(f"{folder} cannot be read: {reason}; {MAKE_AGAIN}") from error


def cluster_of(config: RayConfig, address: str | None) -> tuple[RayConfig, str | None]:
    """Which Ray serves a run whose configuration is ``config``, and a line for the user where it is
    not the run's.

    Ray's calls carry code and the token. A run may come from somebody else, so the cluster that it
    names is joined only if the user names it too, by ``address`` or in ``RAY_ADDRESS``.
    """
    if address is not None:
        return config.model_copy(update={"address": address}), None
    if config.address is None or config.address == os.environ.get("RAY_ADDRESS"):
        return config, None
    advice = (
        "a Ray job serves on its own"
        if job_id()
        else f"give --address {config.address} to serve there"
    )
    note = f"the run's cluster {config.address} is not joined: {advice}"
    return config.model_copy(update={"address": None}), note


def _require_free(host: str, port: int) -> None:
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], address[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        raise ServeError(
            f"cannot listen at {host} port {port} ({error.strerror}): choose another one, as in --port {port + 1}"
        ) from error


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal does what it always does."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ray_serve(config: RunConfig, models: int, options: ServeOptions) -> Iterator[None]:
    """A Ray with Ray Serve in it; at the end the application goes, and Ray too if it was started
    here.
    """
    # Logical CPUs: a model more than there are cores makes answers slower; it must not wait for a
    # place for ever.
    needed = math.ceil(models * config.rollout.cpus_per_worker)
    cpus = max(config.ray.local_cpus or os.cpu_count() or 1, needed)
    os.environ.update(CALLBACK)  # Ray's processes inherit it
    source = "--address" if options.address else "RAY_ADDRESS"
    connect(config.ray.model_copy(update={"local_cpus": cpus}), source)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options={
                "host": options.host,
                "port": options.port,
                "request_timeout_s": config.rollout.generate_timeout_s,
                "keep_alive_timeout_s": KEEP_ALIVE_S,
            },
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
        yield
    finally:
        serve.delete(APPLICATION)  # answers under way end; Serve itself ends with Ray
        ray.shutdown()


def _start(args: ServeArgs, config: RunConfig, display: Display, stop: threading.Event) -> bool:
    """Deploy and wait until every engine is up; False if a signal came first.

    Raises:
        ServeError: an engine did not start.
    """
    names = args.models or []
    deadline = time.monotonic() + config.rollout.start_timeout_s
    with display.task(f"starting {', '.join(names)}", len(names)):
        target = serve.RunTarget(build(args), name=APPLICATION, route_prefix="/")
        serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        while not stop.wait(_POLL_S):
            application = serve.status().applications[APPLICATION]
            running = [
                application.deployments[name].replica_states
                for name in names
                if name in application.deployments
            ]
            display.set(sum(states.get(ReplicaState.RUNNING, 0) for states in running), len(names))
            if application.status == ApplicationStatus.RUNNING:
                return True
            if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                raise ServeError(f"an engine did not start: {reason_of(application)}")
            if time.monotonic() > deadline:
                raise ServeError(
                    f"the engines were not up within {config.rollout.start_timeout_s:g} s (rollout.start_timeout_s of "
                    f"the run): serve fewer with --models, or free memory and cores. {reason_of(application)}"
                )
    return False


def reason_of(application: ApplicationStatusOverview) -> str:
    """The last line of what Serve says about the deployments that have trouble."""
    told = (
        "\n".join(overview.message for overview in application.deployments.values())
        or application.message
    )
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _greeting(
    options: ServeOptions, config: RunConfig, problem: ProblemRow, names: list[str], key: bool
) -> str:
    """Where it is, what there is, and a command to try it with."""
    task = build_task(config.task, config.seeds.data)
    name = next((name for name in reversed(names) if name.endswith("-rl")), names[-1])
    url = base_url(options.host, options.port)
    asked = conversation(load_tokenizer(config.model.path), task.system_prompt, problem.question)
    lines = [
        f"Serving {', '.join(names)} at {url}",
        "Ctrl-C stops it. Ask a problem of the run's test set, whose answer is "
        f"{problem.answer} (a tiny model is often wrong):",
        "",
        curl(url, name, asked, key),
    ]
    return "\n".join(lines)


def base_url(host: str, port: int) -> str:
    """What an OpenAI client takes as its base URL."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"


def curl(url: str, model: str, conversation: list[dict[str, str]], key: bool) -> str:
    """A command to paste into a shell. A key is named, not shown: screens are copied."""
    body = json.dumps({"model": model, "messages": conversation, "temperature": 0})
    headers = ["-H 'Content-Type: application/json'"] + (
        ['-H "Authorization: Bearer $YOUR_KEY"'] if key else []
    )
    return f"curl {url}/chat/completions {' '.join(headers)} -d {shlex.quote(body)}"
