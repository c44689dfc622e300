"""A run directory as the stages leave it, written in a second without training."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

from datasets import Dataset
from pydantic import TypeAdapter

from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.data.export import Counts
from bi_ray.injection.recipes import Recipe
from bi_ray.readiness.summary import ReadinessSummary
from bi_ray.report.readiness import Analysis, RealizedSummary
from bi_ray.report.summary import Summary
from bi_ray.rows.fields import MANIFEST
from bi_ray.runs.directory import keep_config
from bi_ray.tasks.registry import build_task
from bi_ray.verification.verdicts import Judge, VerificationItem

ROOT = Path(__file__).parents[1]
SETS = ("test_id", "test_ood")
N = 8
# A response that must not run in the report.
NASTY = "</script><img src=x onerror=\"throw Error('a model ran code')\">&amp;"


def config_of(arms=("vanilla", "bridge"), steps=30) -> RunConfig:
    """A smaller quickstart."""
    content = load_config(ROOT / "configs/quickstart.yaml", RunConfig).model_dump(mode="json")
    content["name"] = "small"
    content["arms"] = list(arms)
    content["rl"]["steps"] = steps
    content["evaluation"]["bootstrap_draws"] = 200
    return RunConfig.model_validate(content)


def write_run(
    run: Path,
    config: RunConfig,
    seed=0,
    problems=40,
    sampled=10,
    stages=("eval_sft", "rl", "eval_rl"),
) -> None:
    """Write data sets, metrics and evaluated samples.

    Samples are demonstrations, some of them spoiled, judged by the real verifier.
    """
    task = build_task(config.task, seed)
    rng = random.Random(seed)
    run.mkdir(parents=True)
    keep_config(config, run, replace=True)
    problems_of = {}
    for name in config.task.sets:
        problems_of[name] = [task.problem(name, index) for index in range(problems)]
        _write_set(run / "data" / name, name, problems_of[name])
    for arm in config.arms:
        rates = {"eval_sft": 0.4, "eval_rl": 0.5 if arm == "vanilla" else 0.75}
        if "rl" in stages:
            file = run / "rl" / arm / "metrics.jsonl"
            _write_metrics(file, config.rl.steps, rng, rates["eval_rl"])
        _write_rows(
            run / "sft" / arm / "metrics.jsonl", [{"step": 1, "loss": 0.5, "grad_norm": 1.0}]
        )
        recipe = Recipe(config.arms[arm], seed)
        for stage, rate in rates.items():
            if stage not in stages:
                continue
            for name in SETS:
                rows = _samples(task, recipe, problems_of[name], sampled, rng, rate)
                _write_rows(run / stage / arm / f"{name}.jsonl", rows)


def _write_set(folder: Path, name: str, problems) -> None:
    rows = []
    counts = Counts()
    for problem in problems:
        row = {"id": problem.id, "question": problem.question, "answer": problem.answer}
        rows.append(row | {"graph": problem.graph.to_json(), "prompt_tokens": [1]})
        counts.add_answer(problem.answer)
    Dataset.from_list(rows).save_to_disk(folder)
    lengths = {"prompt_tokens_mean": 1.0, "prompt_tokens_max": 1}
    manifest = {**counts.summary(), **lengths, "set": name, "hashes": []}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _write_rows(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_metrics(file: Path, steps: int, rng: random.Random, last_reward: float) -> None:
    rows = [{"step": 0} | _validated(0.3)]
    for step in range(1, steps + 1):
        reward = 0.3 + (last_reward - 0.3) * step / steps + rng.gauss(0, 0.03)
        row = {
            "step": step,
            "reward": reward,
            "informative_share": 0.5,
            "entropy": 0.2 - 0.003 * step,
            "response_tokens_mean": 50 + step / 2,
            "mismatch_mean": 1e-6 * rng.random(),
        }
        if step % 10 == 0:
            row |= _validated(reward)
        rows.append(row)
    _write_rows(file, rows)


def _validated(reward: float) -> dict[str, float]:
    """Metrics of a validated step."""
    metrics = {}
    for name, share in (("val", 1.0), ("val_ood", 0.5)):
        for figure in ("failures", "greedy", "truncated", "pass_at_2", "pass_at_16"):
            metrics[f"validation/{name}/{figure}"] = round(reward * share, 3)
    return metrics


def _samples(task, recipe, problems, sampled: int, rng: random.Random, rate: float) -> list[dict]:
    """A greedy sample per problem, and ``N`` sampled ones of the first ``sampled`` problems."""
    rows = []
    for index, problem in enumerate(problems):
        rows.append(_sample(task, recipe, problem, "greedy", 0, rng, rate))
        if index < sampled:
            for number in range(N):
                rows.append(_sample(task, recipe, problem, "sampled", number, rng, rate))
    return rows


def _sample(task, recipe, problem, mode, number, rng, rate) -> dict:
    text = recipe.demonstrate(task, problem).response
    if rng.random() > rate:
        text = _spoiled(text, problem, rng.randrange(3))
    item = VerificationItem(
        problem.question, problem.graph.to_json(), problem.answer, text, not text.endswith(">")
    )
    row = {
        "mode": mode,
        "id": problem.id,
        "answer": problem.answer,
        "sample": number,
        "response": text,
    }
    verdict = asdict(Judge(task)(item))
    return row | {"tokens": len(text.split()), "failure": None, **verdict}


def _spoiled(text: str, problem, how: int) -> str:
    """A response with a wrong answer (0), a bad line and no answer (1), or without its end (2)."""
    answer = f"answer is {problem.answer} "
    if how == 0:
        return text.replace(answer, f"answer is {problem.graph.answer + 1} ")
    if how == 1:
        lines = text.split("\n")
        lines[len(lines) // 2] = f"Let's see {NASTY}"
        return "\n".join(lines).replace(answer, "answer is nothing ")
    return text[: len(text) // 2]


def iv(value: float, half: float) -> dict[str, float]:
    """An interval in its JSON form."""
    return {"value": value, "low": value - half, "high": value + half}


def with_measured(summary: Summary, parts: dict) -> Summary:
    """The summary with parts of it as ``measured`` makes them, in JSON's form."""
    return replace(summary, **{name: _KINDS[name].validate_python(parts[name]) for name in parts})


