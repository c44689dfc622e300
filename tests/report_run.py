"""A run as the stages leave it on disk, made in a second without training, for the tests of the
report.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

from datasets import Dataset
from pydantic import TypeAdapter

from bi_ray.config import RunConfig, load_config
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
# what a sample must not get away with
NASTY = "</script><img src=x onerror=\"throw Error('a model ran code')\">&amp;"


def config_of(arms=("vanilla", "bridge"), steps=30) -> RunConfig:
    """The quickstart's, smaller."""
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
    """Data sets, metrics and evaluated samples: demonstrations, some of them spoilt, judged by the
    real verifier.
    """
    task = build_task(config.task, seed)
    rng = random.Random(seed)
    run.mkdir(parents=True)
    keep_config(config, run, replace=True)
    made = {}
    for name in config.task.sets:
        made[name] = [task.problem(name, index) for index in range(problems)]
        rows = [
            {
                "id": p.id,
                "question": p.question,
                "answer": p.answer,
                "graph": p.graph.to_json(),
                "prompt_tokens": [1],
            }
            for p in made[name]
        ]
        Dataset.from_list(rows).save_to_disk(run / "data" / name)
        counts = Counts()
        for row in rows:
            counts.add_answer(row["answer"])
        lengths = [len(row["prompt_tokens"]) for row in rows]
        manifest = {
            **counts.summary(),
            "prompt_tokens_mean": sum(lengths) / len(lengths),
            "prompt_tokens_max": max(lengths),
            "set": name,
            "hashes": [],
        }
        (run / "data" / name / MANIFEST).write_text(json.dumps(manifest))
    for arm in config.arms:
        rate = {"eval_sft": 0.4, "eval_rl": 0.5 if arm == "vanilla" else 0.75}
        if "rl" in stages:
            _write_metrics(
                run / "rl" / arm / "metrics.jsonl", config.rl.steps, rng, rate["eval_rl"]
            )
        (run / "sft" / arm).mkdir(parents=True)
        (run / "sft" / arm / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "loss": 0.5, "grad_norm": 1.0}) + "\n"
        )
        for stage in set(stages) & {"eval_sft", "eval_rl"}:
            recipe = Recipe(config.arms[arm], seed)
            for name in SETS:
                rows = [
                    _sample(task, recipe, problem, mode, number, rng, rate[stage])
                    for problem_number, problem in enumerate(made[name])
                    for mode, count in (
                        ("greedy", 1),
                        ("sampled", N if problem_number < sampled else 0),
                    )
                    for number in range(count)
                ]
                file = run / stage / arm / f"{name}.jsonl"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_metrics(file: Path, steps: int, rng: random.Random, end: float) -> None:
    file.parent.mkdir(parents=True)
    with open(file, "w") as out:
        out.write(json.dumps({"step": 0} | _validated(0.3)) + "\n")
        for step in range(1, steps + 1):
            reward = 0.3 + (end - 0.3) * step / steps + rng.gauss(0, 0.03)
            row = {
                "step": step,
                "reward": reward,
                "informative_share": 0.5,
                "entropy": 0.2 - 0.003 * step,
            }
            row |= {"response_tokens_mean": 50 + step / 2, "mismatch_mean": 1e-6 * rng.random()}
            if step % 10 == 0:
                row |= _validated(reward)
            out.write(json.dumps(row) + "\n")


def _validated(reward) -> dict:
    return {
        f"validation/{name}/{figure}": round(reward * share, 3)
        for name, share in (("val", 1.0), ("val_ood", 0.5))
        for figure in ("failures", "greedy", "truncated", "pass_at_2", "pass_at_16")
    }


