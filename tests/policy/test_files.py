"""Checkpoints as people have them: what is wrong is one line that names the file, before anything
heavy starts.
"""

import ast
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
)

from bi_ray.policy.checkpoint import (
    WEIGHTS,
    check_directory,
    check_model,
    load_model,
    load_tokenizer,
    save_policy,
    tied_weights,
)
from bi_ray.policy.files import INDEX, CheckpointError

ROOT = Path(__file__).parents[2]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 538090408\n"


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    shutil.copytree(tiny_model(True), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def shards(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    model = AutoModelForCausalLM.from_pretrained(tiny_model(True), trust_remote_code=False)
    model.save_pretrained(folder, max_shard_size="100KB")
    load_tokenizer(tiny_model(True)).save_pretrained(folder)
    return folder


@pytest.fixture
def sharded(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "model")
    return tmp_path / "model"


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refused(folder, check=check_model):
    with pytest.raises(CheckpointError) as caught:
        check(folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(folder) in message
    assert "trust_remote_code" not in message
    return message


def test_whole_checkpoints_pass(checkpoint, shards):
    check_model(checkpoint)
    check_model(shards)


@pytest.mark.parametrize(
    "name", [WEIGHTS, "tokenizer.json", "tokenizer_config.json", "config.json"]
)
def test_a_git_lfs_pointer_is_named(checkpoint, name):
    (checkpoint / name).write_text(POINTER)
    assert refused(checkpoint).startswith(
        f"{checkpoint / name} is a git-lfs pointer, not the file itself: run `git lfs"
    )


@pytest.mark.parametrize(
    "name", [WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("size", [0, 1, 7, 100, 0.5, -3])
def test_a_cut_file_is_named(checkpoint, name, size):
    whole = (checkpoint / name).stat().st_size
    os.truncate(checkpoint / name, int(whole * size) if isinstance(size, float) else size % whole)
    assert str(checkpoint / name) in refused(checkpoint)


@pytest.mark.parametrize(
    "content", [b"\0" * 2000, b"PK\3\4 a pickle", b"<html>404</html>", b"\xff" * 100]
)
def test_weights_that_are_something_else_are_named(checkpoint, content):
    (checkpoint / WEIGHTS).write_bytes(content)
    assert f"{checkpoint / WEIGHTS} is cut short or damaged" in refused(checkpoint)


def test_a_folder_in_the_place_of_weights_is_named(checkpoint):
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / WEIGHTS).mkdir()
    assert str(checkpoint / WEIGHTS) in refused(checkpoint)


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert refused(sharded).startswith(f"{shard} is missing")


def test_a_missing_index_is_named(sharded):
    (sharded / INDEX).unlink()
    assert refused(sharded).startswith(f"{sharded / INDEX} is missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda index: index["weight_map"].update(more="model-7.safetensors"),
            "model-7.safetensors is missing",
        ),
        (
            lambda index: index["weight_map"].update(more=index["weight_map"]["model.norm.weight"]),
            "not contain more",
        ),
        (lambda index: index.pop("weight_map"), f"{INDEX} cannot be read"),
    ],
)
def test_an_index_of_other_files_is_named(sharded, change, words):
    edit(sharded / INDEX, change)
    assert words in refused(sharded)


def test_weights_that_are_not_in_the_files_are_not_drawn_at_random(checkpoint):
    state = load_file(checkpoint / WEIGHTS)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, checkpoint / WEIGHTS, metadata={"format": "pt"})
    assert "lacks 1 weights of the model, such as model.layers.1.mlp.up_proj.weight" in refused(
        checkpoint, load_model
    )


def test_weights_of_another_shape_are_one_line(checkpoint):
    edit(checkpoint / "config.json", lambda config: config.update(intermediate_size=256))
    refused(checkpoint, load_model)


def own_head(checkpoint, change):
    state = load_file(checkpoint / WEIGHTS)
    state["lm_head.weight"] = change(state["model.embed_tokens.weight"].clone())
    save_file(state, checkpoint / WEIGHTS, metadata={"format": "pt"})
    return state["lm_head.weight"]


@pytest.mark.parametrize("says", ["true", "nothing"])
@pytest.mark.parametrize("check", [check_model, load_model])
def test_a_head_of_its_own_is_never_replaced_by_the_embedding(checkpoint, says, check):
    own_head(checkpoint, lambda embedding: embedding + 1)
    if says == "nothing":  # the default of these is true
        edit(
            checkpoint / "config.json",
            lambda config: config.update(model_type="gemma", head_dim=32),
        )
        edit(checkpoint / "config.json", lambda config: config.pop("tie_word_embeddings"))
    message = refused(checkpoint, check)
    assert (
        "lm_head.weight that differs from model.embed_tokens.weight: "
        "set tie_word_embeddings to false" in message
    )


def test_a_head_of_its_own_is_kept_where_the_config_says_so(checkpoint, tmp_path):
    head = own_head(checkpoint, lambda embedding: embedding + 1)
    edit(checkpoint / "config.json", lambda config: config.update(tie_word_embeddings=False))
    check_model(checkpoint)
    save_policy(load_model(checkpoint).state_dict(), checkpoint, tmp_path / "policy")
    assert torch.equal(load_file(tmp_path / "policy" / WEIGHTS)["lm_head.weight"], head)
    assert torch.equal(load_model(tmp_path / "policy").state_dict()["lm_head.weight"], head)


def test_a_head_that_equals_the_embedding_is_tied(checkpoint):
    own_head(checkpoint, lambda embedding: embedding)
    check_model(checkpoint)
    load_model(checkpoint)


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES = {
    "gpt2": (GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64), "transformer.wte.weight"),
    "opt": (
        OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
        "model.decoder.embed_tokens.weight",
    ),
    "falcon": (FalconConfig(**SIZES), "transformer.word_embeddings.weight"),
    "bloom": (
        BloomConfig(hidden_size=32, n_layer=1, n_head=2),
        "transformer.word_embeddings.weight",
    ),
    "llama": (
        LlamaConfig(**SIZES, intermediate_size=64, tie_word_embeddings=True),
        "model.embed_tokens.weight",
    ),
    "neox": (GPTNeoXConfig(**SIZES, intermediate_size=64), None),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_is_saved_under_whatever_name_it_has(tiny_model, tmp_path, family):
    config, embedding = FAMILIES[family]
    tokenizer = load_tokenizer(tiny_model(True))
    config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    check_model(tmp_path / "base")
    assert tied_weights(tmp_path / "base") == ({"lm_head.weight": embedding} if embedding else {})
    with torch.no_grad():
        model.get_input_embeddings().weight += 1
    save_policy(model.state_dict(), tmp_path / "base", tmp_path / "policy")
    assert "lm_head.weight" in load_file(tmp_path / "policy" / WEIGHTS)
    loaded = load_model(tmp_path / "policy", attention="eager").eval()
    tokens = torch.arange(5, 12)[None]
    assert torch.allclose(loaded(tokens).logits, model.eval()(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("known_type", [False, True])
def test_code_of_a_checkpoint_is_never_run(checkpoint, monkeypatch, known_type):
    (checkpoint / "evil.py").write_text("import os\nos.environ['EVIL_CODE_RAN'] = '1'\n")
    monkeypatch.delenv("EVIL_CODE_RAN", raising=False)
    automatic = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change = {"auto_map": automatic} | ({} if known_type else {"model_type": "evil"})
    edit(checkpoint / "config.json", lambda config: config.update(change))
    edit(
        checkpoint / "tokenizer_config.json",
        lambda config: config.update(auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}),
    )
    if known_type:
        check_model(checkpoint)  # by transformers' own code
    else:
        message = refused(checkpoint)
        assert (
            "needs Python code that comes with the checkpoint, and such code is never executed"
            in message
        )
        refused(checkpoint, load_model)
    assert "EVIL_CODE_RAN" not in os.environ


def test_every_call_that_could_run_code_of_a_checkpoint_says_no():
    """transformers asks at the terminal, and waits for an answer, where the call leaves it open."""
    open_calls = []
    for folder in ("bi_ray", "actors", "serve", "tests", "benchmarks", "tools"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and _is_auto_class(node.func) and not _says_no(node):
                    open_calls.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert open_calls == []


def _is_auto_class(function):
    if not isinstance(function, ast.Attribute) or function.attr not in (
        "from_pretrained",
        "from_config",
    ):
        return False
    return isinstance(function.value, ast.Name) and function.value.id.startswith("Auto")


def _says_no(call):
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    said = options.get("trust_remote_code")
    return isinstance(said, ast.Constant) and said.value is False


def test_the_error_of_a_missing_directory_stays(tmp_path):
    assert "no model at" in refused(tmp_path / "absent", check_directory)
