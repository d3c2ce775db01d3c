"""An ordinary customer: OpenAI's own Python package, unmodified, against a served model.

Owns what such a client must be able to do. Must never know that it talks to Skein.

Usage: openai_client.py BASE_URL MODEL
Prints one JSON object. Exits 77 if the package is not there.
"""

import json
import sys

try:
    import openai
except ImportError:
    sys.exit(77)

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=60)

assert [listed.id for listed in client.models.list()] == [model]

request = {"model": model, "prompt": "To be, or not", "max_tokens": 24, "temperature": 0}
whole = client.completions.create(**request)
choice = whole.choices[0]
assert choice.finish_reason == "length", choice
assert whole.usage.prompt_tokens == 13 and whole.usage.completion_tokens == 24, whole.usage
assert whole.object == "text_completion" and whole.model == model and whole.id.startswith("cmpl-")

pieces = list(client.completions.create(**request, stream=True))
streamed = "".join(piece.choices[0].text for piece in pieces)
assert streamed == choice.text, (streamed, choice.text)
assert [piece.choices[0].finish_reason for piece in pieces][-1] == "length"
assert all(piece.choices[0].finish_reason is None for piece in pieces[:-1])

# The same seed draws the same text, streamed or not; other ways to say the same prompt are the same prompt.
drawn = {**request, "temperature": 1.0, "top_p": 0.9, "seed": 7}
first = client.completions.create(**drawn).choices[0].text
assert client.completions.create(**drawn).choices[0].text == first
assert "".join(piece.choices[0].text for piece in client.completions.create(**drawn, stream=True)) == first
listed = client.completions.create(**{**request, "prompt": [request["prompt"]]})
assert listed.choices[0].text == choice.text
tokens = client.completions.create(**{**request, "prompt": list(request["prompt"].encode())})
assert tokens.choices[0].text == choice.text

# A stop string ends the text before it.
stop = choice.text[10:12]
if "\ufffd" not in choice.text:
    stopped = client.completions.create(**request, stop=stop).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text == choice.text[: choice.text.index(stop)]


def refused(kind, **changes):
    try:
        client.completions.create(**{**request, **changes})
    except kind as error:
        body = error.body
        assert isinstance(body, dict) and body["message"] and body["type"], body
        return body["message"]
    raise AssertionError(f"{changes} was taken")


errors = {
    "model": refused(openai.NotFoundError, model="nobody"),
    "temperature": refused(openai.BadRequestError, temperature=3),
    "max_tokens": refused(openai.BadRequestError, max_tokens=100_000),
    "prompt": refused(openai.BadRequestError, prompt=""),
    "n": refused(openai.BadRequestError, n=2),
}
print(json.dumps({"ok": True, "version": openai.__version__, "text": choice.text, "pieces": len(pieces), "errors": errors}))
