"""Fixtures of all tests: a local Ray, tiny models for transformers and vLLM, and an S3 server."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Set before Ray is imported: each Ray of a test requires a token, and sends no usage reports.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Clusters of tests also stay on loopback (see actors/local_ray.py).
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# pytest-xdist sets it, and a console keeps the width with which it was made.
os.environ.pop("COLUMNS", None)

LOCAL_CPUS = 4  # logical CPUs that Ray assigns, whatever the machine has
NAME_POOL = 48


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real Rays and engines first: they mostly wait, and other processes fill the gaps."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """A Ray for this test file only, with ``LOCAL_CPUS`` logical CPUs."""
    import ray

    from actors.local_ray import start_local_ray

    start_local_ray(
        LOCAL_CPUS, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_model(tied, seed=0)``: directory of a random 2-layer Llama with our tokenizer."""
    directories: dict[tuple[bool, int], Path] = {}

    def make(tied: bool, seed: int = 0) -> Path:
        if (tied, seed) not in directories:
            directories[tied, seed] = tmp_path_factory.mktemp("tiny")
            _write_tiny_model(directories[tied, seed], tied, seed)
        return directories[tied, seed]

    return make


def _write_tiny_model(directory: Path, tied: bool, seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from bi_ray.pretraining.tokenizer import build_tokenizer
    from bi_ray.tasks.promptbench.wording import node_names, phrases

    tokenizer = build_tokenizer(phrases(), node_names(NAME_POOL))
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            # Large, so that distributions are far from uniform and a wrong weight shows.
            initializer_range=0.15,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A real S3 server on loopback with a bucket ``bucket``; gives the query for its URIs."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1"
        ).create_bucket(Bucket="bucket")
        yield f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()
