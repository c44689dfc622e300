"""The command, Ray Serve, two vLLM engines and the plain openai client, against transformers."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass

import httpx
import openai
import psutil
import pytest
from safetensors.torch import load_file, save_file

from bi_ray.policy.checkpoint import load_tokenizer
from tests.serving import (
    KEY,
    conversations,
    greedy,
    put_policy,
    record_checkpoint,
    serving,
    write_run,
)

pytestmark = pytest.mark.timeout(500)
TOKENS = 24
ENVIRONMENT_KEY = "a key of the environment"
STEPS = 4  # of RL, published while requests run
THREADS = 6


@pytest.fixture(scope="module")
def policies(tiny_model):
    """The SFT policy, and those of later RL steps."""
    return [tiny_model(True, seed) for seed in range(STEPS + 1)]


@pytest.fixture(scope="module")
def config(tmp_path_factory, policies):
    run = tmp_path_factory.mktemp("served") / "run"
    return run, write_run(run, policies[0])


@pytest.fixture(scope="module")
def served(config, policies):
    run, _ = config
    for stage, policy in (("sft/bridge", policies[0]), ("work/rl/bridge/step_1", policies[1])):
        put_policy(run / stage, policy)
        with_sampling_defaults(run / stage / "policy")
    record_checkpoint(run / "work/rl/bridge/step_1", 1)
    keys = run.with_name("keys")
    keys.write_text(f"# of the tests\n\n{KEY}\n")
    keys.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BI_RAY_API_KEYS", ENVIRONMENT_KEY)
        with serving(run, "--api-key", "another", "--api-key-file", str(keys)) as served:
            yield served


def with_sampling_defaults(policy):
    """Sampling defaults like those of published checkpoints, which training does not use."""
    file = policy / "generation_config.json"
    config = json.loads(file.read_text()) | {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.5,
    }
    config |= {"repetition_penalty": 1.5, "max_new_tokens": 7}
    file.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def chats(config):
    return conversations(config[1], 4)


@pytest.fixture(scope="module")
def truth(policies, chats):
    """``truth[step][chat]``: what transformers generates with the policy of that step."""
    made = [[greedy(policy, chat, TOKENS) for chat in chats] for policy in policies]
    for chat in range(len(chats)):
        # Otherwise a wrong version would go unnoticed.
        assert len({row[chat].text for row in made}) == len(policies)
    return made


def test_it_prints_its_address_and_a_curl_command_that_works(served):
    output = served.output.read_text()
    assert "Serving bridge-sft, bridge-rl at http://127.0.0.1" in output
    command = next(line for line in output.splitlines() if line.startswith("curl "))
    assert KEY not in output
    answer = subprocess.run(
        ["bash", "-c", f"{command} -s"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"YOUR_KEY": KEY},
    )
    assert '"policy_version": "rl-1-' in answer.stdout, answer.stderr


def test_every_model_is_listed_with_its_version(served):
    cards = served.client().models.list().data
    assert [card.id for card in cards] == ["bridge-sft", "bridge-rl"]
    assert cards[0].policy_version.startswith("sft-")
    assert cards[1].policy_version.startswith("rl-1-")


def test_greedy_chat_is_what_transformers_generates(served, chats, truth):
    for model, step in (("bridge-sft", 0), ("bridge-rl", 1)):
        for chat, true in zip(chats, truth[step], strict=True):
            answer = served.client().chat.completions.create(
                model=model, messages=chat, temperature=0, max_tokens=TOKENS, logprobs=True,
                extra_body={"return_token_ids": True},
            )  # fmt: skip
            assert answer.prompt_token_ids == true.prompt_tokens
            assert answer.choices[0].message.content == true.text
            assert answer.policy_version == served.version(model)
            got = [token.logprob for token in answer.choices[0].logprobs.content]
            assert got == pytest.approx(true.logprobs, abs=1e-4)


def test_a_chat_without_a_limit_is_as_long_as_a_response_of_training(
    served, policies, config, chats
):
    true = greedy(policies[0], chats[0], config[1].model.max_response_tokens)
    answer = served.client().chat.completions.create(
        model="bridge-sft", messages=chats[0], temperature=0
    )
    assert answer.choices[0].message.content == true.text
    assert answer.usage.completion_tokens == len(true.tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_an_end_token_is_left_out_beside_stop_strings_that_stay(served, policies, chats, stream):
    """With `model.stop`; the bias favors the end token, so that the response is nothing else."""
    tokenizer = load_tokenizer(policies[0])
    wish = {
        "logit_bias": {str(tokenizer.eos_token_id): 100},
        "stop": ["never said"],
        "temperature": 0,
    }
    answer = served.client().chat.completions.create(
        model="bridge-sft",
        messages=chats[0],
        stream=stream,
        extra_body={"include_stop_str_in_output": True},
        **wish,
    )
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        assert "".join(choice.delta.content or "" for choice in choices) == ""
        assert choices[-1].finish_reason == "stop"
    else:
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "stop")
        assert answer.usage.completion_tokens == 1


def test_sampling_defaults_of_a_checkpoint_are_not_applied(served, truth):
    """At temperature 1 with all tokens, log-probabilities are the model's own."""
    true = truth[0][0]
    answer = served.client().completions.create(
        model="bridge-sft",
        prompt=true.prompt_tokens + true.tokens[:-1],
        max_tokens=1,
        logprobs=0,
        seed=3,
        echo=True,
    )
    got = answer.choices[0].logprobs.token_logprobs[len(true.prompt_tokens) : -1]
    assert got == pytest.approx(true.logprobs[:-1], abs=1e-4)


