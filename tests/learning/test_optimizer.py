import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from bi_ray.config.training import OptimizerConfig
from bi_ray.learning.optimizer import learning_rate, make_optimizer, set_learning_rate


def test_rate_warms_up_stays_and_falls():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, decay_share=0.4)
    rates = [learning_rate(config, step, 10) for step in range(1, 11)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4])


def test_the_fall_may_be_half_a_cosine():
    """As transformers' schedule, which counts from 0 and reaches 0 where ours would one step after
    the end.
    """
    config = OptimizerConfig(learning_rate=2.0, decay_share=1.0, decay="cosine")
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, 11)
    expected = []
    for _ in range(10):
        optimizer.step()
        schedule.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert [learning_rate(config, step, 10) for step in range(1, 11)] == pytest.approx(expected)
    late = OptimizerConfig(learning_rate=2.0, warmup_steps=2, decay_share=0.4, decay="cosine")
    assert [learning_rate(late, step, 10) for step in (1, 2, 6)] == [1.0, 2.0, 2.0]
    assert learning_rate(late, 8, 10) == pytest.approx(1 - math.cos(math.pi * 0.6))


def test_rate_is_constant_by_default():
    assert [learning_rate(OptimizerConfig(learning_rate=0.1), step, 5) for step in range(1, 6)] == [
        0.1
    ] * 5


def test_kinds():
    parameter = torch.nn.Parameter(torch.ones(2))
    adamw = make_optimizer([parameter], OptimizerConfig(betas=(0.8, 0.9), weight_decay=0.1))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.9)
    assert adamw.defaults["weight_decay"] == 0.1
    sgd = make_optimizer([parameter], OptimizerConfig(kind="sgd", learning_rate=1.0))
    set_learning_rate(sgd, 0.25)
    parameter.grad = torch.tensor([1.0, 2.0])
    sgd.step()
    assert parameter.tolist() == [0.75, 0.5]