def _sample(task, recipe, problem, mode, number, rng, rate) -> dict:
    text = recipe.demonstrate(task, problem).response
    if rng.random() > rate:  # spoil it: the answer alone, a line of the trace, or the end
        how = rng.randrange(3)
        if how == 0:
            text = text.replace(
                f"answer is {problem.answer} ", f"answer is {problem.graph.answer + 1} "
            )
        elif how == 1:
            lines = text.split("\n")
            lines[len(lines) // 2] = f"Let's see {NASTY}"
            text = "\n".join(lines).replace(f"answer is {problem.answer} ", "answer is nothing ")
        else:
            text = text[: len(text) // 2]
    item = VerificationItem(
        problem.question, problem.graph.to_json(), problem.answer, text, not text.endswith(">")
    )
    verdict = asdict(Judge(task)(item))
    row = {
        "mode": mode,
        "id": problem.id,
        "answer": problem.answer,
        "sample": number,
        "response": text,
    }
    return row | {"tokens": len(text.split()), "failure": None, **verdict}


def iv(value: float, half: float) -> dict[str, float]:
    """An interval as JSON keeps it."""
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
    """The parts of a summary that readiness adds: readiness, realized and during_rl."""
    rng = random.Random(seed)
    found: dict[str, dict] = {"readiness": {}, "realized": {}, "during_rl": {}}
    for place, arm in enumerate(config.arms):
        strength = 1 + 2 * place
        found["readiness"][arm] = _readiness(rng, strength)
        points = []
        for number in range(60):
            predicted = rng.gauss(0.004 * strength, 0.004)
            realized = predicted + rng.gauss(0, 0.003)
            point = {"seed": 0, "query": f"rl-{number}", "right": rng.randint(1, N - 1), "of": N}
            point |= {
                "predicted": predicted,
                "realized": realized,
                "low": realized - 0.005,
                "high": realized + 0.005,
            }
            odd = realized + 0.002  # curvature takes the rest
            points.append(point | {"odd": odd, "odd_low": odd - 0.004, "odd_high": odd + 0.004})
        found["realized"][arm] = {
            "points": points,
            "noise_floor": 0.004,
            "correlation": iv(0.72, 0.14),
            "correlation_odd": iv(0.8, 0.1),
            "controls": points[:1],
            "step_norm": 0.013,
        }
        found["during_rl"][arm] = [
            _during(rng, step, strength) for step in range(0, config.rl.steps + 1, 5)
        ]
    return found


def _readiness(rng: random.Random, strength: int) -> dict:
    counts = (
        [200, 90, 60, 50, 40, 35, 30, 25, 70]
        if strength == 1
        else [120, 95, 80, 70, 60, 50, 45, 40, 40]
    )
    share = sum(counts[1:-1]) / sum(counts)
    behaviors = ("plain", "reflection", "analysis", "subgoal") if strength > 1 else ("plain",)

    def estimate(scale: float) -> dict:
        groups = _groups(rng, counts, scale * strength)
        rows = [
            {
                "behavior": name,
                "tokens": rng.randint(500, 50_000),
                "dj": iv(scale * strength * rng.uniform(-0.2, 1), 0.2 * scale),
                "dj_per_token": iv(scale * 1e-4 * rng.uniform(-0.2, 1), 2e-5 * scale),
            }
            for name in behaviors
        ]
        every = {key: iv(scale * strength * value, 0.1 * scale) for key, value in _ALL.items()}
        return {"groups": groups, "all": every, "behaviors": rows}

    inner = list(range(1, N))
    pairs = [
        {
            "right": right,
            "queries": counts[right],
            "dj": iv(0.9 * strength, 0.2),
            "self_term": iv(0.6, 0.05),
            "without_self": iv(0.9 * strength - 0.6, 0.2),
        }
        for right in inner
    ]
    values = [
        [
            None
            if row == column == 1
            else strength * rng.gauss(0.02 * (4 - abs(row - column)), 0.02)
            for column in inner
        ]
        for row in inner
    ]
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
        "influence": {"sum": estimate(1.0), "mean": estimate(0.02)},
        "halves_cosine": {"sum": 0.1234, "mean": None},
        "all_against_all": {"groups": pairs, "heat_map": {"groups": inner, "values": values}},
    }


_ALL = {"dj": 0.8, "k_plus": 1.4, "k_minus": 0.6}


def _groups(rng: random.Random, counts, scale: float) -> list[dict]:
    return [
        {
            "right": right,
            "queries": count,
            "k_plus": iv(scale * rng.uniform(1, 2), 0.3 * scale) if right else None,
            "k_minus": iv(scale * rng.uniform(0, 1), 0.3 * scale) if right < N else None,
            "dj": iv(
                scale * (right * (N - right) / 16) ** 0.5 * rng.uniform(0.8, 1.2), 0.2 * scale
            ),
        }
        for right, count in enumerate(counts)
    ]


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
