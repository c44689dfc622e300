import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bi_ray.policy import checkpoint
from bi_ray.policy.checkpoint import (
    WEIGHTS,
    check_directory,
    copy_policy,
    digest,
    load_tokenizer,
    save_policy,
    save_weights,
)
from bi_ray.policy.files import CheckpointError


def test_weights_that_do_not_fit_are_one_clear_error_and_leave_nothing(tmp_path, small_files):
    with pytest.raises(
        CheckpointError, match=r"1\.1\.safetensors was not written.*needs 4 MiB.*are free"
    ) as caught:
        save_weights({"w": torch.zeros(1_000_000)}, tmp_path / "1.1.safetensors", tied={})
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_policy_is_what_transformers_loads(tiny_model, tmp_path, tied):
    base = tiny_model(tied)
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    with torch.no_grad():
        model.model.embed_tokens.weight += 1
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_policy(state, base, tmp_path / "policy")
    assert "lm_head.weight" in load_file(tmp_path / "policy" / WEIGHTS)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "policy", trust_remote_code=False
    ).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    assert load_tokenizer(tmp_path / "policy").chat_template == load_tokenizer(base).chat_template
    assert digest(tmp_path / "policy") != digest(base)


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "convert its weights first"),
        ("tokenizer_config.json", "no tokenizer"),
    ],
)
def test_what_a_checkpoint_lacks_is_named(tiny_model, tmp_path, absent, words):
    shutil.copytree(tiny_model(True), tmp_path / "model")
    (tmp_path / "model" / absent).unlink()
    with pytest.raises(CheckpointError, match=words):
        check_directory(tmp_path / "model")


def test_a_model_card_does_not_change_the_digest(tiny_model, tmp_path):
    shutil.copytree(tiny_model(True), tmp_path / "model")
    before = digest(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("A model card.")
    assert digest(tmp_path / "model") == before


@pytest.mark.parametrize("tied", [True, False])
def test_a_copied_policy_is_the_checkpoint_in_one_file(tiny_model, tmp_path, tied):
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model(tied), dtype=torch.bfloat16, trust_remote_code=False
    )
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    load_tokenizer(tiny_model(tied)).save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    copy_policy(tmp_path / "base", tmp_path / "copy")
    assert [file.name for file in (tmp_path / "copy").glob("*.safetensors*")] == [WEIGHTS]
    copy = AutoModelForCausalLM.from_pretrained(
        tmp_path / "copy", dtype="auto", trust_remote_code=False
    ).state_dict()
    assert all(
        tensor.dtype == torch.bfloat16 and torch.equal(tensor, copy[n])
        for n, tensor in model.state_dict().items()
    )
    assert load_tokenizer(tmp_path / "copy").chat_template


FAULTS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "Input/output error",
}


@pytest.mark.parametrize("number", [*FAULTS, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("library", [False, True])
def test_only_a_lack_of_space_is_called_one(tmp_path, monkeypatch, number, library):
    """Errors as the system gives them, and as safetensors' writer words them."""
    error = OSError(number, os.strerror(number))
    if library:
        words = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
        error = SafetensorError(words)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(CheckpointError, match=r"1\.1\.safetensors was not written: ") as caught:
        save_weights({"w": torch.zeros(1_000_000)}, tmp_path / "1.1.safetensors", tied={})
    assert ("needs 4 MiB" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert FAULTS.get(number, "") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_weights_in_a_folder_of_another_user_are_not_called_a_lack_of_space(tmp_path):
    """By the system itself: a process that is another user, and safetensors' own writer."""
    theirs = "/tmp/" + tmp_path.name + str(os.getpid())
    os.mkdir(theirs, 0o755)
    pid = os.fork()
    if pid == 0:
        os.setresuid(12345, 12345, 12345)
        try:
            save_weights({"w": torch.zeros(4)}, Path(theirs) / "1.1.safetensors", tied={})
        except CheckpointError as error:
            os._exit(7 if "permission denied" in str(error) and "MiB" not in str(error) else 1)
        os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.rmdir(theirs)
    assert code == 7