def test_the_proxy_hides_its_routes_and_reads_no_headers_of_its_own(served):
    root = served.url.removesuffix("/v1")
    assert httpx.get(f"{root}/-/routes", timeout=30).status_code == 404
    assert httpx.get(f"{root}/-/healthz", timeout=30).text == "success"
    steering = {
        "serve_multiplexed_model_id": b"\xff",
        "x-request-id": b"\xff",
        "x-session-id": b"\xff",
    }
    assert httpx.get(f"{root}/health", headers=steering, timeout=30).json() == {"status": "ok"}


def test_the_keys_appear_nowhere_in_the_processes(served):
    assert served.client(ENVIRONMENT_KEY).models.list().data
    for process in psutil.Process(served.process.pid).children(recursive=True):
        try:
            shown = " ".join([*process.cmdline(), *process.environ().values()])
            assert KEY not in shown
            assert ENVIRONMENT_KEY not in shown
        except psutil.Error:
            continue


def test_completions_of_token_ids_equal_chats(served, truth):
    true = truth[0][0]
    answer = served.client().completions.create(
        model="bridge-sft", prompt=true.prompt_tokens, temperature=0, max_tokens=TOKENS, logprobs=1
    )
    assert answer.choices[0].text == true.text
    assert answer.choices[0].logprobs.token_logprobs == pytest.approx(true.logprobs, abs=1e-4)


def test_a_stream_is_the_same_in_pieces(served, chats, truth):
    raw = served.client().chat.completions.with_raw_response.create(
        model="bridge-sft", messages=chats[0], temperature=0, max_tokens=TOKENS, stream=True
    )
    chunks = list(raw.parse())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == truth[0][0].text
    assert len(chunks) > 3
    assert {chunk.policy_version for chunk in chunks} == {raw.headers["x-policy-version"]}


def test_stop_seed_and_n(served, chats, truth):
    create = served.client().completions.create
    true = truth[0][0]
    word = true.text[8:14]
    stopped = create(
        model="bridge-sft", prompt=true.prompt_tokens, temperature=0, max_tokens=TOKENS, stop=[word]
    )
    assert stopped.choices[0].text == true.text[: true.text.index(word)]
    assert stopped.choices[0].finish_reason == "stop"

    def sample(seed):
        answer = create(
            model="bridge-sft", prompt=true.prompt_tokens, max_tokens=TOKENS, n=3, seed=seed
        )
        return [choice.text for choice in answer.choices]

    assert sample(5) == sample(5)
    assert len(set(sample(5))) == 3
    assert sample(5) != sample(6)


