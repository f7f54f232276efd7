#!/usr/bin/env python3
"""Makes small random Qwen3-MoE checkpoints and what Hugging Face transformers computes with them.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors
    venv/bin/python tools/make_model_goldens.py tests/data/goldens

Needed only to add a case: the files it writes are committed, and the C++ tests read those.

Each case is a folder with a checkpoint as `save_pretrained` writes it and `expected.safetensors`.
The sequences of a case are numbered from 0; sequence 3 shares its first 32 tokens with sequence 2.
For sequence <s> of n tokens, and layer <l> where that layer has experts:

    tokens.<s>          f32  [n]         token ids (whole numbers)
    logits.<s>          f32  [n, vocab]  of the stored weights, computed in float32
    hidden.<s>          f32  [n, h]      after the final norm, computed in float32
    experts.<s>.<l>     f32  [n, k]      chosen experts, most probable first (whole numbers)
    margin.<s>.<l>      f32  [n]         probability of the last chosen expert minus that of the best
                                         one not chosen; 1 where all are chosen
    bf16_logits.<s>     bf16 [n, vocab]  of the weights rounded to bfloat16, computed in bfloat16

Weights are drawn larger than transformers initialises them (linear weights with standard deviation
1/sqrt(inputs), the router twice that, the output head three times), so that choices are clear and
logits differ.
"""

import argparse
import json
import math
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

SEQUENCE_TOKENS = (1, 17, 70, 45)
SHARED_TOKENS = 32

COMMON = dict(
    max_position_embeddings=512,
    rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
    intermediate_size=56,
    dtype="bfloat16",
)

CASES = {
    # 60 experts top-4, GQA 7:1, a width that is no multiple of 16, head_dim != h / n_q.
    "sixty_experts": dict(
        vocab_size=301, hidden_size=104, num_hidden_layers=2, num_attention_heads=7,
        num_key_value_heads=1, head_dim=16, num_experts=60, num_experts_per_tok=4,
        moe_intermediate_size=12, norm_topk_prob=True, tie_word_embeddings=False),
    "tied": dict(
        vocab_size=259, hidden_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=24, norm_topk_prob=False, tie_word_embeddings=True),
    "dense_layers": dict(
        vocab_size=320, hidden_size=72, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=3, head_dim=32, num_experts=6, num_experts_per_tok=3,
        moe_intermediate_size=36, norm_topk_prob=True, tie_word_embeddings=False,
        mlp_only_layers=[0, 2]),
    "sparse_step_f32": dict(
        vocab_size=257, hidden_size=40, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, num_experts=7, num_experts_per_tok=2,
        moe_intermediate_size=12, norm_topk_prob=False, tie_word_embeddings=True,
        decoder_sparse_step=2, dtype="float32",
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}),
    # Top-1, heads of 24 numbers.
    "top_one_f16": dict(
        vocab_size=300, hidden_size=88, num_hidden_layers=2, num_attention_heads=14,
        num_key_value_heads=2, head_dim=24, num_experts=10, num_experts_per_tok=1,
        moe_intermediate_size=34, norm_topk_prob=False, tie_word_embeddings=False,
        dtype="float16"),
    # All experts chosen, no grouping of heads, in two shards.
    "all_experts_sharded": dict(
        vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=16, num_experts=4, num_experts_per_tok=4,
        moe_intermediate_size=33, norm_topk_prob=True, tie_word_embeddings=False),
    # All experts of a layer in one tensor, as transformers 5 keeps them in memory.
    "fused_experts": dict(
        vocab_size=280, hidden_size=96, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, head_dim=16, num_experts=12, num_experts_per_tok=3,
        moe_intermediate_size=28, norm_topk_prob=True, tie_word_embeddings=True),
}
SAVE_OPTIONS = {
    "all_experts_sharded": dict(max_shard_size="90KB"),
    "fused_experts": dict(save_original_format=False),
}


def draw_weights(model, generator):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            value = 1 + 0.1 * noise
        elif "embed_tokens" in name and not model.config.tie_word_embeddings:
            value = noise
        else:
            is_head = "lm_head" in name or "embed_tokens" in name
            gain = 3.0 if is_head else 2.0 if name.endswith("mlp.gate.weight") else 1.0
            value = gain / math.sqrt(parameter.shape[-1]) * noise
        parameter.data.copy_(value)


