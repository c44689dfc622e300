"""The shape of a decoder from its config.json: parameters, operations, cache and activations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bi_ray.config.base import ConfigError
from bi_ray.config.training import LoRAConfig

# decoders with RMS norms, rotary attention and a gated MLP
_KINDS = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes.

    Attributes:
        hidden: width of the hidden states.
        intermediate: width of the MLP.
        layers: number of layers.
        query: width of all heads' queries together.
        key: width of all heads' keys, and of their values.
        head: width of one head.
        vocabulary: number of tokens.
        tied: whether the output matrix is the embedding.
        qkv_bias: whether the projections of queries, keys and values have biases.
        output_bias: whether the attention's output projection has a bias.
        mlp_bias: whether the three matrices of the MLP have biases.
        head_norms: whether queries and keys are normalized by head.
    """

    hidden: int
    intermediate: int
    layers: int
    query: int
    key: int
    head: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a checkpoint's directory, or its config.json.

        Raises:
            ConfigError: no such file, or a model whose sizes follow other formulas.
        """
        file = path / "config.json" if path.is_dir() else path
        try:
            values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{file}: {error.strerror}; --model-config takes the model's config.json"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{file} is not valid JSON: {error}") from error
        kind = values.get("model_type") if isinstance(values, dict) else None
        if kind not in _KINDS:
            raise ConfigError(
                f"{file}: model_type is {kind!r}; plans are made for {', '.join(_KINDS)}"
            )
        try:
            return cls._of(kind, values)
        except KeyError as error:
            raise ConfigError(f"{file} lacks {error.args[0]}") from error

    @classmethod
    def _of(cls, kind: str, values: dict[str, Any]) -> Self:
        heads = values["num_attention_heads"]
        default_size = 128 if kind == "qwen3" else values["hidden_size"] // heads
        size = values.get("head_dim") or default_size
        bias = bool(values.get("attention_bias", False))
        return cls(
            hidden=values["hidden_size"],
            intermediate=values["intermediate_size"],
            layers=values["num_hidden_layers"],
            query=heads * size,
            key=(values.get("num_key_value_heads") or heads) * size,
            head=size,
            vocabulary=values["vocab_size"],
            tied=bool(values.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2" or bias,
            output_bias=kind != "qwen2" and bias,
            mlp_bias=bool(values.get("mlp_bias", False)),
            head_norms=kind == "qwen3",
        )

    @property
    def layer_matrices(self) -> int:
        """Entries of a layer's matrices; each takes a multiplication and an addition per token."""
        return 2 * self.hidden * (self.query + self.key) + 3 * self.hidden * self.intermediate

    @property
    def layer_parameters(self) -> int:
        """Number of parameters of one layer."""
        biases = self.qkv_bias * (self.query + 2 * self.key) + self.output_bias * self.hidden
        biases += self.mlp_bias * (2 * self.intermediate + self.hidden)
        return self.layer_matrices + biases + 2 * self.hidden + self.head_norms * 2 * self.head

    @property
    def head_parameters(self) -> int:
        """Number of parameters of the output matrix."""
        return self.vocabulary * self.hidden

    @property
    def root_parameters(self) -> int:
        """Number of parameters outside the layers: embedding, output matrix, last norm."""
        return self.head_parameters * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model; a tied head counts once."""
        return self.layers * self.layer_parameters + self.root_parameters

    def adapter_parameters(self, lora: LoRAConfig) -> int:
        """Parameters of LoRA's adapters: rank times the two widths of every adapted matrix."""
        own = {"q_proj": self.query, "k_proj": self.key, "v_proj": self.key, "o_proj": self.query}
        widths = {name: self.hidden + width for name, width in own.items()}
        mlp = ("gate_proj", "up_proj", "down_proj")
        widths |= dict.fromkeys(mlp, self.hidden + self.intermediate)
        if lora.targets == "all-linear":
            adapted = sum(widths.values())
        else:
            adapted = sum(widths.get(name, 0) for name in lora.targets)
        return self.layers * lora.rank * adapted

    def cache_bytes_per_token(self, bytes_per_number: int) -> int:
        """Bytes of a token's keys and values in all layers."""
        return 2 * self.layers * self.key * bytes_per_number

    def forward_flops(self, tokens: float, pairs: float, predicted: float) -> float:
        """Operations of a forward pass; a multiplication and an addition count as two.

        Args:
            tokens: number of tokens that pass through the layers.
            pairs: number of pairs of a query and a key that it sees.
            predicted: number of tokens whose logits are computed.
        """
        return self.layer_flops(tokens, pairs) + 2 * self.head_parameters * predicted

    def layer_flops(self, tokens: float, pairs: float) -> float:
        """The same for the layers alone."""
        return self.layers * (2 * self.layer_matrices * tokens + 4 * self.query * pairs)

    def activation_bytes_per_token(self, bytes_per_number: int) -> int:
        """Bytes that one layer of transformers keeps of a token for its backward pass.

        Two RMS norms keep their input in float32 and their output before and after the weight;
        attention keeps its queries, keys, values and output; the gated MLP four vectors of its
        width.
        """
        upcast = 4 if bytes_per_number < 4 else bytes_per_number
        norms = 2 * self.hidden * (upcast + 2 * bytes_per_number)
        attention = (2 * self.query + 2 * self.key) * bytes_per_number
        return norms + attention + 4 * self.intermediate * bytes_per_number
