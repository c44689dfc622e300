"""Shuts Ray down after each module, also a Ray that only a look at the runtime context started."""

import pytest
import ray


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_left():
    yield
    ray.shutdown()