def draw_sequences(vocab_count, generator):
    sequences = [
        torch.randint(0, vocab_count, (count,), generator=generator) for count in SEQUENCE_TOKENS
    ]
    sequences[3][:SHARED_TOKENS] = sequences[2][:SHARED_TOKENS]
    return sequences


def run(model, tokens):
    """Logits, final hidden states and each expert layer's router logits of one sequence."""
    router_logits = {}
    hooks = [
        layer.mlp.gate.register_forward_hook(
            lambda module, args, output, index=index: router_logits.update({index: output[0]}))
        for index, layer in enumerate(model.model.layers)
        if hasattr(layer.mlp, "gate")
    ]
    with torch.no_grad():
        hidden = model.model(tokens[None]).last_hidden_state[0]
        logits = model.lm_head(hidden)
    for hook in hooks:
        hook.remove()
    return logits, hidden, router_logits


def choices(router_logits, chosen_count):
    probabilities = router_logits.float().softmax(-1)
    best = probabilities.topk(min(chosen_count + 1, probabilities.shape[-1]), dim=-1)
    margin = torch.ones(len(probabilities))
    if best.values.shape[-1] > chosen_count:
        margin = best.values[:, chosen_count - 1] - best.values[:, chosen_count]
    return best.indices[:, :chosen_count].float(), margin


def load(directory, dtype):
    """The stored checkpoint with its weights in `dtype`; the plain code path of transformers."""
    return Qwen3MoeForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", experts_implementation="eager").eval()


def make_expected(directory, sequences):
    model = load(directory, torch.float32)
    chosen_count = model.config.num_experts_per_tok
    expected = {}
    for s, tokens in enumerate(sequences):
        logits, hidden, router_logits = run(model, tokens)
        expected[f"tokens.{s}"] = tokens.float()
        expected[f"logits.{s}"] = logits
        expected[f"hidden.{s}"] = hidden
        for layer, layer_logits in router_logits.items():
            experts, margin = choices(layer_logits, chosen_count)
            expected[f"experts.{s}.{layer}"] = experts
            expected[f"margin.{s}.{layer}"] = margin
    model = load(directory, torch.bfloat16)
    for s, tokens in enumerate(sequences):
        expected[f"bf16_logits.{s}"] = run(model, tokens)[0]
    return {name: tensor.contiguous() for name, tensor in expected.items()}


def make_case(name, options, directory):
    generator = torch.Generator().manual_seed(sum(name.encode()))
    config = Qwen3MoeConfig(**{**COMMON, **options})
    model = Qwen3MoeForCausalLM(config)
    draw_weights(model, generator)
    model.to(config.dtype)
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory, **SAVE_OPTIONS.get(name, {}))
    (directory / "generation_config.json").unlink(missing_ok=True)
    sequences = draw_sequences(config.vocab_size, generator)
    expected = make_expected(directory, sequences)
    save_file(expected, directory / "expected.safetensors")
    return expected


def summary(expected):
    """How much the logits vary, how clear the choices are, how far bf16 is from f32."""
    logits = torch.cat([t for n, t in expected.items() if n.startswith("logits.")])
    bf16 = torch.cat([t for n, t in expected.items() if n.startswith("bf16_logits.")]).float()
    margins = torch.cat([t for n, t in expected.items() if n.startswith("margin.")])
    return json.dumps({
        "logit_deviation": round(logits.std().item(), 3),
        "distinct_argmax": len(logits.argmax(-1).unique()),
        "smallest_margin": round(margins.min().item(), 6),
        "bf16_rms_error": round((bf16 - logits).square().mean().sqrt().item(), 4),
        "bf16_same_argmax": round((bf16.argmax(-1) == logits.argmax(-1)).float().mean().item(), 4),
    })


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--case", choices=CASES, help="make only this one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, options in CASES.items():
        if arguments.case in (None, name):
            expected = make_case(name, options, arguments.directory / name)
            print(f"{name:22s} {summary(expected)}")


if __name__ == "__main__":
    main()
