"""How a batch comes about: which queries are asked, when they are judged, what is counted."""

import asyncio
import random

import pytest

from actors.driver.batch_maker import BatchMaker
from actors.rollout.generation import FailedGroup
from bi_ray.batches.rollout import Group, Sample
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import PromptBenchConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.policy.version import PolicyVersion, VersionSpan
from bi_ray.verification.verdicts import DataFailure, Verdict, VerdictError

PROBLEMS, PROMPTS, SAMPLES = 40, 4, 2
VERSION = PolicyVersion(1, 4)


def config_of(**rl):
    return RunConfig.model_validate(
        {
            "name": "batch",
            "task": PromptBenchConfig(
                sets={name: {} for name in ("sft", "rl", "test_id", "test_ood")}
            ).model_dump(),
            "arms": ["vanilla"],
            "rl": {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES} | rl,
        }
    )


class World:
    """Engines that answer in a random order, and a verifier: one query in four is informative."""

    def __init__(self, seed=0, failing=(), kind="data", **rl):
        self.random = random.Random(seed)
        self.failing = failing
        self.kind = kind
        self.asked: list[list[str]] = []
        self.seeds: dict[str, int] = {}
        self.events: list[str] = []
        queries = [ProblemRow(str(i), "question", "1", "", (1, 2)) for i in range(PROBLEMS)]
        self.maker = BatchMaker(config_of(**rl), "arm", queries, self, self)

    async def generate(self, requests, on_group=None):
        if not requests:
            return []
        self.asked.append([request.key for request in requests])
        self.seeds |= {request.key: request.seed for request in requests}
        answers = {}
        for request in self.random.sample(list(requests), len(requests)):
            await asyncio.sleep(0.001)
            if request.key in self.failing:
                answers[request.key] = FailedGroup(request.key, self.kind, "gone")
                continue
            spans = (VersionSpan(VERSION, 3),)
            text = f"{request.key}/"
            samples = [
                Sample([1, 2, 3], [0.0] * 3, text + str(j), j == 1, VERSION, spans)
                for j in range(SAMPLES)
            ]
            answers[request.key] = Group(request.key, request.prompt_tokens, samples)
            self.events.append("generated")
            on_group(answers[request.key])
        return [answers[request.key] for request in requests]

    async def score(self, items):
        self.events.append("judged")
        verdicts = []
        for item in items:
            query, number = map(int, item.response.split("/"))
            right = query % 4 == 1 and number == 0
            verdicts.append(Verdict(float(right), right, True, item.truncated, None))
        return verdicts

    def make(self, step=5):
        return asyncio.run(asyncio.wait_for(self.maker.make(step), 20))


def test_groups_are_judged_while_others_are_generated_and_stand_in_the_order_of_the_queries():
    world = World()
    made = world.make()
    assert world.events.index("judged") < len(world.events) - 1 - world.events[::-1].index(
        "generated"
    )
    assert [group.key for group, _ in made.judged] == world.asked[0]
    for group, verdicts in made.judged:
        assert [verdict.right for verdict in verdicts] == [int(group.key) % 4 == 1, False]
    assert made.metrics["truncated_rate"] == 0.5
    assert (
        made.metrics["staleness_max"],
        made.metrics["rounds"],
        made.metrics["generated_tokens"],
    ) == (0, 1, 24)


def test_the_batch_does_not_depend_on_who_was_fast():
    batches = [World(seed, dynamic_sampling={"max_rounds": 10}).make().batch for seed in range(3)]
    assert batches[0].samples
    assert batches[0] == batches[1] == batches[2]


def test_a_failed_group_is_named_and_counted_and_no_reward_of_zero(caplog):
    whole, world = World(), World()
    whole.make()
    world.failing = (whole.asked[0][0],)
    made = world.make()
    assert made.metrics["failed_groups"] == 1
    assert f"step 5 continues without query {world.failing[0]}: gone" in caplog.text
    assert made.metrics["groups"] == PROMPTS - 1
    assert made.batch.samples_total == SAMPLES * (PROMPTS - 1)


def test_groups_without_variance_are_replaced_until_there_are_enough():
    world = World(dynamic_sampling={"max_rounds": 10})
    made = world.make()
    assert made.metrics["rounds"] == len(world.asked) > 1
    flat = [key for asked in world.asked for key in asked]
    assert len(set(flat)) == len(flat)  # no query twice
    informative = [key for key in flat if int(key) % 4 == 1]
    assert (
        list(dict.fromkeys(sample.key.split("/")[0] for sample in made.batch.samples))
        == informative[:PROMPTS]
    )
    again = World(seed=7, dynamic_sampling={"max_rounds": 10})
    again.make()
    assert (again.asked, again.seeds) == (world.asked, world.seeds)
    other = World(dynamic_sampling={"max_rounds": 10})
    other.make(step=6)
    assert other.asked != world.asked


def test_the_rounds_of_a_step_end():
    world = World(dynamic_sampling={"max_rounds": 2})
    world.score = unanimous
    made = world.make()
    assert len(world.asked) == 2
    assert made.batch.samples == []


async def unanimous(items):
    return [Verdict(0.0, False, True, False, None) for _ in items]


@pytest.mark.parametrize("incomplete", ["drop", "keep"])
def test_a_data_failure_leaves_its_group_or_takes_it_along(incomplete):
    world = World(incomplete_groups=incomplete)

    async def score(items):
        return [DataFailure("hung"), *(await unanimous(items[1:]))]

    world.score = score
    made = world.make()
    assert made.metrics["data_failures"] == PROMPTS
    assert made.batch.samples_total == 0  # one sample is left of two: no group either way


def test_a_step_in_which_nothing_could_be_judged_is_no_step():
    """A truncated response is wrong without any check, so it does not show that the reward function
    works.
    """
    world = World(dynamic_sampling={"max_rounds": 10})

    async def score(items):
        return [
            DataFailure("the reward function raised ValueError: no", "mine.py:7"),
            *(await World.score(world, items[1:])),
        ]

    world.score = score
    with pytest.raises(VerdictError) as caught:
        world.make()
    assert (
        "none of 4 responses could be judged: the reward function raised ValueError: no (mine.py:7)"
        in str(caught.value)
    )
    assert len(world.asked) == 1  # and no further round


def test_a_step_whose_requests_all_fail_is_no_step():
    whole, world = World(), World()
    whole.make()
    world.failing = tuple(whole.asked[0])
    with pytest.raises(VerdictError, match="none of 4 responses could be judged: gone"):
        world.make()


def test_a_step_that_lost_a_group_to_its_engines_is_no_step():
    whole, world = World(), World(kind="infrastructure")
    whole.make()
    world.failing = (whole.asked[0][0],)
    with pytest.raises(VerdictError, match="1 of 4 groups of responses were lost"):
        world.make()


def test_a_verifier_that_fails_is_logged_at_once_and_ends_the_step(caplog):
    world = World()

    async def score(items):
        raise RuntimeError("the verifier did not start")

    world.score = score
    with pytest.raises(RuntimeError, match="the verifier did not start"):
        world.make()
    records = [record for record in caplog.records if record.message.startswith("judging of query")]
    assert isinstance(records[0].exc_info[1], RuntimeError)
