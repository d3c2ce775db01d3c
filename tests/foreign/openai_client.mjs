// An ordinary customer: OpenAI's own JavaScript package, unmodified, against a served language model.
//
// Owns what such a client must be able to do. Must never know that it talks to Skein.
//
// Usage: node openai_client.mjs NODE_MODULES BASE_URL MODEL
// The model is SmolLM2-135M-Instruct. Prints one JSON object. Exits 77 if the package is not there.

import assert from "node:assert/strict";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [modules, baseURL, model] = process.argv.slice(2);
const load = (file) => import(pathToFileURL(path.join(path.resolve(modules), "openai", file)).href);
const { default: OpenAI, VERSION } = await load("index.mjs")
    .then(async (main) => ({ default: main.default, VERSION: (await load("version.mjs")).VERSION }))
    .catch((error) => (error.code === "ERR_MODULE_NOT_FOUND" ? process.exit(77) : Promise.reject(error)));

// The first request waits for the model to be loaded.
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 300_000 });

async function refused(kind, promise) {
    const error = await promise.then(
        () => assert.fail("it was taken"),
        (error) => error,
    );
    assert.ok(error instanceof kind, String(error));
    return { status: error.status, param: error.param, code: error.code, message: error.error.message };
}

const listed = [];
for await (const one of client.models.list()) listed.push(one.id);
assert.deepEqual(listed, [model]);
assert.equal((await client.models.retrieve(model)).id, model);

const request = {
    model,
    messages: [{ role: "user", content: "Say hello." }],
    temperature: 0,
};
const whole = await client.chat.completions.create(request);
const { message, finish_reason } = whole.choices[0];
assert.equal(finish_reason, "stop");
assert.equal(message.role, "assistant");
assert.match(message.content, /Hello/);
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);

let streamed = "";
const chunks = [];
for await (const chunk of await client.chat.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
})) {
    chunks.push(chunk);
    streamed += chunk.choices[0]?.delta.content ?? "";
}
assert.equal(streamed, message.content);
assert.equal(chunks[0].choices[0].delta.role, "assistant");
assert.deepEqual(chunks.at(-1).usage, whole.usage);
assert.equal(chunks.at(-2).choices[0].finish_reason, "stop");

// The client's own accumulator agrees.
const runner = client.chat.completions.stream(request);
assert.equal(await runner.finalContent(), message.content);

const drawn = { ...request, temperature: 1.5, max_completion_tokens: 12, n: 3, seed: 7 };
const texts = (answer) => answer.choices.map((choice) => choice.message.content);
const three = texts(await client.chat.completions.create(drawn));
assert.equal(new Set(three).size, 3);
assert.deepEqual(texts(await client.chat.completions.create(drawn)), three);

const likely = await client.chat.completions.create({ ...request, max_tokens: 4, logprobs: true, top_logprobs: 2 });
const entries = likely.choices[0].logprobs.content;
assert.equal(entries.map((entry) => entry.token).join(""), likely.choices[0].message.content);
assert.ok(entries.every((entry) => entry.top_logprobs.length === 2 && entry.top_logprobs[0].token === entry.token));

const prompt = "The capital of France is";
const completion = { model, prompt, max_tokens: 24, temperature: 0 };
const completed = await client.completions.create(completion);
assert.equal(completed.choices[0].finish_reason, "length");
assert.equal(completed.usage.completion_tokens, 24);
let pieces = "";
for await (const piece of await client.completions.create({ ...completion, stream: true })) {
    pieces += piece.choices[0].text;
}
assert.equal(pieces, completed.choices[0].text);
const stop = pieces.slice(10, 15);
const stopped = await client.completions.create({ ...completion, stop });
assert.equal(stopped.choices[0].finish_reason, "stop");
assert.equal(stopped.choices[0].text, pieces.slice(0, pieces.indexOf(stop)));

// Whoever aborts a stream is not in the way of others: each of these would take the room of a whole context.
for (let at = 0; at < 6; at += 1) {
    const stream = await client.completions.create({ model, prompt: "1, 2, 3, 4,", max_tokens: 8_000, stream: true });
    for await (const _ of stream) break;
}
const after = await client.completions.create({ ...completion, max_tokens: 2 }, { timeout: 60_000 });
assert.equal(after.usage.completion_tokens, 2);

const bad = (changes) => client.chat.completions.create({ ...request, ...changes });
const errors = {
    model: await refused(OpenAI.NotFoundError, bad({ model: "nobody" })),
    temperature: await refused(OpenAI.BadRequestError, bad({ temperature: -1 })),
    max_tokens: await refused(OpenAI.BadRequestError, bad({ max_tokens: 100_000 })),
    response_format: await refused(OpenAI.BadRequestError, bad({ response_format: { type: "json_object" } })),
};
console.log(JSON.stringify({ ok: true, version: VERSION, text: message.content, errors }));
