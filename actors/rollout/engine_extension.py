"""What this project adds to vLLM's worker, inside the engine's process.

``AsyncLLM.collective_rpc`` calls it by name and carries plain values only, so weights come as the
path of a file. The process is not a Ray process: it cannot fetch objects, and nobody ends it when
the actor that spawned it is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from bi_ray.policy.files import tensor_names
from bi_ray.policy.weights_file import EMBEDDING, HEAD

if TYPE_CHECKING:
    from vllm.v1.worker.worker_base import WorkerBase as Base
else:
    Base = object

_IGNORED_SUFFIX = "rotary_emb.inv_freq"  # a buffer that old checkpoints carry and no engine loads


class WeightExtension(Base):
    """Mixed into vLLM's worker class (``worker_extension_cls``)."""

    def load_weight_file(self, path: str) -> int:
        """Replace all weights by those of a safetensors file in checkpoint format.

        vLLM's ``reload_weights`` leaves a layer that the file does not name as it was, and only
        logs a line; so the names are compared first.

        Returns:
            Number of tensors that were loaded.

        Raises:
            ValueError: the file lacks parameters of the model. Nothing was loaded.
        """
        with safe_open(path, framework="pt") as file:
            sources = {name: name for name in file.keys()}  # noqa: SIM118 (the file is not a dict)
            if self.model_config.hf_config.tie_word_embeddings and EMBEDDING in sources:
                sources.setdefault(HEAD, EMBEDDING)  # a checkpoint that leaves its tied head out
            require_names(path, sources, self._wanted_names())
            tensors = ((name, file.get_tensor(source)) for name, source in sources.items())
            self.reload_weights(  # type: ignore[attr-defined]
                weights_iterator=tensors, is_checkpoint_format=True
            )
        return len(sources)

    def engine_pid(self) -> int:
        """Id of the process that this worker lives in."""
        return os.getpid()

    def _wanted_names(self) -> set[str]:
        """Parameters that the model was built from, and its output matrix if it has one."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        names = checkpoint_names(Path(self.model_config.model))
        if isinstance(getattr(self.get_model(), "lm_head", None), ParallelLMHead):
            names.add(HEAD)
        return names


def checkpoint_names(directory: Path) -> set[str]:
    """Names of the tensors that an engine loads from all files of a checkpoint."""
    names: set[str] = set()
    for file in directory.glob("*.safetensors"):
        names |= loaded_names(file)
    return names


def loaded_names(file: Path) -> set[str]:
    """Names of the tensors that an engine loads from a safetensors file.

    Raises:
        CheckpointError: the file is cut short or cannot be read.
    """
    return {name for name in tensor_names(file) if not name.endswith(_IGNORED_SUFFIX)}


def require_names(path: str, names: Iterable[str], wanted: Iterable[str]) -> None:
    """Refuse a weight file that would leave a part of the model as it was.

    Args:
        path: the file, for the message.
        names: of its tensors.
        wanted: names that the model needs.

    Raises:
        ValueError: a wanted name is missing.
    """
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} parameters of the model: {', '.join(missing[:5])}"
        )


def _end_with_parent() -> None:
    """End this process when the one that spawned it ends, even by SIGKILL or during the start."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent,), daemon=True).start()


def _wait_and_exit(parent: Any) -> None:
    parent.join()
    os._exit(1)


_end_with_parent()  # the engine's process imports this module while it builds its worker
