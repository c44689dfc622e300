"""Exports taken by the tools that they are for: TRL's trainers as they are, and verl's documented
columns.
"""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import concatenate_datasets, load_dataset

from bi_ray.api import task_of
from bi_ray.config.recipes import BRIDGE
from bi_ray.data.export import layout_of
from bi_ray.data.sets import write_injected, write_set
from bi_ray.injection.user_rows import inject_rows
from bi_ray.policy.chat import encode_prompt, messages
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import Rejects
from bi_ray.verification.grading import grade_rows
from tests.data.test_sets import QUICKSTART, ROOT

MODEL = str(ROOT / "models" / "tiny-base")
TASK = task_of(QUICKSTART)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "problems"
    write_set(QUICKSTART, "rl", 40, out, "jsonl")
    return out


@pytest.fixture(scope="module")
def export(problems, tmp_path_factory):
    def make(name):
        out, rejects = tmp_path_factory.mktemp("export") / name, Rejects(strict=True)
        rows = inject_rows(rows_of(problems, rejects), TASK, BRIDGE, 0, rejects)
        about = {"recipe": BRIDGE, "seed": 0}
        write_injected(rows, rejects, problems, out, TASK.system_prompt, None, about, name)
        return out

    return make


def loaded(directory, tmp_path):
    return load_dataset(str(directory), split="train", cache_dir=str(tmp_path / "cache"))


def test_messages_are_the_conversations_that_our_own_sft_learns_from(export, tmp_path):
    rows = [row for _, row in rows_of(export("jsonl"), Rejects())]
    conversations = loaded(export("messages"), tmp_path)["messages"]
    assert conversations == [
        [
            *messages(TASK.system_prompt, row["question"]),
            {"role": "assistant", "content": row["response"]},
        ]
        for row in rows
    ]


@pytest.mark.parametrize("name", ["jsonl", "parquet", "messages", "completion", "arrow"])
def test_what_was_exported_can_be_graded(export, name):
    rejects = Rejects(strict=True)
    verdicts = [row.verdict for row in grade_rows(rows_of(export(name), rejects), TASK, rejects)]
    assert all(verdict.right and verdict.trace_valid for verdict in verdicts)


def test_a_card_as_the_hub_reads_it(export):
    directory = export("parquet")
    _, header, text = (directory / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["configs"][0]["data_files"] == [
        {"split": "train", "path": "data-*.parquet"}
    ]
    manifest = json.loads((directory / "manifest.json").read_text())
    assert f"| rows | {manifest['problems']} |" in text
    assert f"{manifest['best_constant_accuracy']:.1%}" in text
    assert f"| subgoal per row | {manifest['behaviors_per_row']['subgoal']:.2f} |" in text
    made_from = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert made_from == manifest["made_from"]
    assert made_from["recipe"] == BRIDGE.model_dump(mode="json")
    assert manifest["code_version"] in text


# "Prepare Data for Post-Training" of verl's documentation: these five columns, Parquet, prompt as a
# chat
def test_the_columns_are_those_that_verl_documents(problems, tmp_path):
    write_set(QUICKSTART, "rl", 40, tmp_path / "verl", "verl")
    [file] = (tmp_path / "verl").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert list(rows[0]) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    originals = [row for _, row in rows_of(problems, Rejects())]
    for index, (row, original) in enumerate(zip(rows, originals, strict=True)):
        assert row["data_source"] == "bi_ray/promptbench"
        assert row["prompt"] == messages(TASK.system_prompt, original["question"])
        assert row["reward_model"] == {"style": "rule", "ground_truth": original["answer"]}
        assert (row["extra_info"]["split"], row["extra_info"]["index"]) == ("train", index)
        assert row["extra_info"]["graph"] == original["graph"]


# What verl's RLHFDataset does with a file (verl 0.7, verl/utils/dataset/rl_dataset.py), by the
# libraries that it uses: `datasets` reads the Parquet, prompts that are too long go by the
# tokenizer's own template, and a batch is a numpy array of objects per column. Its reward loop
# takes data_source, the ground truth and extra_info from there.
def test_verl_s_reader_takes_the_files_as_they_are(problems, tmp_path):
    write_set(QUICKSTART, "rl", 40, tmp_path / "verl", "verl")
    files = [str(file) for file in (tmp_path / "verl").glob("*.parquet")]
    read = [
        load_dataset("parquet", data_files=file, cache_dir=str(tmp_path / "cache"))["train"]
        for file in files
    ]
    data, tokenizer = concatenate_datasets(read), load_tokenizer(MODEL)

    def prompt_tokens(row):
        return tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]

    originals = {row["id"]: row for _, row in rows_of(problems, Rejects())}
    lengths = [len(prompt_tokens(row)) for row in data]
    limit = sorted(lengths)[20]
    kept = data.filter(lambda row: len(prompt_tokens(row)) <= limit)
    assert len(kept) == sum(length <= limit for length in lengths)
    rows = [kept[index] for index in range(len(kept))]
    batch = {
        name: np.fromiter((row[name] for row in rows), dtype=object, count=len(rows))
        for name in rows[0]
    }
    for index, extra in enumerate(batch["extra_info"]):
        original = originals[extra["id"]]
        tokens = prompt_tokens({"prompt": batch["prompt"][index]})
        assert tokens == encode_prompt(tokenizer, TASK.system_prompt, original["question"])
        assert batch["reward_model"][index]["ground_truth"] == original["answer"]
        assert batch["data_source"][index] == "bi_ray/promptbench"
        assert isinstance(extra.get("index", 0), int)
        assert extra.get("tools_kwargs", {}) == {}  # nothing that it would take for a tool's


