"""Scores what `skein run` wrote with Hugging Face's own libraries.

    python3 tests/foreign/huggingface.py TEXT MODEL [ADAPTER]

TEXT is the text that a byte-level model was trained on, MODEL the output folder, ADAPTER that of an adapter tuned on it.
Prints the mean loss in nats per byte over the windows that `report.json` calls held out. Needs transformers, torch, and
for an adapter peft; nothing of ours.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

# As in agent/compute: so many tokens of the last tenth are held out, in evenly spaced windows.
HELD_OUT_TOKENS = 8192


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    text, folder = Path(sys.argv[1]).read_bytes(), sys.argv[2]
    model = AutoModelForCausalLM.from_pretrained(folder)
    if len(sys.argv) == 4:
        from peft import PeftModel

        folder = sys.argv[3]
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    report = json.loads((Path(folder) / "report.json").read_text())
    context = report["settings"]["context"]
    held_out = text[len(text) - len(text) // 10 :]
    room = len(held_out) - (context + 1)
    count = min(max(HELD_OUT_TOKENS // context, 1), room // context + 1)
    starts = [window * room // (count - 1) for window in range(count)] if count > 1 else [0]
    total = 0.0
    with torch.no_grad():
        for start in starts:
            window = torch.tensor([list(held_out[start : start + context + 1])])
            logits = model(window[:, :-1]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    print(f"here {total / (count * context):.6f}, in the report {report['held_out_nats_per_token']:.6f}")


main()
