"""Prompts and ends of responses under the kinds of templates that published models have."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner

from bi_ray.cli import main as cli
from bi_ray.config.run import ModelConfig, RunConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.injection.demonstrations import demonstrate
from bi_ray.policy.chat import (
    ChatError,
    check_chat,
    check_tokens,
    encode_prompt,
    end_of_turn,
    end_tokens,
)
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.tasks.registry import build_task

PAD, UNK, END, SYSTEM, USER, ASSISTANT = range(6)
SYSTEM_TEXT, QUESTION = "aab", "What is the value of aac?"
HEAD = "{% for m in messages %}"
TAIL = "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
TURN = "<|{{ m.role }}|>{{ m.content }}"
GEMMA = (
    "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    + HEAD + TURN + "<|end|>\n" + TAIL
)  # fmt: skip
MISTRAL = (
    HEAD
    + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    + TURN + "<|end|>" + TAIL
)  # fmt: skip
DROPS_SYSTEM = HEAD + "{% if m.role != 'system' %}" + TURN + "<|end|>{% endif %}" + TAIL
FOLDS_SYSTEM = (
    "{% set first = '' %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    + HEAD + "<|{{ m.role }}|>{{ first if loop.first }}{{ m.content }}<|end|>" + TAIL
)  # fmt: skip


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    """A copy of the tiny model with another template, tokenizer and configs."""

    def make(template=None, tokenizer=(), generation=None, config=()) -> Path:
        directory = Path(shutil.copytree(tiny_model(tied=True), tmp_path / "model"))
        if template is not None:
            (directory / "chat_template.jinja").write_text(template)
        for file, changes in (("tokenizer_config", tokenizer), ("config", config)):
            path = directory / f"{file}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | dict(changes)))
        if generation is not None:
            (directory / "generation_config.json").write_text(json.dumps(generation))
        return directory

    return make


@pytest.mark.parametrize(
    ("template", "folded"),
    [(None, False), (GEMMA, True), (MISTRAL, True), (DROPS_SYSTEM, True), (FOLDS_SYSTEM, True)],
)
def test_the_system_prompt_reaches_the_model_whatever_the_template(checkpoint, template, folded):
    tokenizer = load_tokenizer(checkpoint(template))
    text = tokenizer.decode(encode_prompt(tokenizer, SYSTEM_TEXT, QUESTION))
    roles = [
        token
        for token in encode_prompt(tokenizer, SYSTEM_TEXT, QUESTION)
        if token in (SYSTEM, USER, ASSISTANT)
    ]
    assert roles == ([USER, ASSISTANT] if folded else [SYSTEM, USER, ASSISTANT])
    assert text.count(SYSTEM_TEXT) == text.count(QUESTION) == 1
    assert text.index(SYSTEM_TEXT) < text.index(QUESTION)
    if folded:
        alone = tokenizer.decode(encode_prompt(tokenizer, "", QUESTION)).replace("\n", "")
        assert alone.startswith(f"<|user|>{QUESTION}")


def test_a_template_that_takes_no_question_is_one_line(checkpoint):
    tokenizer = load_tokenizer(checkpoint("{{ raise_exception('never') }}"))
    with pytest.raises(ChatError, match=r"model: its chat template refuses a question: never$"):
        encode_prompt(tokenizer, "", QUESTION)


UNK_IS_EOS = {"eos_token": "<|unk|>"}
NO_EOS = {"eos_token": None}
NO_EOS_IN_CONFIG = {"eos_token_id": None}


@pytest.mark.parametrize(
    ("options", "turn", "ends"),
    [
        ({}, END, (END,)),
        # Gemma 3, Llama 3, Phi 3.5: two ends, and the turn's is not the tokenizer's
        ({"tokenizer": UNK_IS_EOS, "generation": {"eos_token_id": [UNK, END]}}, END, (UNK, END)),
        (
            {"template": GEMMA, "tokenizer": UNK_IS_EOS, "generation": {"eos_token_id": UNK}},
            END,
            (UNK, END),
        ),
        # only the template knows
        (
            {"tokenizer": UNK_IS_EOS, "config": {"eos_token_id": UNK}, "generation": {}},
            END,
            (UNK, END),
        ),
        ({"tokenizer": NO_EOS, "config": NO_EOS_IN_CONFIG, "generation": {}}, END, (END,)),
        # the template writes no special token: the tokenizer's
        ({"template": HEAD + TURN + "\n" + TAIL}, END, (END,)),
        # Phi 3.5 writes the text's end behind the turn's
        ({"template": HEAD + TURN + "<|end|>\n" + "{% endfor %}<|unk|>"}, END, (END,)),
        (
            {"template": HEAD + TURN + " <|unk|>" + TAIL, "config": {"eos_token_id": [END]}},
            UNK,
            (UNK, END),
        ),
        # padding by the end token
        ({"tokenizer": {"pad_token": "<|end|>"}}, END, (END,)),
    ],
)
def test_which_tokens_end_a_response(checkpoint, options, turn, ends):
    tokenizer = load_tokenizer(checkpoint(**options))
    assert (end_of_turn(tokenizer), end_tokens(tokenizer)) == (turn, ends)


def test_a_checkpoint_without_any_end_is_one_line(checkpoint):
    options = {"tokenizer": NO_EOS, "config": NO_EOS_IN_CONFIG, "generation": {}}
    tokenizer = load_tokenizer(checkpoint(HEAD + TURN + TAIL, **options))
    with pytest.raises(ChatError, match="no token ends a response"):
        check_chat(tokenizer, ModelConfig())


def test_tokens_without_an_embedding_are_refused_before_anything_runs(checkpoint):
    tokenizer = load_tokenizer(checkpoint(config={"vocab_size": 4}))
    with pytest.raises(ChatError, match=r"beyond the model's vocabulary \(vocab_size 4 in"):
        check_chat(tokenizer, ModelConfig())
    with pytest.raises(ChatError, match=r"token 4 \('<\|user\|>'\) is beyond"):
        check_tokens(tokenizer, [1, 4, 2])
    check_tokens(tokenizer, [1, 3])


def test_only_what_a_prompt_uses_counts(checkpoint):
    """A tokenizer may well have tokens without an embedding in a text model (Gemma 3 1B)."""
    directory = checkpoint()
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    tokenizer.add_tokens(["<|image|>"], special_tokens=True)
    tokenizer.save_pretrained(directory)
    tokenizer = load_tokenizer(directory)
    check_chat(tokenizer, ModelConfig())
    with pytest.raises(ChatError, match=r"\('<\|image\|>'\) is beyond"):
        encode_prompt(tokenizer, "", "<|image|>")


def test_a_context_that_is_too_short_is_said_with_both_limits(checkpoint):
    tokenizer = load_tokenizer(checkpoint(config={"max_position_embeddings": 100}))
    with pytest.raises(
        ChatError,
        match=r"takes 100 tokens .* \(60\) and .* \(41\) add up to 101; lower one of them",
    ):
        check_chat(tokenizer, ModelConfig(max_prompt_tokens=60, max_response_tokens=41))
    check_chat(tokenizer, ModelConfig(max_prompt_tokens=60, max_response_tokens=40))


def test_a_run_is_refused_before_it_has_a_directory(checkpoint, tmp_path):
    quickstart = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    config = yaml.safe_load(quickstart.read_text())
    config.setdefault("model", {})["path"] = str(checkpoint(config={"vocab_size": 4}))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(
        cli.app, ["run", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run")]
    )
    assert isinstance(result.exception, ChatError)
    assert "beyond the model's vocabulary" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_a_demonstration_ends_as_the_template_ends_it(checkpoint):
    tokenizer = load_tokenizer(
        checkpoint(tokenizer=UNK_IS_EOS, generation={"eos_token_id": [UNK, END]})
    )
    sets = {name: DifficultyConfig(depth=(1, 2)) for name in ("sft", "rl", "test_id", "test_ood")}
    run = RunConfig(name="ends", task=PromptBenchConfig(sets=sets), arms=["vanilla"])
    task = build_task(run.task, 0)
    problem = task.problem("sft", 0)
    prompt = tuple(encode_prompt(tokenizer, task.system_prompt, problem.question))
    row = ProblemRow(problem.id, problem.question, problem.answer, problem.graph.to_json(), prompt)
    [demonstration] = demonstrate(task, run.arms["vanilla"], run, [row], tokenizer)
    assert demonstration["response_tokens"][-1] == END
    assert UNK not in demonstration["response_tokens"]
