"""Connecting to Ray, with the authentication mode said out loud."""

from __future__ import annotations

import logging
import os

import ray

from bi_ray.config import RayConfig


def connect(config: RayConfig) -> None:
    """Join the cluster at ``config.address``, or start a local one for this process alone.

    Ray turns token authentication on by itself once a token was written on a machine; both ends of a call must agree,
    so the mode of a local cluster is set from the configuration.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ["RAY_AUTH_MODE"] = config.auth_mode
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address=address or "local",
        num_cpus=None if address else config.local_cpus,
        include_dashboard=False if not address else None,
        configure_logging=True,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
