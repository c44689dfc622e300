"""What this project adds to vLLM's worker: it lives inside the engine's process and is called by
name.

``AsyncLLM.collective_rpc`` carries names and plain values only, so weights come as the path of a
file. The process is no Ray process: it cannot fetch objects, and nobody ends it when the actor that
spawned it is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

if TYPE_CHECKING:
    from vllm.v1.worker.worker_base import WorkerBase as Base
else:
    Base = object

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_IGNORED_SUFFIX = "rotary_emb.inv_freq"  # a buffer that old checkpoints carry and no engine loads


class WeightExtension(Base):
    """Mixed into vLLM's worker class (``worker_extension_cls``)."""

    def load_weight_file(self, path: str) -> int:
        """Replace all weights by those of a safetensors file in checkpoint format.

        vLLM's ``reload_weights`` leaves a layer as it was when the file does not name it, with a
        line in the log as the only sign; so the names are compared first.

        Returns:
            how many tensors were loaded.

        Raises:
            ValueError: the file lacks parameters of the model. Nothing was loaded.
        """
        with safe_open(path, framework="pt") as file:
            source = {name: name for name in file.keys()}  # noqa: SIM118 (the file is no dict)
            if self.model_config.hf_config.tie_word_embeddings and EMBEDDING in source:
                source.setdefault(HEAD, EMBEDDING)  # a checkpoint that leaves its tied head out
            require_names(path, source, self._wanted_names())
            self.reload_weights(  # type: ignore[attr-defined]
                weights_iterator=((name, file.get_tensor(of)) for name, of in source.items()),
                is_checkpoint_format=True,
            )
        return len(source)

    def engine_pid(self) -> int:
        """Id of the process that this worker lives in."""
        return os.getpid()

    def _wanted_names(self) -> set[str]:
        """Parameters that the model was built from, and its output matrix, which a tied checkpoint
        leaves out.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        names = checkpoint_names(Path(self.model_config.model))
        if isinstance(getattr(self.get_model(), "lm_head", None), ParallelLMHead):
            names.add(HEAD)
        return names


def checkpoint_names(directory: Path) -> set[str]:
    """Names of all tensors in the safetensors files of a checkpoint."""
    return set[str]().union(*map(tensor_names, directory.glob("*.safetensors")))


def tensor_names(file: Path) -> set[str]:
    """Names of the tensors in a safetensors file that an engine loads."""
    with safe_open(file, framework="pt") as content:
        return {name for name in content.keys() if not name.endswith(_IGNORED_SUFFIX)}  # noqa: SIM118 (no dict)


def require_names(path: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Refuse a weight file that would leave a part of the model as it was.

    Raises:
        ValueError: a wanted name is not among the found ones.
    """
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} parameters of the model: {', '.join(missing[:5])}"
        )


def _end_with_parent() -> None:
    """End this process as soon as the one that spawned it has ended, even by SIGKILL, even while it
    starts.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent,), daemon=True).start()


def _wait_and_exit(parent: Any) -> None:
    parent.join()
    os._exit(1)


_end_with_parent()  # the engine's process imports this module while it builds its worker
