"""An ordinary customer: OpenAI's own Python package, unmodified, against a served language model.

Owns what such a client must be able to do. Must never know that it talks to Skein.

Usage: openai_client.py BASE_URL MODEL
The model is SmolLM2-135M-Instruct. Prints one JSON object. Exits 77 if the package is not there.
"""

import asyncio
import json
import sys
import time

try:
    import openai
except ImportError:
    sys.exit(77)

base_url, model = sys.argv[1:]
# The first request waits for the model to be loaded.
client = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=300)


def refused(kind, send, **request):
    """The error that this request gives, as its client sees it."""
    try:
        send(**request)
    except kind as error:
        assert isinstance(error.body, dict) and error.body["message"] and error.body["type"], error.body
        return {"param": error.param, "code": error.code, "message": error.body["message"]}
    raise AssertionError(f"{request} was taken")


def models():
    assert [listed.id for listed in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model
    return {"retrieve": refused(openai.NotFoundError, client.models.retrieve, model="nobody")}


def chat():
    ask = client.chat.completions.create
    messages = [
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": "Who wrote "}, {"type": "text", "text": "Hamlet?"}]},
    ]
    request = {"model": model, "messages": messages, "temperature": 0}
    whole = ask(**request)
    choice = whole.choices[0]
    assert whole.object == "chat.completion" and whole.id.startswith("chatcmpl-") and whole.model == model
    assert abs(whole.created - time.time()) < 600 and whole.system_fingerprint.startswith("fp_")
    assert choice.message.role == "assistant" and "Shakespeare" in choice.message.content, choice
    # The model ends its answer by itself, long before the context does.
    assert choice.finish_reason == "stop" and choice.index == 0 and choice.logprobs is None
    usage = whole.usage
    assert usage.prompt_tokens > 20 and 0 < usage.completion_tokens < 200
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens

    chunks = list(ask(**request, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].object == "chat.completion.chunk"
    *told, last = chunks
    assert last.choices == [] and last.usage == usage and all(chunk.usage is None for chunk in told)
    deltas = [chunk.choices[0].delta for chunk in told]
    assert deltas[0].role == "assistant" and all(delta.role is None for delta in deltas[1:])
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content
    reasons = [chunk.choices[0].finish_reason for chunk in told]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
    assert len(told) > 4, "it came at once"

    # The client's own accumulator agrees.
    with client.chat.completions.stream(**request) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == choice.message.content

    short = ask(**request, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    stopped = ask(**request, stop=["Shakespeare"]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == choice.message.content[: choice.message.content.index("Shakespeare")]

    likely = ask(**request, max_tokens=8, logprobs=True, top_logprobs=3).choices[0]
    entries = likely.logprobs.content
    assert len(entries) == 8 and b"".join(bytes(entry.bytes) for entry in entries).decode() == likely.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3 and entry.logprob <= 0
        # At temperature 0 the likeliest token is taken.
        assert entry.top_logprobs[0].token == entry.token and entry.top_logprobs[0].logprob == entry.logprob
        logprobs = [other.logprob for other in entry.top_logprobs]
        assert logprobs == sorted(logprobs, reverse=True)
    streamed = list(ask(**request, max_tokens=8, logprobs=True, top_logprobs=3, stream=True))
    pieces = [chunk.choices[0].logprobs for chunk in streamed if chunk.choices[0].logprobs]
    assert [entry for piece in pieces for entry in piece.content] == entries

    # Three choices of one seed differ, and are the same again; the second of seed 7 is the first of seed 8.
    drawn = {**request, "temperature": 1.5, "max_tokens": 12}
    texts = lambda answer: [choice.message.content for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    three = ask(**drawn, n=3, seed=7)
    assert [choice.index for choice in three.choices] == [0, 1, 2] and len(set(texts(three))) == 3
    assert texts(ask(**drawn, n=3, seed=7)) == texts(three)
    assert texts(ask(**drawn, seed=8))[0] == texts(three)[1]
    assert three.usage.prompt_tokens == usage.prompt_tokens and 3 <= three.usage.completion_tokens <= 36
    streamed = ["", "", ""]
    for chunk in ask(**drawn, n=3, seed=7, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts(three)

    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org"}}]}]
    tool = {"type": "function", "function": {"name": "now", "parameters": {}}}
    bad = {
        "chat_model": {"model": "nobody"},
        "image": {"messages": image},
        "role": {"messages": [{"role": "king", "content": "Obey."}]},
        "tools": {"tools": [tool]},
        "response_format": {"response_format": {"type": "json_object"}},
        "chat_penalty": {"frequency_penalty": 1},
        "top_logprobs": {"top_logprobs": 2},
        "context": {"messages": [{"role": "user", "content": "word " * 60_000}]},
    }
    kind = lambda about: openai.NotFoundError if about == "chat_model" else openai.BadRequestError
    errors = {about: refused(kind(about), ask, **{**request, **changes}) for about, changes in bad.items()}
    return choice.message.content, errors


def completions():
    ask = client.completions.create
    prompt, tokens = "The capital of France is", [504, 3575, 282, 4649, 314]
    request = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0}
    whole = ask(**request)
    choice = whole.choices[0]
    assert whole.object == "text_completion" and whole.id.startswith("cmpl-") and whole.model == model
    assert choice.finish_reason == "length" and choice.text
    assert whole.usage.prompt_tokens == 5 and whole.usage.completion_tokens == 24, whole.usage
    assert ask(**{**request, "max_tokens": openai.omit}).usage.completion_tokens == 16

    pieces = list(ask(**request, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == choice.text
    assert [piece.choices[0].finish_reason for piece in pieces][-1] == "length"
    assert all(piece.choices[0].finish_reason is None for piece in pieces[:-1])

    # Other ways to say the same prompt are the same prompt.
    for same in [[prompt], tokens, [tokens]]:
        assert ask(**{**request, "prompt": same}).choices[0].text == choice.text
    assert ask(**request, echo=True).choices[0].text == prompt + choice.text
    assert ask(**{**request, "prompt": tokens}, echo=True).choices[0].text == prompt + choice.text

    # Choices stand prompt by prompt, and each is what the prompt alone would give.
    drawn = {**request, "temperature": 1.0, "top_p": 0.9, "seed": 7}
    alone = [ask(**{**drawn, "prompt": one}, n=2) for one in [prompt, "Once upon a time"]]
    both = ask(**{**drawn, "prompt": [prompt, "Once upon a time"]}, n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices] == [choice.text for one in alone for choice in one.choices]
    assert both.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)

    likely = ask(**request, logprobs=2).choices[0]
    logprobs = likely.logprobs
    assert "".join(logprobs.tokens) == likely.text == choice.text and len(logprobs.tokens) == 24
    for token, logprob, top, offset in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset, strict=True
    ):
        assert len(top) == 2 and top[token] == logprob == max(top.values())
        assert (prompt + likely.text)[offset:].startswith(token)

    # A stop string ends the text before it, wherever tokens cut it.
    stop = choice.text[10:15]
    stopped = ask(**request, stop=stop).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text == choice.text[: choice.text.index(stop)]
    streamed = "".join(piece.choices[0].text for piece in ask(**request, stop=[stop, "\0"], stream=True))
    assert streamed == stopped.text

    bad = {
        "temperature": {"temperature": 3},
        "top_p": {"top_p": -1},
        "max_tokens": {"max_tokens": 100_000},
        "prompt": {"prompt": ""},
        "token": {"prompt": [1, 49_152]},
        "n": {"n": 17},
        "choices": {"prompt": ["a"] * 65, "n": 2},
        "stop": {"stop": ["a"] * 5},
        "logprobs": {"logprobs": 6},
        "presence_penalty": {"presence_penalty": 1},
        "logit_bias": {"logit_bias": {"50256": -100}},
    }
    return {about: refused(openai.BadRequestError, ask, **{**request, **changes}) for about, changes in bad.items()}


async def crowd():
    """More streams than there is room for: some run, some wait, the others are told to come back later."""
    busy = openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=300)
    request = {"model": model, "prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 8_000, "stream": True}
    outcomes = await asyncio.gather(
        *(busy.completions.create(**request) for _ in range(110)), return_exceptions=True
    )
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    streams = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    assert errors and all(isinstance(error, openai.RateLimitError) for error in errors), errors[:3]
    assert errors[0].code == "rate_limit_exceeded" and int(errors[0].response.headers["retry-after"]) > 0
    # One of those that were let in does get tokens.
    async with asyncio.timeout(60):
        first = asyncio.ensure_future
        waiting = [first(anext(aiter(stream))) for stream in streams]
        done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert all(one.exception() is None for one in done)
    for one in rest:
        one.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for stream in streams:
        await stream.close()
    # All of them went away: there is room at once. (Otherwise 8,000 tokens would have to be waited for.)
    async with asyncio.timeout(60):
        answer = await busy.completions.create(**{**request, "max_tokens": 5, "stream": False})
    assert answer.usage.completion_tokens == 5
    await busy.close()
    return {"let in": len(streams), "refused": len(errors)}


errors = models()
text, more = chat()
errors |= more | completions()
crowded = asyncio.run(crowd())
print(json.dumps({"ok": True, "version": openai.__version__, "text": text, "errors": errors, "crowd": crowded}))
