import itertools
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from bi_ray.config.pretraining import PretrainConfig
from bi_ray.files.errors import RunError
from bi_ray.pretraining import pretrain as module
from bi_ray.pretraining.drills import Drill
from bi_ray.pretraining.pretrain import IGNORED, batches, rate_factor
from bi_ray.tasks.promptbench.task import PromptBenchTask


def config_of(**options) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "name": "test",
            "task": {
                "max_abs_value": 100,
                "name_pool": 48,
                "sets": {"pretrain": {"depth": [2, 3], "redundant_nodes": [0, 2]}},
            },
            "hidden_size": 32,
            "layers": 1,
            "heads": 1,
            "mlp_size": 64,
            "max_positions": 400,
            "steps": 12,
            "batch_tokens": 1500,
            "microbatch_tokens": 600,
            "processes": 1,
            "checkpoint_every_steps": 5,
            "warmup_steps": 2,
            "decay_steps": 4,
            **options,
        }
    )


TOKENIZER = module.make_tokenizer(config_of())


def test_a_step_holds_the_same_wherever_one_resumes():
    config = config_of()
    whole = list(batches(config, TOKENIZER, 0))
    assert len(whole) == 12
    for start in (1, 4, 5, 11):
        part = list(batches(config, TOKENIZER, start))
        assert len(part) == 12 - start
        for one, other in zip(whole[start:], part, strict=True):
            assert len(one) == len(other)
            for (tokens, labels), (same_tokens, same_labels) in zip(one, other, strict=True):
                assert torch.equal(tokens, same_tokens)
                assert torch.equal(labels, same_labels)
    assert not torch.equal(whole[0][0][0], whole[4][0][0])


def test_labels_cover_what_the_assistant_learns_with_its_end_and_nothing_else():
    """Turn by turn, from the tokens alone: of a half-finished trace that is asked about only the
    answers count.
    """
    config = config_of(steps=40)
    assistant, user = TOKENIZER.convert_tokens_to_ids(["<|assistant|>", "<|user|>"])
    conversations = 0
    for tokens, labels in itertools.chain(*batches(config, TOKENIZER, 20)):
        assert tokens.shape == labels.shape
        assert tokens.numel() <= config.microbatch_tokens or len(tokens) == 1
        for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
            turns = row.count(assistant)
            conversations += turns > 1
            expected, learning, turn = [], False, 0
            for token in row:
                expected.append(token if learning else IGNORED)
                if token == assistant:
                    turn += 1
                    learning = turns == 1 or turn > 1
                elif token == TOKENIZER.eos_token_id:
                    learning = False
            assert wanted == expected
            assert row.count(user) == turns
    assert conversations > 5


def test_a_drill_is_encoded_as_the_chat_template_writes_it():
    drill = Drill("What is aaa?", "<think>\n", (("Is aaa known?", "no"), ("Is aab known?", "yes")))
    tokens, learned = module.encode_drill(TOKENIZER, "system", drill)
    messages = [{"role": "system", "content": "system"}, {"role": "user", "content": drill.prompt}]
    messages.append({"role": "assistant", "content": drill.response})
    for question, answer in drill.follow_ups:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert tokens == TOKENIZER.encode(text, add_special_tokens=False)
    said = TOKENIZER.decode([t for t, flag in zip(tokens, learned, strict=True) if flag])
    assert said == "<think>\n<|end|>no<|end|>yes<|end|>"


def test_bfloat16_products_change_gradients_by_a_rounding_error_only():
    config = config_of(hidden_size=64, heads=2, layers=2)
    tokens, labels = next(batches(config, TOKENIZER, 0))[0]
    gradients = []
    for bfloat16 in (False, True):
        model = module.new_model(config, TOKENIZER)
        model.config._attn_implementation = module._FLOAT32_ATTENTION
        module.summed_loss(model, tokens, labels, bfloat16).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    plain = module.new_model(config, TOKENIZER)
    (plain(input_ids=tokens, labels=labels).loss * (labels != IGNORED).sum()).backward()
    truth = torch.cat([p.grad.flatten() for p in plain.parameters()])
    assert torch.nn.functional.cosine_similarity(gradients[0], truth, dim=0) > 0.999999
    assert (gradients[0] - truth).norm() < 1e-4 * truth.norm()
    assert (gradients[1] - truth).norm() < 3e-2 * truth.norm()
    assert not torch.equal(gradients[0], gradients[1])


