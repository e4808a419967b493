"""Small folders of random models as other quantisers write them: by their library where it is installed, else by their
published layout. Each comes with the dense model of the same weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.models.load import without_bars

HIDDEN, INNER = 128, 256
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output of each of the eight codes in a word of AWQ, from the lowest bits up (``awq/utils/packing_utils.py``)."""
Packed = tuple[dict[str, Tensor], Tensor]
"""Tensors of a linear beside its name, and its weight."""


def random_llama(tied: bool = False) -> Any:
    """Return a Llama of 2 layers in fp16, whose numbers fp32 holds exactly."""
    config = LlamaConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=320, tie_word_embeddings=tied, attention_bias=True,
                         pad_token_id=None, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            mean = torch.ones_like(parameter) if "norm" in name else parameter.data
            parameter.data = (mean + torch.randn_like(parameter) / (8 if parameter.ndim == 1 else 16)).half()
    return model.requires_grad_(False).eval()


def write(folder: Path, options: Mapping[str, Any], pack: Callable[[str, Tensor, torch.Generator], Packed],
          tied: bool = False) -> Any:
    """Write a random model whose linears ``pack`` packs; return the dense model of their weights, in fp32."""
    model, tensors, generator = random_llama(tied), dict[str, Tensor](), torch.Generator().manual_seed(5)
    for name, tensor in model.state_dict().items():
        place, _, leaf = name.rpartition(".")
        if leaf == "weight" and "_proj" in name:
            packed, weight = pack(place, tensor, generator)
            tensors |= {f"{place}.{key}": value.contiguous() for key, value in packed.items()}
            model.get_submodule(place).weight.data = weight
        elif not (tied and place == "lm_head"):
            tensors[name] = tensor.contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads(model.config.to_json_string())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": dict(options)}))
    byte_tokenizer().save_pretrained(str(folder))
    return model.float()


def drawn(shape: torch.Size, bits: int, group: int, generator: torch.Generator, symmetric: bool) -> tuple[Tensor, ...]:
    """Return codes (``out x in``), scales (fp16) and zeros (``out x groups``)."""
    codes = torch.randint(0, 1 << bits, tuple(shape), generator=generator)
    groups = (shape[0], shape[1] // group)
    scale = ((torch.rand(groups, generator=generator) + 0.5) / (8 << bits)).half()
    zero = torch.full(groups, 1 << bits - 1) if symmetric else torch.randint(1, 1 << bits, groups, generator=generator)
    return codes, scale, zero


def streamed(values: Tensor, bits: int) -> Tensor:
    """Pack integers, ``n x columns``, along the rows as AutoGPTQ's ``QuantLinear.pack`` does."""
    rows, words = values.tolist(), []
    for row in rows:
        number = sum(value << bits * place for place, value in enumerate(row))
        words.append([(number >> 32 * i & 0xFFFFFFFF) for i in range(-(-len(row) * bits // 32))])
    return torch.tensor(words, dtype=torch.int64).to(torch.int32).t()


def gptq(bits: int = 4, group: int = 32, sym: bool = True, desc_act: bool = False, version: int = 1) \
        -> tuple[dict[str, Any], Callable[[str, Tensor, torch.Generator], Packed]]:
    """Return ``quantization_config`` and packer of GPTQ: version 1 stores zeros less one."""
    def pack(_: str, weight: Tensor, generator: torch.Generator) -> Packed:
        codes, scale, zero = drawn(weight.shape, bits, group, generator, sym)
        index = torch.arange(weight.shape[1]) // group
        if desc_act:
            index = index[torch.randperm(len(index), generator=generator)]
        dense = (codes - zero[:, index]) * scale.float()[:, index]
        return {"qweight": streamed(codes, bits), "qzeros": streamed((zero - int(version == 1)).t(), bits).t(),
                "scales": scale.t(), "g_idx": index.int()}, dense

    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": desc_act,
            "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}, pack


def awq(group: int = 64) -> tuple[dict[str, Any], Callable[[str, Tensor, torch.Generator], Packed]]:
    """Return ``quantization_config`` and packer of AWQ's version "gemm"."""
    def words(values: Tensor) -> Tensor:
        eight = values.view(len(values), -1, 8).long()
        packed = sum(eight[..., out] << 4 * place for place, out in enumerate(AWQ_PLACES))
        return packed.to(torch.int32)

    def pack(_: str, weight: Tensor, generator: torch.Generator) -> Packed:
        codes, scale, zero = drawn(weight.shape, 4, group, generator, symmetric=False)
        dense = (codes - zero.repeat_interleave(group, 1)) * scale.float().repeat_interleave(group, 1)
        return {"qweight": words(codes.t().contiguous()), "qzeros": words(zero.t().contiguous()),
                "scales": scale.t()}, dense

    return {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}, pack


def compressed(bits: int = 4, group: int = 32, sym: bool = True) \
        -> tuple[dict[str, Any], Callable[[str, Tensor, torch.Generator], Packed]]:
    """Return ``quantization_config`` and packer of compressed-tensors, by its library; one linear of each layer stays
    dense."""
    def pack(name: str, weight: Tensor, generator: torch.Generator) -> Packed:
        if name.endswith("o_proj"):
            return {"weight": weight}, weight.float()
        codes, scale, zero = drawn(weight.shape, bits, group, generator, sym)
        dense = (codes - zero.repeat_interleave(group, 1)) * scale.float().repeat_interleave(group, 1)
        signed, middle = ((part - (1 << bits - 1)).to(torch.int8) for part in (codes, zero))
        found = {"weight_packed": pack_to_int32(signed, bits), "weight_scale": scale,
                 "weight_shape": torch.tensor(weight.shape)}
        return found | ({} if sym else {"weight_zero_point": pack_to_int32(middle, bits, packed_dim=0)}), dense

    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "ignore": ["lm_head", "re:.*o_proj"], "config_groups": {"group_0": {
                "targets": ["Linear"], "input_activations": None, "output_activations": None, "weights": {
                    "num_bits": bits, "type": "int", "symmetric": sym, "strategy": "group", "group_size": group,
                    "dynamic": False}}}}, pack


def write_nf4(folder: Path, *, double: bool = True) -> Any:
    """Write a model that bitsandbytes packs through transformers; return the dense model of its weights."""
    dense = folder.parent / f"{folder.name}-dense"
    random_llama().save_pretrained(dense)
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double,
                                 bnb_4bit_compute_dtype=torch.float32)
    with without_bars():
        model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=options, device_map="cpu",
                                                     dtype=torch.float32)
        model.save_pretrained(folder)
    whole = random_llama()
    for name, module in model.named_modules():  # whose kernels on a CPU multiply in bf16
        if isinstance(module, Linear4bit):
            whole.get_submodule(name).weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state)
    byte_tokenizer().save_pretrained(str(folder))
    return whole.float()