def test_bad_requests_are_client_errors_that_name_what_to_change(served, chats):
    def message(kind, key=KEY, **request):
        defaults = {"model": "bridge-sft", "messages": chats[0]}
        with pytest.raises(kind) as error:
            served.client(key).chat.completions.create(**(defaults | request))
        return error.value.body["message"]

    assert "Authorization: Bearer KEY" in message(openai.AuthenticationError, key="wrong")
    assert "served are bridge-sft, bridge-rl" in message(openai.NotFoundError, model="gpt-9")
    assert "224" in message(
        openai.BadRequestError, messages=[{"role": "user", "content": "abc " * 400}]
    )
    assert "max_model_len=224" in message(openai.BadRequestError, max_tokens=1000)
    assert "n must be at most 16" in message(openai.BadRequestError, n=17)
    assert "temperature" in message(openai.BadRequestError, temperature=-1)
    assert "messages" in message(openai.BadRequestError, messages="hello")


@dataclass
class Load:
    """All sorts of requests, one at a time per thread, until stopped."""

    served: object
    chats: list
    answers: list
    failures: list
    stop: threading.Event

    def work(self, number):
        client = self.served.client()
        while not self.stop.is_set():
            try:
                ask = (self.whole, self.streamed, self.sampled)[number % 3]
                self.answers.append(ask(client, number % len(self.chats)))
            except Exception as error:
                self.failures.append(error)
                return
            number += THREADS + 1

    def request(self, chat, **more):
        return {"model": "bridge-rl", "messages": self.chats[chat], "max_tokens": TOKENS} | more

    def whole(self, client, chat):
        raw = client.chat.completions.with_raw_response.create(**self.request(chat, temperature=0))
        answer = raw.parse()
        return (
            {raw.headers["x-policy-version"], answer.policy_version},
            chat,
            answer.choices[0].message.content,
        )

    def streamed(self, client, chat):
        raw = client.chat.completions.with_raw_response.create(
            **self.request(chat, temperature=0, stream=True)
        )
        versions, text = {raw.headers["x-policy-version"]}, ""
        for chunk in raw.parse():
            versions.add(chunk.policy_version)
            text += chunk.choices[0].delta.content or ""
        return versions, chat, text

    def sampled(self, client, chat):
        """More sequences than the engine decodes at a time, so that some begin late."""
        answer = client.chat.completions.create(**self.request(chat, n=12))
        assert len(answer.choices) == 12
        return {answer.policy_version}, chat, None


def test_under_load_the_weights_change_and_no_answer_is_lost_or_mixed(
    served, chats, policies, truth
):
    steps = {served.version("bridge-rl"): 1}
    load = Load(served, chats, [], [], threading.Event())
    threads = [threading.Thread(target=load.work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for step in range(2, STEPS + 1):
        time.sleep(1)
        put_policy(served.run / f"work/rl/bridge/step_{step}", policies[step])
        steps[served.wait_for("bridge-rl", f"rl-{step}-")] = step
    time.sleep(1)
    load.stop.set()
    for thread in threads:
        thread.join(60)
    assert not load.failures
    assert {len(versions) for versions, _, _ in load.answers} == {1}
    assert {next(iter(versions)) for versions, _, _ in load.answers} == set(steps)
    for (version,), chat, text in load.answers:
        if text is not None:
            assert text == truth[steps[version]][chat].text
    print(f"{len(load.answers)} answers, {STEPS - 1} updates")


def test_a_checkpoint_that_lacks_a_part_is_left_alone_and_the_next_one_taken(served, policies):
    before = served.version("bridge-rl")
    put_policy(
        served.run / "work/rl/bridge/step_5", torn(policies[0], served.run.with_name("torn"))
    )
    time.sleep(5)  # two looks
    assert served.version("bridge-rl") == before
    put_policy(served.run / "work/rl/bridge/step_6", policies[1])
    served.wait_for("bridge-rl", "rl-6-")


def torn(policy, folder):
    put_policy(folder, policy)
    weights = load_file(folder / "policy/model.safetensors")
    save_file(
        {name: weights[name] for name in list(weights)[:-1]}, folder / "policy/model.safetensors"
    )
    return folder / "policy"
