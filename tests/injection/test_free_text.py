"""Free text through the command: a real HTTP server plays the language model, everything else is as
it is.
"""

import json

import yaml
from typer.testing import CliRunner

from bi_ray.cli import main as cli
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.graph import Graph
from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import Rejects
from bi_ray.tasks.freetext import FreeTextTask
from tests.reasoning.openai_server import Endpoint, row, serving


def inject(folder, out, *more):
    arguments = ["inject", folder / "mine.jsonl", "--out", out]
    arguments += ["--extract-config", folder / "model.yaml", "--extract-cache", folder / "cache"]
    return command(*arguments, "--behavior", "reflection:1.0", *more)


def command(*arguments):
    result = CliRunner().invoke(
        cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_rows_of_free_text_are_read_proven_and_injected_into(tmp_path):
    rows = [row(a, 5) | {"id": f"pears {a}"} for a in range(10, 16)] + [
        {"question": "No worked answer?", "answer": "1"}
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with serving(Endpoint({12: ["wrong"] * 9})) as endpoint:
        options = {"endpoint": endpoint.url, "model": "scripted", "api_key_env": "", "retries": 0}
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(options))
        said = inject(tmp_path, tmp_path / "out")
        asked = endpoint.asked.copy()
        inject(tmp_path, tmp_path / "again")
        assert endpoint.asked == asked  # all of it was in the cache
    assert "5 demonstrations with" in said
    assert "2 rows were left out" in said
    made = [one for _, one in rows_of(tmp_path / "out", Rejects())]
    assert [one["id"] for one in made] == [f"pears {a}" for a in (10, 11, 13, 14, 15)]
    assert made == [one for _, one in rows_of(tmp_path / "again", Rejects())]
    task = FreeTextTask()
    for one in made:
        report = check_trace(
            task.parse_trace(one["response"]), Graph.from_json(one["graph"]), task.notation
        )
        assert report.valid
        assert report.right_reflections == sum(
            span["behavior"] == "reflection" for span in one["spans"]
        )
    assert any(one["spans"] for one in made)
    rejects = [
        json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert [reject["line"] for reject in rejects] == [3, 7]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["made_from"]["extraction"]["model"] == "scripted"
    # it says itself that it is free text: graded, and injected into again, without a configuration
    assert "5 of 5" in command("check", tmp_path / "out", "--strict")
    command("inject", tmp_path / "out", "--recipe", "subgoal", "--out", tmp_path / "more")
    assert {one["chain_of_thought"] for _, one in rows_of(tmp_path / "more", Rejects())} == {
        one["chain_of_thought"] for one in rows[:2] + rows[3:6]
    }
