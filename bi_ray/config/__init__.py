"""Every option of the configuration files, by section. Imports no torch.

Names end in their unit; an unknown key is an error. ``load_config`` reads a YAML file.
"""

from __future__ import annotations

from bi_ray.config.algorithms import (
    ALGORITHMS,
    AlgorithmConfig,
    DynamicSamplingConfig,
    ImportanceConfig,
    KLConfig,
    ShapingConfig,
)
from bi_ray.config.base import (
    Config,
    ConfigError,
    Fraction,
    InKeyOf,
    NotInKey,
    Positive,
    Seconds,
    SetName,
)
from bi_ray.config.evaluation import EvaluationConfig, VerifierConfig
from bi_ray.config.extraction import ExtractConfig
from bi_ray.config.files import load_config, save_config
from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.readiness import ReadinessConfig
from bi_ray.config.recipes import (
    BASE,
    BRIDGE,
    PAPER_COPIES,
    RECIPES,
    VANILLA,
    BehaviorConfig,
    RecipeConfig,
)
from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import TRACKERS, ModelConfig, RayConfig, RunConfig, SeedsConfig
from bi_ray.config.tasks import (
    TASK_KINDS,
    AnswerConfig,
    DifficultyConfig,
    FieldsConfig,
    GymSetConfig,
    IGSMConfig,
    IGSMDifficultyConfig,
    LogicName,
    OperatorName,
    PromptBenchConfig,
    ReasoningGymConfig,
    TaskConfig,
    UserDataConfig,
    UserSetConfig,
)
from bi_ray.config.training import (
    LearnerConfig,
    LoRAConfig,
    OptimizerConfig,
    QueryFilterConfig,
    RLConfig,
    SFTConfig,
    ValidationConfig,
)

__all__ = [
    "ALGORITHMS",
    "BASE",
    "BRIDGE",
    "PAPER_COPIES",
    "RECIPES",
    "TASK_KINDS",
    "TRACKERS",
    "VANILLA",
    "AlgorithmConfig",
    "AnswerConfig",
    "BehaviorConfig",
    "Config",
    "ConfigError",
    "DifficultyConfig",
    "DynamicSamplingConfig",
    "EvaluationConfig",
    "ExtractConfig",
    "FieldsConfig",
    "Fraction",
    "GymSetConfig",
    "IGSMConfig",
    "IGSMDifficultyConfig",
    "ImportanceConfig",
    "InKeyOf",
    "KLConfig",
    "LearnerConfig",
    "LoRAConfig",
    "LogicName",
    "ModelConfig",
    "NotInKey",
    "OperatorName",
    "OptimizerConfig",
    "Positive",
    "PretrainConfig",
    "PromptBenchConfig",
    "QueryFilterConfig",
    "RLConfig",
    "RayConfig",
    "ReadinessConfig",
    "ReasoningGymConfig",
    "RecipeConfig",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "Seconds",
    "SeedsConfig",
    "SetName",
    "ShapingConfig",
    "TaskConfig",
    "UserDataConfig",
    "UserSetConfig",
    "ValidationConfig",
    "VerifierConfig",
    "load_config",
    "save_config",
]
