import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from bi_ray.config.base import ConfigError
from bi_ray.config.training import LoRAConfig
from bi_ray.learning.adapters import add_adapters
from bi_ray.planning.shapes import Shape

MODELS = Path(__file__).parents[2] / "configs" / "models"
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 256,
}
MODELS_OF_MANY_KINDS = [
    {"model_type": "llama", "tie_word_embeddings": True},
    {"model_type": "llama", "tie_word_embeddings": False, "num_key_value_heads": 6},
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    {"model_type": "llama", "head_dim": 32, "tie_word_embeddings": False},
    {"model_type": "mistral", "tie_word_embeddings": False},
    {"model_type": "qwen2", "tie_word_embeddings": True},
    {"model_type": "qwen2", "tie_word_embeddings": False},
    {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    {"model_type": "qwen3", "head_dim": 16, "attention_bias": True, "tie_word_embeddings": False},
]


def write(folder, values):
    (folder / "config.json").write_text(json.dumps(SIZES | values))
    return folder


def load(folder, device="cpu", **options):
    with torch.device(device):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


@pytest.mark.parametrize(
    "values", MODELS_OF_MANY_KINDS, ids=lambda values: "-".join(map(str, values.values()))
)
def test_parameters_are_those_that_transformers_makes(tmp_path, values):
    made = load(write(tmp_path, values), "meta")
    assert Shape.read(tmp_path).parameters == sum(
        parameter.numel() for parameter in made.parameters()
    )
    layers = sum(parameter.numel() for parameter in made.model.layers[0].parameters())
    assert Shape.read(tmp_path / "config.json").layer_parameters == layers


@pytest.mark.parametrize(
    ("name", "published"), [("qwen2.5-7b", 7_615_616_512), ("llama-3-70b", 70_553_706_496)]
)
def test_the_shipped_shapes_have_the_published_number_of_parameters(name, published):
    shape = Shape.read(MODELS / name)
    assert shape.parameters == published
    assert published == sum(
        parameter.numel() for parameter in load(MODELS / name, "meta").parameters()
    )


@pytest.mark.parametrize(
    "values", MODELS_OF_MANY_KINDS[:7], ids=lambda values: "-".join(map(str, values.values()))
)
def test_operations_are_those_that_torch_counts(tmp_path, values):
    model, shape = load(write(tmp_path, values), attn_implementation="eager"), Shape.read(tmp_path)
    rows, length = 2, 40
    # eager attention computes what it masks, too
    tokens, pairs = rows * length, rows * length * length
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=torch.zeros(rows, length, dtype=torch.int64)).logits.sum()
    forward = counter.get_total_flops()
    # the rotary angles are one small product more
    assert shape.forward_flops(tokens, pairs, tokens) == pytest.approx(forward, rel=1e-3)
    assert shape.forward_flops(tokens, pairs, 0) == pytest.approx(shape.layer_flops(tokens, pairs))
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == pytest.approx(
        2 * shape.forward_flops(tokens, pairs, tokens), rel=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_has_the_bytes_of_a_real_one(tmp_path, dtype):
    model = load(write(tmp_path, {"model_type": "qwen2"})).to(dtype)
    cache = model(input_ids=torch.zeros(3, 17, dtype=torch.int64), use_cache=True).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert held == 3 * 17 * Shape.read(tmp_path).cache_bytes_per_token(dtype.itemsize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "values", [{"model_type": "llama"}, {"model_type": "llama", "num_key_value_heads": 6}]
)
def test_activations_are_what_autograd_keeps(tmp_path, dtype, values):
    model = load(write(tmp_path, values), attn_implementation="sdpa").to(dtype)
    rows, length = 2, 64
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(layers):
        model.model.layers, whole = model.model.layers[:layers], model.model.layers
        found, alive = {}, []

        def note(tensor):
            storage = tensor.untyped_storage()
            alive.append(tensor)  # so that no address is used twice
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = model.model(
                input_ids=torch.zeros(rows, length, dtype=torch.int64), use_cache=False
            )
        model.model.layers = whole
        assert out is not None
        return sum(found.values())

    of_a_layer = (kept(3) - kept(2)) / (rows * length)
    assert Shape.read(tmp_path).activation_bytes_per_token(dtype.itemsize) == pytest.approx(
        of_a_layer, rel=0.02
    )


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("down_proj",)])
def test_adapters_have_the_parameters_that_peft_makes(tmp_path, targets):
    model, lora = (
        load(write(tmp_path, {"model_type": "llama"})),
        LoRAConfig(rank=4, targets=targets),
    )
    model.config.tie_word_embeddings = False
    add_adapters(model, lora, None)
    made = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert Shape.read(tmp_path).adapter_parameters(lora) == made


def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="model_type is 'gpt2'"):
        Shape.read(write(tmp_path, {"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="--model-config"):
        Shape.read(tmp_path / "absent.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        Shape.read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 2}')
    with pytest.raises(ConfigError, match="lacks hidden_size"):
        Shape.read(tmp_path)