_KINDS = {
    "readiness": TypeAdapter(dict[str, ReadinessSummary]),
    "realized": TypeAdapter(dict[str, RealizedSummary]),
    "during_rl": TypeAdapter(dict[str, list[Analysis]]),
}


def measured(config: RunConfig, seed=0) -> dict:
    """What a readiness measurement adds to a summary: readiness, realized and during_rl."""
    rng = random.Random(seed)
    parts: dict[str, dict] = {"readiness": {}, "realized": {}, "during_rl": {}}
    for number, arm in enumerate(config.arms):
        strength = 1 + 2 * number
        parts["readiness"][arm] = _readiness(rng, strength)
        points = [_realized_point(rng, query, strength) for query in range(60)]
        parts["realized"][arm] = {
            "points": points,
            "noise_floor": 0.004,
            "correlation": iv(0.72, 0.14),
            "correlation_odd": iv(0.8, 0.1),
            "controls": points[:1],
            "step_norm": 0.013,
        }
        steps = range(0, config.rl.steps + 1, 5)
        parts["during_rl"][arm] = [_during(rng, step, strength) for step in steps]
    return parts


def _realized_point(rng: random.Random, query: int, strength: int) -> dict:
    predicted = rng.gauss(0.004 * strength, 0.004)
    realized = predicted + rng.gauss(0, 0.003)
    odd = realized + 0.002  # without curvature
    return {
        "seed": 0,
        "query": f"rl-{query}",
        "right": rng.randint(1, N - 1),
        "of": N,
        "predicted": predicted,
        "realized": realized,
        "low": realized - 0.005,
        "high": realized + 0.005,
        "odd": odd,
        "odd_low": odd - 0.004,
        "odd_high": odd + 0.004,
    }


HISTOGRAMS = {  # queries by number of right samples, by strength
    1: [200, 90, 60, 50, 40, 35, 30, 25, 70],
    3: [120, 95, 80, 70, 60, 50, 45, 40, 40],
}


