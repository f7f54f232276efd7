"""A Qwen3-MoE for training: the mathematics and weight names of transformers'
`Qwen3MoeForCausalLM`, but each expert works once on all of its tokens, and nothing waits for
the device.

A row of tokens holds several texts, one after the other. Their numbers within the row keep them
apart; number 0 is padding. Rotary positions count from the row's start: only distances matter.
"""

import torch
from torch import nn
from torch.nn import functional

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "torch_dtype": "bfloat16",
    "vocab_size": 16384,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "router_aux_loss_coef": 0.01,
    "output_router_logits": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 1024,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 4,
    "tie_word_embeddings": True,
    "use_cache": True,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def rotary_tables(length, device):
    """cos, sin  # [length, head_dim]"""
    size = CONFIG["head_dim"]
    frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, size, 2, device=device).float() / size)
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(heads, cosine, sine):
    """Rotary position embedding of `heads`  # [batch, heads, length, head_dim]"""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-second, first], dim=-1) * sine


def drop_channels(values, share, training):
    """Dropout with one mask for all tokens of a row.

    `values`  # [batch, length, width]
    """
    if not training or share == 0:
        return values
    shape = (values.shape[0], 1, values.shape[2])
    mask = torch.rand(shape, device=values.device) >= share
    return values * (mask.to(values.dtype) / (1 - share))


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, values):
        values = values.float()
        mean_square = values.square().mean(dim=-1, keepdim=True)
        return values * (mean_square + CONFIG["rms_norm_eps"]).rsqrt() * self.weight


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        width, size = CONFIG["hidden_size"], CONFIG["head_dim"]
        self.query_heads = CONFIG["num_attention_heads"]
        self.key_heads = CONFIG["num_key_value_heads"]
        self.q_proj = linear(width, self.query_heads * size)
        self.k_proj = linear(width, self.key_heads * size)
        self.v_proj = linear(width, self.key_heads * size)
        self.o_proj = linear(self.query_heads * size, width)
        self.q_norm = RmsNorm(size)
        self.k_norm = RmsNorm(size)

    def forward(self, hidden, visible, cosine, sine):
        batch, length, _ = hidden.shape
        query = self.q_proj(hidden).view(batch, length, self.query_heads, -1)
        key = self.k_proj(hidden).view(batch, length, self.key_heads, -1)
        value = self.v_proj(hidden).view(batch, length, self.key_heads, -1).transpose(1, 2)
        query = rotate(self.q_norm(query).transpose(1, 2), cosine, sine)
        key = rotate(self.k_norm(key).transpose(1, 2), cosine, sine)
        group = self.query_heads // self.key_heads
        key = key.repeat_interleave(group, dim=1).to(value.dtype)
        value = value.repeat_interleave(group, dim=1)
        mixed = functional.scaled_dot_product_attention(
            query.to(value.dtype), key, value, attn_mask=visible
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Experts(nn.Module):
    """Router and experts. Also keeps the load-balancing loss and the load of the last call."""

    def __init__(self):
        super().__init__()
        width, inner = CONFIG["hidden_size"], CONFIG["moe_intermediate_size"]
        self.count, self.per_token = CONFIG["num_experts"], CONFIG["num_experts_per_tok"]
        self.gate = linear(width, self.count)
        self.gate_up = nn.Parameter(torch.randn(self.count, 2 * inner, width) * 0.04)
        self.down = nn.Parameter(torch.randn(self.count, width, inner) * 0.02)
        self.balance_loss = None
        self.load = None

    def route(self, tokens, is_real):
        """weights, experts  # [tokens, per_token]"""
        with torch.autocast(tokens.device.type, enabled=False):
            scores = functional.linear(tokens.float(), self.gate.weight).softmax(dim=-1)
        weights, experts = scores.topk(self.per_token, dim=-1)
        real = is_real.to(scores.dtype)
        chosen = torch.zeros_like(scores).scatter_(1, experts, 1.0)
        self.load = real @ chosen
        share = self.load / self.load.sum()
        self.balance_loss = self.count * (share * (real @ scores)).sum() / real.sum()
        return weights / weights.sum(dim=-1, keepdim=True), experts

    def take_balance_loss(self):
        """That of the last call; nothing of the call is kept alive."""
        loss, self.balance_loss = self.balance_loss, None
        return loss

    def forward(self, tokens, is_real):
        weights, experts = self.route(tokens, is_real)
        experts, order = experts.flatten().sort()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        numbers = torch.arange(self.count, device=order.device)
        ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)
        kind = torch.get_autocast_dtype(tokens.device.type)
        gathered = tokens.to(kind).index_select(0, order // self.per_token)
        gate_up = functional.grouped_mm(gathered, self.gate_up.to(kind).mT, offs=ends)
        gate, up = gate_up.chunk(2, dim=-1)
        inner = functional.silu(gate) * up
        results = functional.grouped_mm(inner, self.down.to(kind).mT, offs=ends)
        results = results.index_select(0, place).view(*weights.shape, -1)
        return (results * weights.to(kind).unsqueeze(-1)).sum(dim=1)


class Layer(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.input_layernorm = RmsNorm(CONFIG["hidden_size"])
        self.self_attn = Attention()
        self.post_attention_layernorm = RmsNorm(CONFIG["hidden_size"])
        self.mlp = Experts()
        self.dropout = dropout

    def forward(self, hidden, is_real, visible, cosine, sine):
        attended = self.self_attn(self.input_layernorm(hidden), visible, cosine, sine)
        hidden = hidden + drop_channels(attended, self.dropout, self.training)
        tokens = self.post_attention_layernorm(hidden)
        mixed = self.mlp(tokens.flatten(0, 1), is_real.flatten()).view_as(hidden)
        return hidden + drop_channels(mixed, self.dropout, self.training)


class Model(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = RmsNorm(CONFIG["hidden_size"])
        self.dropout = dropout
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        for name, weight in self.named_parameters():
            if name.endswith("_proj.weight") or name.endswith("gate.weight"):
                nn.init.normal_(weight, std=0.02 if "o_proj" in name else 0.04)

    def forward(self, tokens, texts):
        """Final hidden states  # [batch, length, width]; `texts` numbers each token's text  #
        [batch, length]"""
        length = tokens.shape[1]
        cosine, sine = rotary_tables(length, tokens.device)
        past = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        visible = (texts[:, None, :, None] == texts[:, None, None, :]) & past
        hidden = drop_channels(self.embed_tokens(tokens), self.dropout, self.training)
        for layer in self.layers:
            hidden = layer(hidden, texts > 0, visible, cosine, sine)
        return self.norm(hidden)

    def token_logits(self, hidden):
        return functional.linear(hidden, self.embed_tokens.weight)


def huggingface_weights(state):
    """Our weights under the names of a Qwen3-MoE checkpoint: one tensor for each expert."""
    weights = {}
    for name, weight in state.items():
        if name.endswith("mlp.gate_up"):
            for index, expert in enumerate(weight):
                prefix = f"model.{name[: -len('gate_up')]}experts.{index}"
                gate, up = expert.chunk(2)
                weights[f"{prefix}.gate_proj.weight"] = gate.contiguous()
                weights[f"{prefix}.up_proj.weight"] = up.contiguous()
        elif name.endswith("mlp.down"):
            for index, expert in enumerate(weight):
                prefix = f"model.{name[: -len('down')]}experts.{index}"
                weights[f"{prefix}.down_proj.weight"] = expert.contiguous()
        else:
            weights[f"model.{name}"] = weight.contiguous()
    return weights
