"""What `bi-ray serve` does: start Ray Serve, wait for the engines, print an example, stop."""

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
from bi_ray.config.run import RayConfig, RunConfig
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
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # of addresses that mean every interface
_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Arguments and options of the command.

    Attributes:
        run: run directory.
        models: names of the models, None for all.
        host: address to listen on.
        port: port there.
        api_keys: clients must send one of these, or one of the file's or the environment's.
        api_key_file: file with one key per line; None for no file.
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
        require_whole(policy)  # the servers check it too, but here before anything starts
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
    # Our signal handlers come after Ray, which sets its own when it starts.
    with _ray_serve(config, len(names), options), _stop_signal() as stop:
        if _start(args, config, display, stop):
            greeting = _greeting(options, config, problem, names, bool(keys))
            console.print(greeting, highlight=False, markup=False, soft_wrap=True)
            stop.wait()
            display.note("stopping")


def _keys(options: ServeOptions) -> list[str]:
    """All API keys: from the command line, the file and the environment.

    Raises:
        ServeError: one of them is unusable, or there are none although other machines can connect.
    """
    keys = option_keys(options.api_keys)
    if options.api_key_file:
        keys += file_keys(options.api_key_file)
    keys += environment_keys()
    if not keys and not is_loopback(options.host):
        raise ServeError(
            f"--host {options.host}: other machines can reach it, so it needs an API key: add "
            f"--api-key-file FILE or --api-key KEY, or set {API_KEYS_VARIABLE}"
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
    """Which Ray cluster to serve on, and a line for the user if it is not the run's.

    Ray's calls carry code and the token. A run may come from somebody else, so the cluster that it
    names is joined only if the user names it too, by ``address`` or in ``RAY_ADDRESS``.

    Args:
        config: Ray options of the run.
        address: what the user named; None: nothing.
    """
    if address is not None:
        return config.model_copy(update={"address": address}), None
    if config.address is None or config.address == os.environ.get("RAY_ADDRESS"):
        return config, None
    if job_id():
        advice = "a Ray job serves on its own"
    else:
        advice = f"give --address {config.address} to serve there"
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
            f"cannot listen on {host} port {port} ({error.strerror}): choose another port, "
            f"as in --port {port + 1}"
        ) from error


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal has its usual effect."""
    stop = threading.Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextmanager
def _ray_serve(config: RunConfig, models: int, options: ServeOptions) -> Iterator[None]:
    """Ray with Ray Serve; at the end the application is deleted, and a Ray started here ends."""
    # These are logical CPUs: with more models than cores, answers are slower, but no model waits
    # for a place forever.
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
        serve.delete(APPLICATION)  # answers in progress finish; Serve itself ends with Ray
        ray.shutdown()


def _start(args: ServeArgs, config: RunConfig, display: Display, stop: threading.Event) -> bool:
    """Deploy and wait until every engine is up; False if a signal came first.

    Raises:
        ServeError: an engine did not start.
    """
    names = args.models or []
    limit_s = config.rollout.start_timeout_s
    deadline = time.monotonic() + limit_s
    with display.task(f"starting {', '.join(names)}", len(names)):
        target = serve.RunTarget(build(args), name=APPLICATION, route_prefix="/")
        serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        while not stop.wait(_POLL_S):
            application = serve.status().applications[APPLICATION]
            display.set(_running(application, names), len(names))
            if application.status == ApplicationStatus.RUNNING:
                return True
            if application.status in _FAILED:
                raise ServeError(f"an engine did not start: {reason_of(application)}")
            if time.monotonic() > deadline:
                raise ServeError(
                    f"the engines were not up within {limit_s:g} s (rollout.start_timeout_s of the "
                    "run): serve fewer with --models, or free memory and cores. "
                    f"{reason_of(application)}"
                )
    return False


def _running(application: ApplicationStatusOverview, names: list[str]) -> int:
    """How many engines of these models are up."""
    running = 0
    for name in names:
        if name in application.deployments:
            states = application.deployments[name].replica_states
            running += states.get(ReplicaState.RUNNING, 0)
    return running


def reason_of(application: ApplicationStatusOverview) -> str:
    """The last line of Serve's messages about deployments that have trouble."""
    messages = [overview.message for overview in application.deployments.values()]
    text = "\n".join(messages).strip() or application.message.strip()
    return text.rpartition("\n")[2].strip()


def _greeting(
    options: ServeOptions, config: RunConfig, problem: ProblemRow, names: list[str], key: bool
) -> str:
    """Where the server is, what it serves, and a command to try it with."""
    task = build_task(config.task, config.seeds.data)
    trained = [name for name in names if name.endswith("-rl")]
    name = trained[-1] if trained else names[-1]
    url = base_url(options.host, options.port)
    turns = conversation(load_tokenizer(config.model.path), task.system_prompt, problem.question)
    lines = [
        f"Serving {', '.join(names)} at {url}",
        "Ctrl-C stops it. Ask a problem of the run's test set, whose answer is "
        f"{problem.answer} (a tiny model is often wrong):",
        "",
        curl(url, name, turns, key),
    ]
    return "\n".join(lines)


def base_url(host: str, port: int) -> str:
    """What an OpenAI client takes as its base URL."""
    reachable = _LOOPBACK.get(host, host)
    if ":" in reachable:
        reachable = f"[{reachable}]"
    return f"http://{reachable}:{port}/v1"


def curl(url: str, model: str, conversation: list[dict[str, str]], key: bool) -> str:
    """A command to paste into a shell. A key is named, not shown: screens are copied."""
    body = json.dumps({"model": model, "messages": conversation, "temperature": 0})
    words = ["curl", f"{url}/chat/completions", "-H 'Content-Type: application/json'"]
    if key:
        words.append('-H "Authorization: Bearer $YOUR_KEY"')
    words += ["-d", shlex.quote(body)]
    return " ".join(words)