def _readiness(rng: random.Random, strength: int) -> dict:
    counts = HISTOGRAMS[1 if strength == 1 else 3]
    share = sum(counts[1:-1]) / sum(counts)
    heat_map = _heat_map(rng, strength)
    return {
        "seeds": 1,
        "queries": sum(counts),
        "samples_per_prompt": N,
        "set": "rl",
        "target_set": "influence_target",
        "accuracy": {
            "histogram": counts,
            "informative": iv(share, 0.04),
            "signal": iv(0.21, 0.01),
            "pass_at": {"1": 0.31, "2": 0.42, "4": 0.55},
            "entropy": iv(0.0515, 0.002),
            "perplexity": {
                "own demonstrations": iv(1.2, 0.01),
                "vanilla demonstrations": iv(1.31, 0.02),
            },
            "response_tokens": iv(52.3, 1.1),
            "truncated": 0.004,
            "format_right": 0.995,
            "trace_valid": 0.31,
            "behaviors": {"reflection": 0.2, "analysis": 0.29, "subgoal": 2.8},
        },
        "influence": {
            "sum": _influence(rng, counts, strength, 1.0),
            "mean": _influence(rng, counts, strength, 0.02),
        },
        "halves_cosine": {"sum": 0.1234, "mean": None},
        "all_against_all": {"groups": _pairs(counts, strength), "heat_map": heat_map},
    }


def _influence(rng: random.Random, counts: list[int], strength: int, scale: float) -> dict:
    """Influence under one advantage scale: by group, over all groups and by behavior."""
    groups = _groups(rng, counts, scale * strength)
    behaviors = ("plain", "reflection", "analysis", "subgoal") if strength > 1 else ("plain",)
    rows = []
    for name in behaviors:
        tokens = rng.randint(500, 50_000)
        dj = iv(scale * strength * rng.uniform(-0.2, 1), 0.2 * scale)
        dj_per_token = iv(scale * 1e-4 * rng.uniform(-0.2, 1), 2e-5 * scale)
        rows.append({"behavior": name, "tokens": tokens, "dj": dj, "dj_per_token": dj_per_token})
    every = {key: iv(scale * strength * value, 0.1 * scale) for key, value in _ALL.items()}
    return {"groups": groups, "all": every, "behaviors": rows}


def _pairs(counts: list[int], strength: int) -> list[dict]:
    """Influence of all queries on each group, with and without a query's influence on itself."""
    pairs = []
    for right in range(1, N):
        pair = {"right": right, "queries": counts[right], "dj": iv(0.9 * strength, 0.2)}
        without_self = iv(0.9 * strength - 0.6, 0.2)
        pairs.append(pair | {"self_term": iv(0.6, 0.05), "without_self": without_self})
    return pairs


def _heat_map(rng: random.Random, strength: int) -> dict:
    """Influence between groups; one cell is missing."""
    inner = list(range(1, N))
    values = []
    for row in inner:
        cells = []
        for column in inner:
            if row == column == 1:
                cells.append(None)
            else:
                cells.append(strength * rng.gauss(0.02 * (4 - abs(row - column)), 0.02))
        values.append(cells)
    return {"groups": inner, "values": values}


_ALL = {"dj": 0.8, "k_plus": 1.4, "k_minus": 0.6}


def _groups(rng: random.Random, counts: list[int], scale: float) -> list[dict]:
    """K+, K- and dJ by number of right samples; K+ needs a right one, K- a wrong one."""
    groups = []
    for right, count in enumerate(counts):
        group = {"right": right, "queries": count, "k_plus": None, "k_minus": None}
        if right:
            group["k_plus"] = iv(scale * rng.uniform(1, 2), 0.3 * scale)
        if right < N:
            group["k_minus"] = iv(scale * rng.uniform(0, 1), 0.3 * scale)
        spread = (right * (N - right) / 16) ** 0.5
        group["dj"] = iv(scale * spread * rng.uniform(0.8, 1.2), 0.2 * scale)
        groups.append(group)
    return groups


def _during(rng: random.Random, step: int, strength: int) -> dict:
    predicted = rng.gauss(0.005 * strength, 0.003)
    return {
        "seed": 0,
        "step": step,
        "target_reward": 0.3 + 0.004 * strength * step,
        "target_se": 0.012,
        "predicted": predicted if step else None,
        "realized": predicted + rng.gauss(0, 0.004) if step else None,
        "noise": 0.006 if step else None,
        "groups": _groups(rng, [4] * (N + 1), strength * 0.5),
    }
