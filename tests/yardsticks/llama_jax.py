"""Yardstick: CPU seconds per training step of a small Llama in JAX, on the shapes that `--example speed` trains.

    pip install jax==0.10.2 optax; taskset -c 0 python llama_jax.py

One step is 8 sequences of 128 bytes, forward, backward and AdamW, compiled by XLA. Prints one JSON object.
"""
import json
import resource
import time

import jax
import jax.numpy as jnp
import optax

VOCABULARY, WIDTH, LAYERS, HEADS, FEED, CONTEXT, BATCH = 256, 256, 4, 4, 688, 128, 8
HEAD = WIDTH // HEADS
keys = iter(jax.random.split(jax.random.PRNGKey(0), 64))


def matrix(rows, columns):
    return jax.random.normal(next(keys), (rows, columns)) * 0.7 * rows**-0.5


weights = {
    "embedding": matrix(VOCABULARY, WIDTH),
    "head": matrix(WIDTH, VOCABULARY),
    "norm": jnp.ones(WIDTH),
    "layers": [
        {
            "attention_norm": jnp.ones(WIDTH), "feed_norm": jnp.ones(WIDTH),
            "q": matrix(WIDTH, WIDTH), "k": matrix(WIDTH, WIDTH), "v": matrix(WIDTH, WIDTH), "o": matrix(WIDTH, WIDTH),
            "gate": matrix(WIDTH, FEED), "up": matrix(WIDTH, FEED), "down": matrix(FEED, WIDTH),
        }
        for _ in range(LAYERS)
    ],
}
angles = jnp.outer(jnp.arange(CONTEXT), 1e4 ** (-jnp.arange(HEAD // 2) / (HEAD // 2)))
cosine, sine = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
mask = jnp.tril(jnp.ones((CONTEXT, CONTEXT), bool))


def norm(x, gain):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * gain


def rotate(x):
    one, other = x[..., 0::2], x[..., 1::2]
    return jnp.stack((one * cosine - other * sine, one * sine + other * cosine), -1).reshape(x.shape)


def loss(w, tokens):
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x = w["embedding"][inputs]
    for layer in w["layers"]:
        h = norm(x, layer["attention_norm"])
        q, k, v = ((h @ layer[name]).reshape(BATCH, CONTEXT, HEADS, HEAD) for name in "qkv")
        scores = jnp.einsum("sihe,sjhe->shij", rotate(q), rotate(k)) * HEAD**-0.5
        mixed = jnp.einsum("shij,sjhe->sihe", jax.nn.softmax(jnp.where(mask, scores, -1e9)), v)
        x = x + mixed.reshape(BATCH, CONTEXT, WIDTH) @ layer["o"]
        h = norm(x, layer["feed_norm"])
        x = x + (jax.nn.silu(h @ layer["gate"]) * (h @ layer["up"])) @ layer["down"]
    logits = norm(x, w["norm"]) @ w["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b1=0.9, b2=0.95, weight_decay=0.1))
state = optimiser.init(weights)
tokens = jax.random.randint(next(keys), (BATCH, CONTEXT + 1), 0, VOCABULARY)


@jax.jit
def step(w, state, tokens):
    value, gradient = jax.value_and_grad(loss)(w, tokens)
    update, state = optimiser.update(gradient, state, w)
    return optax.apply_updates(w, update), state, value


weights, state, value = step(weights, state, tokens)
value.block_until_ready()
before, began, steps = resource.getrusage(resource.RUSAGE_SELF), time.time(), 15
for _ in range(steps):
    weights, state, value = step(weights, state, tokens)
value.block_until_ready()
after = resource.getrusage(resource.RUSAGE_SELF)
spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({
    "cpu_seconds_per_step": spent / steps, "seconds_per_step": (time.time() - began) / steps,
    "parameters": sum(leaf.size for leaf in jax.tree_util.tree_leaves(weights)), "jax": jax.__version__,
}))