def test_a_completion_needs_a_response():
    with pytest.raises(ValueError, match="completion needs responses"):
        layout_of("completion", "", "x", "train", demonstrations=False)


QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["messages", "completion"])
def test_trl_trains_on_an_export_as_it_is(export, tmp_path, name):
    from trl import SFTConfig, SFTTrainer

    options = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "max_length": 1024,
    }
    trainer = SFTTrainer(
        model=MODEL,
        args=SFTConfig(output_dir=str(tmp_path / "sft"), learning_rate=1e-3, **options, **QUIET),
        train_dataset=loaded(export(name), tmp_path),
    )
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    assert any((value != before[key]).any() for key, value in trainer.model.named_parameters())
    batch = next(iter(trainer.get_train_dataloader()))
    pairs = zip(batch["input_ids"], batch["labels"], strict=True)
    learned = {trainer.processing_class.decode(ids[labels != -100]) for ids, labels in pairs}
    tokenizer = load_tokenizer(MODEL)
    rows = [row for _, row in rows_of(export("jsonl"), Rejects())]
    prompts = [encode_prompt(tokenizer, TASK.system_prompt, row["question"]) for row in rows]
    before_response = [tokenizer.decode(prompt) if name == "messages" else "" for prompt in prompts]
    assert learned <= {
        start + row["response"] + tokenizer.eos_token
        for start, row in zip(before_response, rows, strict=True)
    }  # completion: no loss on the prompt
    assert len(learned) == 2


@pytest.mark.slow
def test_trl_samples_from_exported_prompts_and_scores_by_their_answers(tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    write_set(QUICKSTART, "rl", 40, tmp_path / "prompts", "messages")
    data, seen = loaded(tmp_path / "prompts", tmp_path), []

    def reward(prompts, completions, answer, **columns):
        seen.extend(zip(prompts, answer, strict=True))
        given = [TASK.parse_answer(made[0]["content"]) for made in completions]
        return [float(one == right) for one, right in zip(given, answer, strict=True)]

    options = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 32}
    trainer = GRPOTrainer(
        model=MODEL,
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(tmp_path / "grpo"), max_steps=1, **options, **QUIET),
        train_dataset=data,
    )
    trainer.train()
    right = {row["prompt"][1]["content"]: row["answer"] for row in data}
    assert len(seen) >= 4
    assert all(right[prompt[1]["content"]] == answer for prompt, answer in seen)