def test_the_rate_warms_up_stays_and_falls_to_zero():
    config = config_of(steps=1000, warmup_steps=20, decay_steps=300)
    rates = [rate_factor(step, config) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[19:701] == [1.0] * 682
    assert rates[850] == pytest.approx(0.5)
    assert rates[1000] == 0
    assert all(a >= b for a, b in itertools.pairwise(rates[700:]))


class Killed(Exception):
    """Stands for a kill at a chosen step."""


@pytest.fixture
def train(monkeypatch):
    """``train(config, directory, until=None)`` in this process, killed at the start of step
    ``until`` (from 0).
    """
    threads = torch.get_num_threads()

    def run(config: PretrainConfig, directory, until=None) -> list[dict]:
        def until_killed(config, tokenizer, start):
            for step, micro in enumerate(batches(config, tokenizer, start), start):
                if step == until:
                    raise Killed
                yield micro

        monkeypatch.setattr(module, "batches", until_killed)
        directory.mkdir(exist_ok=True)
        try:
            module._train(0, config, directory, directory / f"rendezvous.{until}")
        except Killed:
            torch.distributed.destroy_process_group()
        metrics = directory / "metrics.jsonl"
        return (
            [json.loads(line) for line in metrics.read_text().splitlines()]
            if metrics.exists()
            else []
        )

    yield run
    torch.set_num_threads(threads)


def final_state(directory):
    checkpoint = directory / "checkpoints/step_12"
    return load_file(checkpoint / "model" / "model.safetensors") | load_file(
        checkpoint / "optimizers.safetensors"
    )


@pytest.mark.parametrize("until", [3, 7, 11])
def test_resumed_in_the_middle_it_equals_an_undisturbed_run(tmp_path, train, until):
    """Checkpoints are at 5 and 10, inside a pool of examples: what was done since the last one is
    done again.
    """
    config = config_of()
    rows = train(config, tmp_path / "whole")
    assert [row["step"] for row in rows] == list(range(1, 13))
    train(config, tmp_path / "stopped", until=until)
    resumed = train(config, tmp_path / "stopped")
    assert [(row["step"], row["loss"]) for row in resumed] == [
        (row["step"], row["loss"]) for row in rows
    ]
    whole, other = final_state(tmp_path / "whole"), final_state(tmp_path / "stopped")
    assert whole.keys() == other.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, other[name]), name
    assert len(train(config, tmp_path / "whole")) == 12  # finished: nothing is done again


def test_it_resumes_from_the_older_checkpoint_where_the_newest_is_damaged(tmp_path, train):
    config, damaged = config_of(), "optimizers.safetensors"
    train(config, tmp_path, until=11)  # checkpoints at 5 and 10
    whole = (tmp_path / "checkpoints/step_10" / damaged).read_bytes()
    (tmp_path / "checkpoints/step_10" / damaged).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    rows = train(config, tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert (tmp_path / "checkpoints/step_10" / damaged).read_bytes() == whole
    newest, shown = (
        final_state(tmp_path),
        load_file(tmp_path / "checkpoint/model/model.safetensors"),
    )
    assert all(torch.equal(newest[name], shown[name]) for name in shown)


def test_it_learns(tmp_path, train):
    rows = train(config_of(steps=20, checkpoint_every_steps=20), tmp_path / "run")
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


@pytest.mark.slow  # two processes have to import torch
def test_two_processes_do_what_one_does(tmp_path, train):
    one = train(config_of(), tmp_path / "one")
    two = list(module.pretrain(config_of(processes=2), tmp_path / "two"))
    assert [row["step"] for row in two] == list(range(1, 13))
    for row, other in zip(one, two, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-3)


def test_scores_are_what_greedy_decoding_gets_right(tmp_path, train):
    """Against transformers' own greedy generation, drill by drill; a drill that the model was
    fitted to counts.
    """
    config = config_of(steps=1, checkpoint_every_steps=1, scored_drills=3)
    train(config, tmp_path)
    path = tmp_path / "checkpoint" / "model"
    model = LlamaForCausalLM.from_pretrained(path)
    drill = Drill("aaa", "3")
    tokens, learned = module.encode_drill(
        TOKENIZER, PromptBenchTask(config.task, config.seed).system_prompt, drill
    )
    prompt = learned.index(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        model(
            input_ids=torch.tensor([tokens]),
            labels=torch.tensor([[-100] * prompt + tokens[prompt:]]),
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    made = model.generate(
        torch.tensor([tokens[:prompt]]), max_new_tokens=len(tokens) - prompt, do_sample=False
    )
    assert made[0].tolist() == tokens
    kinds = {"copying": lambda *_: drill, "recall": lambda *_: Drill("aaa", "4")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Practice, "kinds", lambda self: kinds)
        patch.setattr(module, "MAKERS", kinds)
        scores = module.score_drills(path, config)
    assert scores["copying"] == (1.0, 1.0)
    assert scores["recall"].exact == 0
    assert scores["recall"].tokens < 1


def test_the_first_heads_look_back():
    """Head h of a fresh model attends to the token h + 1 places before, wherever it stands."""
    config = config_of(hidden_size=128, heads=4)
    model = module.new_model(config, TOKENIZER)
    model.set_attn_implementation("eager")
    tokens = torch.randint(len(TOKENIZER), (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # [rows, heads, queries, keys]
        attention = model(input_ids=tokens, output_attentions=True).attentions[0]
    for head, distance in enumerate((1, 2, 3)):
        places = torch.arange(distance, 60)
        weights = attention[:, head, places, places - distance]
        assert (attention[:, head, places].argmax(-1) == places - distance).float().mean() > 0.95
        assert weights.mean() > 0.3


def test_a_model_without_a_step_to_resume_from_is_not_replaced(tmp_path):
    model = tmp_path / "checkpoint" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    with pytest.raises(RunError, match="no step to resume from; choose a new directory"):
        next(module.pretrain(config_of(), tmp_path))
    assert (model / "config.json").read_text() == "{}"


def test_the_rows_that_a_checkpoint_knows_outlast_a_power_cut(tmp_path, train, monkeypatch):
    metrics, on_disk, fsync = tmp_path / "metrics.jsonl", [], os.fsync

    def record(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(metrics):
            on_disk.append(
                (len(metrics.read_text().splitlines()), (tmp_path / "checkpoints/step_5").exists())
            )
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    train(config_of(), tmp_path, until=6)  # a checkpoint at 5
    assert on_disk == [(5, False)]
