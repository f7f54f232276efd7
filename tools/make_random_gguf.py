#!/usr/bin/env python3
"""Writes a GGUF file with random bf16 weights of Qwen3-30B-A3B's shapes, for llama-bench.

For comparing engines on a model larger than memory: the file of 28 layers has 36 GB. Speed does
not depend on the numbers, so every tensor is cut from one run of random numbers; the file has no
tokenizer, which llama-bench does not need.

    pip install gguf
    tools/make_random_gguf.py --layers 28 OUT.gguf
"""

import argparse

import gguf
import numpy as np

HIDDEN, VOCAB, EXPERTS, EXPERTS_USED, EXPERT_DIM = 2048, 151936, 128, 8, 768
HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 32, 4, 128, 40960
BF16 = gguf.GGMLQuantizationType.BF16
F32 = gguf.GGMLQuantizationType.F32


def tensors(layers):
    """Name, shape (rows first) and type of each tensor."""
    yield "token_embd.weight", (VOCAB, HIDDEN), BF16
    for layer in range(layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (HIDDEN,), F32
        yield block + "attn_q.weight", (HEADS * HEAD_DIM, HIDDEN), BF16
        yield block + "attn_k.weight", (KV_HEADS * HEAD_DIM, HIDDEN), BF16
        yield block + "attn_v.weight", (KV_HEADS * HEAD_DIM, HIDDEN), BF16
        yield block + "attn_output.weight", (HIDDEN, HEADS * HEAD_DIM), BF16
        yield block + "attn_q_norm.weight", (HEAD_DIM,), F32
        yield block + "attn_k_norm.weight", (HEAD_DIM,), F32
        yield block + "ffn_norm.weight", (HIDDEN,), F32
        yield block + "ffn_gate_inp.weight", (EXPERTS, HIDDEN), F32
        yield block + "ffn_gate_exps.weight", (EXPERTS, EXPERT_DIM, HIDDEN), BF16
        yield block + "ffn_up_exps.weight", (EXPERTS, EXPERT_DIM, HIDDEN), BF16
        yield block + "ffn_down_exps.weight", (EXPERTS, HIDDEN, EXPERT_DIM), BF16
    yield "output_norm.weight", (HIDDEN,), F32
    yield "output.weight", (VOCAB, HIDDEN), BF16


def add_metadata(writer, layers):
    writer.add_block_count(layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(6144)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(EXPERTS_USED)
    writer.add_expert_feed_forward_length(EXPERT_DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("out")
    options = parser.parse_args()

    random = np.random.default_rng(1)
    floats = random.standard_normal(VOCAB * HIDDEN, dtype=np.float32) * np.float32(0.02)
    halves = (floats.view(np.uint32) >> 16).astype(np.uint16)
    ones = np.ones(HIDDEN, dtype=np.float32)

    writer = gguf.GGUFWriter(options.out, "qwen3moe")
    add_metadata(writer, options.layers)
    for name, shape, dtype in tensors(options.layers):
        count = int(np.prod(shape))
        item_bytes = 2 if dtype == BF16 else 4
        numpy_dtype = np.dtype(np.uint16) if dtype == BF16 else np.dtype(np.float32)
        writer.add_tensor_info(name, shape, numpy_dtype, count * item_bytes, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, dtype in tensors(options.layers):
        count = int(np.prod(shape))
        if dtype == BF16:
            data = halves[:count]
        elif len(shape) == 1:
            data = ones[:count]
        else:
            data = floats[:count]
        writer.write_tensor_data(data.reshape(shape))
    writer.close()


if __name__ == "__main__":
    main()
