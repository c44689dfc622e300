"""What every module of real parts leaves behind: no Ray, also none that a look at the runtime
context started.
"""

import pytest
import ray


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_left():
    yield
    ray.shutdown()
