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
    Positive,
    Seconds,
    SetName,
)
from bi_ray.config.files import (
    RUN_CONFIG_FILE,
    load_config,
    save_config,
)
from bi_ray.config.pretraining import (
    PretrainConfig,
)
from bi_ray.config.recipes import (
    BASE,
    BRIDGE,
    PAPER_COPIES,
    RECIPES,
    VANILLA,
    BehaviorConfig,
    RecipeConfig,
)
from bi_ray.config.run import (
    TRACKERS,
    EvaluationConfig,
    ExtractConfig,
    ModelConfig,
    RayConfig,
    ReadinessConfig,
    RolloutConfig,
    RunConfig,
    SeedsConfig,
    VerifierConfig,
)
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
    "RUN_CONFIG_FILE",
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
    "KLConfig",
    "LearnerConfig",
    "LoRAConfig",
    "LogicName",
    "ModelConfig",
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
