"""iGSM: word problems about things that hold things (arXiv:2407.20311, arXiv:2505.18917)."""

from bi_ray.tasks.igsm.parse import parse_question
from bi_ray.tasks.igsm.task import IGSMTask
from bi_ray.tasks.igsm.vocabulary import names
from bi_ray.tasks.igsm.wording import phrases

__all__ = ["IGSMTask", "names", "parse_question", "phrases"]
