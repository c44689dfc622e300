import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from import_rules import violations  # noqa: E402


def test_this_repository_keeps_the_rules():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "code", "words"),
    [
        ("bi_ray/policy/x.py", "import ray", "without a cluster"),
        ("bi_ray/policy/x.py", "import vllm.engine", "without a cluster"),
        ("bi_ray/policy/x.py", "def f():\n    from ray.train import report", "without a cluster"),
        ("bi_ray/report/x.py", "from actors import driver", "without a cluster"),
        (
            "bi_ray/report/x.py",
            "class A:\n    if True:\n        import serve.app",
            "without a cluster",
        ),
        ("bi_ray/cli/main.py", "import ray", "inside the command"),
        ("bi_ray/cli/main.py", "from actors.driver.driver import Driver", "inside the command"),
        ("bi_ray/cli/jobs.py", "from actors.job_client import Jobs", "inside the command"),
        (
            "bi_ray/tasks/x.py",
            "from bi_ray.learning import losses",
            "tasks and learning do not know",
        ),
        ("bi_ray/learning/x.py", "from bi_ray import tasks", "learning and tasks do not know"),
        (
            "bi_ray/learning/x.py",
            "from ..readiness.influence import f",
            "learning and readiness do not know",
        ),
        (
            "bi_ray/readiness/x.py",
            "async def f():\n    import bi_ray.tasks.base",
            "readiness and tasks do not know",
        ),
        ("actors/x.py", "from serve import app", "from serve to actors"),
        ("bi_ray/files/x.py", "from bi_ray.runs import layout", "from bi_ray.runs to bi_ray.files"),
        (
            "actors/weights/x.py",
            "from actors.driver import driver",
            "from actors.driver to actors.weights",
        ),
        ("bi_ray/loose.py", "import json", "in none of the rooms"),
        ("benchmarks/x.py", "from bi_ray.cli.main import main", "command line"),
        ("actors/x.py", "from bi_ray.cli.main import main", "command line"),
        ("bi_ray/report/x.py", "from .. import cli", "command line"),
        ("actors/x.py", "from bi_ray.cli.jobs import submit", "command line"),
        ("bi_ray/config/run.py", "import torch", "bi_ray.config.run imports torch"),
        ("bi_ray/config/run.py", "from bi_ray.files import heavy", "files.heavy imports torch"),
    ],
)
def test_each_rule_is_kept_watch_over(tmp_path, file, code, words):
    (tmp_path / "bi_ray/files").mkdir(parents=True)
    (tmp_path / "bi_ray/files/heavy.py").write_text("from torch import nn\n")
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code + "\n")
    (found,) = (line for line in violations(tmp_path) if "heavy.py" not in line)
    name = file.removesuffix(".py")
    assert name in found or name.replace("/", ".") in found
    assert words in found


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (
            "bi_ray/cli/main.py",
            "def run():\n    import ray\n    from actors.driver.driver import Driver",
        ),
        ("bi_ray/cli/main.py", "from bi_ray.cli.jobs import submit"),
        (
            "bi_ray/tasks/x.py",
            "from bi_ray.tasks import base\nfrom bi_ray.reasoning import graph\nimport raylib",
        ),
        ("bi_ray/report/x.py", "from bi_ray.tasks import base\nfrom bi_ray.learning import losses"),
        ("actors/x.py", "import ray, vllm\nfrom bi_ray.tasks import base"),
        ("serve/x.py", "from actors import driver"),
        ("bi_ray/config/run.py", "import yaml\nfrom bi_ray import files"),
    ],
)
def test_what_is_allowed_is_let_through(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code + "\n")
    assert violations(tmp_path) == []


def test_config_is_imported_without_torch():
    code = (
        "import sys, bi_ray.config\n"
        "sys.exit(bool({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
