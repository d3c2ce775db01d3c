"""Writes blocks.txt: blocks of every type with the numbers that ggml's own reference (gguf-py) makes of them.

Each line: `dequantize TYPE BLOCKS NUMBERS` or `quantize TYPE NUMBERS BLOCKS`, in hexadecimal, numbers as f32
little-endian. Run as: PYTHONPATH=llama.cpp/gguf-py python3 blocks.py > blocks.txt (needs numpy, pyyaml, tqdm, requests).
"""

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

random = np.random.default_rng(3)
# Where the f16 scales of each type are.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip
# One usual, one negative, one below the normal numbers of f16.
EXAMPLES = [0.0123, -1.75, 3e-6]

for name in ["F32", "F16", "BF16", *SCALES]:
    kind = Type[name]
    length, size = GGML_QUANT_SIZES[kind]
    if name in SCALES:
        count = 3 if length == 32 else 2
        blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
        for number, block in enumerate(blocks):
            for at in SCALES[name]:
                block[at : at + 2] = np.array([EXAMPLES[(number + at) % 3]], np.float16).view(np.uint8)
    else:
        numbers = np.array([0, -0.0, 1, -1.7, 6e-8, 65504, 1 / 3, -3e-5], np.float32)
        blocks = {"F32": numbers, "F16": numbers.astype(np.float16)}.get(name)
        blocks = quantize(numbers, kind) if blocks is None else blocks
        blocks = blocks.reshape(1, -1).view(np.uint8)
    numbers = dequantize(blocks, kind).astype("<f4")
    print("dequantize", name, blocks.tobytes().hex(), numbers.tobytes().hex())

for name in ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]:
    numbers = random.standard_normal((3, 32)).astype(np.float32)
    numbers[1] = 0
    numbers[2] *= 1e-3
    blocks = quantize(numbers, Type[name])
    print("quantize", name, numbers.astype("<f4").tobytes().hex(), blocks.tobytes().hex())
