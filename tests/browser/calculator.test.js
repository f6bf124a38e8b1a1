// The calculator: its numbers are the library's, its link restores it, and what is no configuration is said to be none.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";

import { launch, open, site, watched } from "./launch.js";

// Plans that the library made natively for the queries of the same run.
const plans = JSON.parse(await readFile(process.env.HALFBYTE_PLANS, "utf8"));

let browser, context, page, faults;
before(async () => {
  browser = await launch({ webgpu: false });
  context = await browser.newContext({ serviceWorkers: "block" });
  ({ page, faults } = await watched(context));
});
after(() => browser.close());

const needed = () => page.textContent("#needed");
// The address follows after a pause.
const settled = (part) => page.waitForURL((url) => url.search.includes(part));

for (const { query, needed: bytes, lines } of plans) {
  test(`numbers of ${query} are the library's`, async () => {
    await open(page, `calculator/?${query}`);
    assert.equal(await needed(), bytes);
    const rows = await page.$$eval(".table tbody tr:not(.phase)", (all) => all.map((row) => [...row.cells].map((cell) => cell.textContent)));
    assert.deepEqual(rows, lines);
    assert.deepEqual(faults, []);
  });
}

test("a link restores every setting", async () => {
  await open(page, "calculator/");
  await page.getByLabel("Model", { exact: true }).selectOption("mistral-7b-v0.3");
  await page.getByText("LoRA", { exact: true }).click();
  await page.getByLabel("Rank of the adapters").fill("6");
  await page.getByText("q_proj", { exact: true }).click();
  await page.getByLabel("Length of a row").press("ArrowRight");
  await page.getByText("kept", { exact: true }).click();
  await page.getByText("AdamW in 8 bits", { exact: true }).click();
  await page.getByText("More settings").click();
  await page.getByText("f32", { exact: true }).click();
  await page.getByText("Dropout on the adapters").click();
  await page.getByRole("button", { name: /^L40S/ }).click();
  await settled("gpu=L40S");
  const [link, before] = [page.url(), await page.textContent("main")];
  for (const part of ["model=mistral-7b-v0.3", "method=lora", "rank=64", "length=3072", "recompute=false", "optimizer=adamw8bit", "dtype=f32", "dropout=true"]) {
    assert.ok(link.includes(part), `${part} in ${link}`);
  }
  const other = await watched(context);
  await other.page.goto(link);
  await other.page.waitForSelector("html[data-ready] #needed");
  assert.equal(await other.page.textContent("main"), before);
  await other.page.close();
  assert.deepEqual(faults, []);
});

test("a GPU without bf16 holds runs in f32 alone", async () => {
  const share = () => page.locator(".gpu", { hasText: /^T4/ }).locator(".share").textContent();
  await open(page, "calculator/?length=512");
  assert.equal(await share(), "no bf16 here");
  await page.getByText("More settings").click();
  await page.getByText("f32", { exact: true }).click();
  await settled("dtype=f32");
  assert.match(await share(), /^\d+%$/);
});

test("a configuration is read from its text, and its link restores it", async () => {
  await open(page, "calculator/?model=qwen3-8b");
  const known = await needed();
  await page.getByText("config.json", { exact: true }).first().click();
  const config = { model_type: "qwen3", vocab_size: 151936, hidden_size: 4096, intermediate_size: 12288, num_hidden_layers: 36, num_attention_heads: 32, num_key_value_heads: 8, rope_theta: 1e6, torch_dtype: "bfloat16" };
  await page.getByLabel("The model's config.json").fill(JSON.stringify({ ...config, num_hidden_layers: 18 }));
  const half = await needed();
  assert.ok(parseFloat(half) < parseFloat(known), `${half} of ${known}`);
  await page.getByLabel("The model's config.json").fill(JSON.stringify(config));
  assert.equal(await needed(), known);
  await settled("num_hidden_layers%22%3A36");
  const other = await watched(context);
  await other.page.goto(page.url());
  await other.page.waitForSelector("html[data-ready] #needed");
  assert.equal(await other.page.textContent("#needed"), known);
  await other.page.close();
});

test("what is no configuration is refused in the library's words", async () => {
  await open(page, "calculator/");
  await page.getByText("config.json", { exact: true }).first().click();
  for (const [text, words] of [
    ["{ not JSON", "key must be a string at line 1 column 3"],
    ['{"model_type": "llama"}', "missing field `vocab_size`"],
    ['{"vocab_size": 1e99, "hidden_size": -4}', "invalid type"],
    ['{"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 99999, "num_attention_heads": 2}', "`num_hidden_layers` is 99999; it must lie in 1..=4096"],
  ]) {
    await page.getByLabel("The model's config.json").fill(text);
    assert.match(await page.getByRole("alert").textContent(), new RegExp(words.replace(/[.{}]/g, "\\$&")));
    assert.equal(await needed(), "-");
  }
  assert.deepEqual(faults, []);
});

test("the hub is asked only on demand, and only for the configuration", async () => {
  const asked = [];
  await page.route("https://huggingface.co/**", (route) => {
    asked.push(route.request().url());
    const answers = { "/org/gated": { status: 401 }, "/org/model": { json: { model_type: "llama", vocab_size: 32000, hidden_size: 512, intermediate_size: 1024, num_hidden_layers: 2, num_attention_heads: 8 } } };
    const known = Object.entries(answers).find(([path]) => route.request().url().includes(path));
    return route.fulfill({ headers: { "access-control-allow-origin": "*" }, ...(known?.[1] ?? { status: 404 }) });
  });
  await open(page, "calculator/");
  await page.getByText("Hugging Face", { exact: true }).click();
  const name = page.getByLabel("Name on the hub");
  await name.fill("org/model@v1");
  assert.deepEqual(asked, []);
  await page.getByRole("button", { name: "Fetch" }).click();
  await page.getByText("org/model@v1:").waitFor();
  assert.deepEqual(asked, ["https://huggingface.co/org/model/resolve/v1/config.json"]);
  await settled("origin=org");
  for (const [wrong, words] of [["org/gated", /accounts/], ["org/missing", /no config\.json/], ["../../etc", /is not a name of the hub/]]) {
    await name.fill(wrong);
    await name.press("Enter");
    await page.getByRole("alert").filter({ hasText: words }).waitFor();
  }
  assert.equal(asked.length, 3);
  await page.unroute("https://huggingface.co/**");
});
