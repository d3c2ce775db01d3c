"""Computes loss and gradients again in PyTorch, from the weights and the batch in safetensors files, and prints for each
file the greatest relative error of the loss and of any tensor's gradient (L2 of the difference over L2).

    python3 gradients.py FILE...

The decoder is written from the published definitions of Llama, Qwen and Gemma; nothing of Skein is used.
"""
import json
import struct
import sys

import torch
import torch.nn.functional as F


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    case = json.loads(header.pop("__metadata__")["case"])
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        flat = torch.frombuffer(bytearray(data[start:end]), dtype=torch.float32)
        tensors[name] = flat.reshape(entry["shape"]).clone()
    return case, tensors


def rotate(x, case, base, scale):
    """x is [sequence, place, head, element]."""
    pairs = case["head_width"] // 2
    frequencies = base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    if case["factors"]:
        frequencies = frequencies / torch.tensor(case["factors"], dtype=torch.float64)
    angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float64) / scale, frequencies)
    cosine, sine = (f(angles).float()[None, :, None, :] for f in (torch.cos, torch.sin))
    if case["style"] == "adjacent":
        one, other = x[..., 0::2], x[..., 1::2]
        return torch.stack((one * cosine - other * sine, one * sine + other * cosine), -1).flatten(-2)
    one, other = x[..., :pairs], x[..., pairs:]
    return torch.cat((one * cosine - other * sine, one * sine + other * cosine), -1)


def loss(case, w):
    context, heads, kv_heads, width = (case[key] for key in ("context", "heads", "kv_heads", "head_width"))
    inputs, targets = (torch.tensor(case[key]).reshape(-1, context) for key in ("inputs", "targets"))

    def norm(x, gain):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + case["epsilon"]) * gain.reshape(-1)

    def linear(x, name):
        y = x @ w[name + ".weight"].T
        if name + ".weight.lora_a" in w:
            y = y + x @ w[name + ".weight.lora_a"].T @ w[name + ".weight.lora_b"].T * (case["alpha"] / case["rank"])
        return y + w[name + ".bias"].reshape(-1) if name + ".bias" in w else y

    x = F.embedding(inputs, w["token_embd.weight"]) * case["embedding_scale"]
    for layer in range(case["layers"]):
        part = lambda name: f"blk.{layer}.{name}"
        window = case["windows"][layer]
        base, scale = (case["window_base"], 1.0) if window else (case["base"], case["scale"])
        h = norm(x, w[part("attn_norm.weight")])
        q, k, v = (
            linear(h, part(f"attn_{kind}")).reshape(*h.shape[:2], count, width)
            for kind, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        if part("attn_q_norm.weight") in w:
            q, k = norm(q, w[part("attn_q_norm.weight")]), norm(k, w[part("attn_k_norm.weight")])
        q, k = rotate(q, case, base, scale), rotate(k, case, base, scale)
        k, v = (t.repeat_interleave(heads // kv_heads, 2) for t in (k, v))
        scores = torch.einsum("sihe,sjhe->shij", q, k) * case["query_scale"]
        if case["score_cap"]:
            scores = case["score_cap"] * torch.tanh(scores / case["score_cap"])
        place = torch.arange(context)
        seen = place[None, :] <= place[:, None]
        if window:
            seen &= place[:, None] - place[None, :] < window
        mixed = torch.einsum("shij,sjhe->sihe", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)
        h = linear(mixed.flatten(2), part("attn_output"))
        if part("post_attention_norm.weight") in w:
            h = norm(h, w[part("post_attention_norm.weight")])
        x = x + h
        h = norm(x, w[part("ffn_norm.weight")])
        gate = linear(h, part("ffn_gate"))
        gate = F.gelu(gate, approximate="tanh") if case["gelu"] else F.silu(gate)
        h = linear(gate * linear(h, part("ffn_up")), part("ffn_down"))
        if part("post_ffw_norm.weight") in w:
            h = norm(h, w[part("post_ffw_norm.weight")])
        x = x + h
    logits = norm(x, w["output_norm.weight"]) @ w["token_embd.weight" if case["tied"] else "output.weight"].T
    if case["logit_cap"]:
        logits = case["logit_cap"] * torch.tanh(logits / case["logit_cap"])
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses[torch.tensor(case["counts"])].mean()


for path in sys.argv[1:]:
    case, tensors = read(path)
    given = {name.removeprefix("gradient."): t for name, t in tensors.items() if name.startswith("gradient.")}
    weights = {name: t.requires_grad_(name in given) for name, t in tensors.items() if not name.startswith("gradient.")}
    value = loss(case, weights)
    value.backward()
    worst = abs(value.item() / case["loss"] - 1)
    for name, gradient in given.items():
        theirs = weights[name].grad
        worst = max(worst, ((gradient - theirs).norm() / theirs.norm()).item())
    print(f"{case['name']}: {len(given)} tensors, greatest relative error {worst:.2e}")
