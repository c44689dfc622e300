"""The death of Ray Train's controller, with fits that end as a test wants."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError

from actors.learners import group as learner_group
from actors.learners.group import LearnerError, LearnerGroup
from bi_ray.config.run import ModelConfig, RayConfig
from bi_ray.config.training import LearnerConfig


class Fit:
    """Stands for a trainer: its controller dies a number of times."""

    def __init__(self, deaths: int):
        self.left = deaths
        self.fits = 0
        self.return_value = None

    def fit(self):
        self.fits += 1
        if self.left:
            self.left -= 1
            raise ActorDiedError()
        return self


@pytest.mark.parametrize("deaths", [0, 1, 2, 3])
def test_the_group_starts_again_when_the_controller_dies_and_then_ends_in_one_line(
    deaths, tmp_path, monkeypatch
):
    fit = Fit(deaths)
    monkeypatch.setattr(learner_group, "TorchTrainer", lambda *_, **__: fit)
    group = LearnerGroup(tmp_path, LearnerConfig(max_restarts=2), ModelConfig(), RayConfig())
    monkeypatch.setattr(learner_group, "check_directory", lambda path: path)
    if deaths <= 2:
        group._fit("sft", print, tmp_path, tmp_path / "out", {})
        assert fit.fits == deaths + 1
        return
    reason = r"controller of Ray Train died 3 times .* run the same command again"
    with pytest.raises(LearnerError, match=reason) as end:
        group._fit("sft", print, tmp_path, tmp_path / "out", {})
    assert len(str(end.value).splitlines()) == 1
