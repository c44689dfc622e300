"""What a real engine samples: where responses end, and from which distribution."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from actors.rollout.handle import RequestError
from actors.rollout.worker import RayWorker
from actors.weights.shared_memory import RunWeightFiles
from bi_ray.batches.rollout import Group, GroupRequest, SamplingConfig
from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import ModelConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.config.training import RLConfig
from bi_ray.learning.learner import Totals
from bi_ray.learning.rl import microbatch_loss
from bi_ray.policy.chat import encode_prompt
from bi_ray.policy.checkpoint import load_model, load_tokenizer
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.packing import Row, pack
from bi_ray.policy.published import weights_directory
from bi_ray.tasks.promptbench.task import PromptBenchTask

RUN = f"test-sampling-{os.getpid()}"
TINY_BASE = Path(__file__).parents[2] / "models" / "tiny-base"
UNK, END = 1, 2
TOLERANCE = 1e-4
PROBLEMS = 12


@pytest.fixture
def two_ends(tmp_path) -> Path:
    """The tiny base as in Gemma 3: turns end with a token other than the tokenizer's EOS."""
    directory = Path(shutil.copytree(TINY_BASE, tmp_path / "two-ends"))
    for name, changes in (
        ("tokenizer_config", {"eos_token": "<|unk|>"}),
        ("generation_config", {"eos_token_id": [UNK, END]}),
    ):
        file = directory / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return directory


def prompts(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    sets = {name: DifficultyConfig(depth=(2, 3)) for name in ("sft", "rl", "test_id", "test_ood")}
    task = PromptBenchTask(PromptBenchConfig(sets=sets), 0)
    questions = [task.problem("test_id", index).question for index in range(PROBLEMS)]
    return [tuple(encode_prompt(tokenizer, task.system_prompt, question)) for question in questions]


@pytest.mark.timeout(600)  # an engine start
def test_ends_and_probabilities_of_what_an_engine_samples(ray_local, two_ends):
    tokenizer = load_tokenizer(two_ends)
    model = ModelConfig(path=str(two_ends), max_prompt_tokens=512, max_response_tokens=200)
    rollout = RolloutConfig(kv_cache_mib=64, max_sequences=64)

    async def sample(worker: RayWorker, sampling: SamplingConfig) -> list[Group]:
        requests = [
            GroupRequest(str(i), prompt, sampling, 100 * i)
            for i, prompt in enumerate(prompts(tokenizer))
        ]
        return await asyncio.gather(*map(worker.generate, requests))

    async def scenario() -> None:
        worker = RayWorker(model, rollout, weights_directory(RUN) / "copies")
        try:
            await worker.start()
            check_texts(
                tokenizer, await sample(worker, SamplingConfig(temperature=0, max_tokens=200))
            )
            # A stop string does not change where a turn ends.
            stopped = await sample(
                worker, SamplingConfig(temperature=0, max_tokens=200, stop=("no such text",))
            )
            check_texts(tokenizer, stopped)
            for temperature, top_p in ((1.0, 0.6), (0.7, 0.9), (1.3, 0.5), (1.0, 1.0)):
                drawn = SamplingConfig(8, temperature, top_p, max_tokens=60)
                check_first_step(
                    two_ends,
                    RLConfig(temperature=temperature, top_p=top_p),
                    await sample(worker, drawn),
                )
            with pytest.raises(RequestError, match="vocabulary"):
                await worker.generate(GroupRequest("beyond", (5, 192, 5), SamplingConfig(), 0))
            assert (await worker.ping()).running == 0
        finally:
            await worker.close()

    asyncio.run(scenario())
    asyncio.run(RunWeightFiles(RUN, "here", 10).clear())


def check_texts(tokenizer: PreTrainedTokenizerBase, groups: list[Group]) -> None:
    ended = 0
    for sample in (sample for group in groups for sample in group.samples):
        said = sample.tokens
        if not sample.truncated:
            assert sample.tokens[-1] == END
            said = sample.tokens[:-1]
            ended += 1
        assert END not in said
        assert sample.text == tokenizer.decode(said) != ""
    assert ended >= PROBLEMS // 2


def check_first_step(policy: Path, config: RLConfig, groups: list[Group]) -> None:
    """The learner has the same weights: every ratio is 1, and nothing is clipped."""
    rows = [
        Row(
            (*group.prompt_tokens, *sample.tokens),
            len(group.prompt_tokens),
            1.0,
            1.0,
            tuple(sample.logprobs),
        )
        for group in groups
        for sample in group.samples
    ]
    totals = Totals()
    loss = microbatch_loss(TokenLogprobs(load_model(policy)), None, config)
    tokens = 0
    for batch in pack(rows, 4096, packing="padded"):
        loss(batch, totals)
        tokens += len(batch.targets)
    sums = totals._sums | totals._maxima
    print(
        f"temperature {config.temperature}, top_p {config.top_p}: "
        f"mismatch at most {sums['mismatch_max']:.1e}"
    )
    assert tokens > 1000
    assert sums["mismatch_max"] <= TOLERANCE
    assert sums["clip_low_share"] == sums["clip_high_share"] == sums["importance_cut_share"] == 0
    assert sums["importance_sum"] == tokens
