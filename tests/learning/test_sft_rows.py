import os

import pytest
import torch
from datasets import Dataset
from torch import distributed

from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, SFTConfig
from bi_ray.learning.sft import SFTJob, load_demonstrations, step_rows, steps_per_epoch, train
from bi_ray.policy.chat import ChatError

CONFIG = SFTConfig(epochs=3, batch_examples=4)


@pytest.fixture
def data(tmp_path):
    def save(**columns):
        Dataset.from_dict(columns).save_to_disk(str(tmp_path / "data"))
        return tmp_path / "data"

    return save


def test_the_answer_is_learned_and_the_prompt_by_option(data):
    path = data(prompt_tokens=[[1, 2], [3]], response_tokens=[[4, 5], [6]])
    assert [(row.tokens, row.first_learned) for row in load_demonstrations(path, False)] == [
        ((1, 2, 4, 5), 2),
        ((3, 6), 1),
    ]
    assert [row.first_learned for row in load_demonstrations(path, True)] == [1, 1]


def test_every_epoch_shows_everything_once_in_an_order_of_its_own(data):
    count = 10
    path = data(
        prompt_tokens=[[i] for i in range(count)],
        response_tokens=[[9] * (1 + i % 3) for i in range(count)],
    )
    rows = load_demonstrations(path, False)
    assert steps_per_epoch(count, CONFIG) == 3
    orders = []
    for epoch in range(CONFIG.epochs):
        steps = [step_rows(rows, CONFIG, 5, epoch * 3 + i) for i in (1, 2, 3)]
        assert [len(step) for step in steps] == [4, 4, 2]
        for step in steps:
            assert sum(row.weight * row.learned for row in step) == pytest.approx(1)
        orders.append([row.tokens[0] for step in steps for row in step])
        assert sorted(orders[-1]) == list(range(count))
    assert orders[0] != orders[1] != orders[2]
    assert [row.tokens[0] for row in step_rows(rows, CONFIG, 6, 1)] != orders[0][:4]


def test_data_that_cannot_be_learned_is_refused(data):
    with pytest.raises(ValueError, match="SFT needs"):
        load_demonstrations(data(text=["a"]), False)
    with pytest.raises(ValueError, match="row 1 has no answer"):
        load_demonstrations(data(prompt_tokens=[[1], [2]], response_tokens=[[3], []]), False)


def test_a_token_without_an_embedding_is_refused_before_the_model_is_loaded(
    data, tiny_model, tmp_path
):
    path = data(prompt_tokens=[[1, 2]], response_tokens=[[4, 10**6]])
    job = SFTJob(
        tiny_model(tied=True), path, tmp_path, CONFIG, ModelConfig(), LearnerConfig(), seed=0
    )
    with pytest.raises(ChatError, match=r"token 1000000 .* beyond the model's vocabulary"):
        train(job, torch.device("cpu"))


def test_the_rows_that_a_checkpoint_knows_outlast_a_power_cut(
    data, tiny_model, tmp_path, monkeypatch
):
    metrics, on_disk, fsync = tmp_path / "out/metrics.jsonl", [], os.fsync

    def record(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(metrics):
            on_disk.append(
                (
                    len(metrics.read_text().splitlines()),
                    (tmp_path / "out/checkpoints/step_2").exists(),
                )
            )
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    path = data(prompt_tokens=[[1, 2]], response_tokens=[[4, 5]])
    config = SFTConfig(epochs=3, batch_examples=1, checkpoint_every_steps=2)
    metrics.parent.mkdir()
    job = SFTJob(
        tiny_model(tied=True), path, metrics.parent, config, ModelConfig(), LearnerConfig(), seed=0
    )
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        train(job, torch.device("cpu"))
    finally:
        distributed.destroy_process_group()
    assert on_disk == [(2, False)]
