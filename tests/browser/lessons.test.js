// The lessons: every control changes what is shown, numbers are those of formulas worked out here, a prediction is asked for
// before its answer, the task knows when it is solved, and the address restores all of it.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";

import { launch, open, watched } from "./launch.js";

let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

// What a reader sees besides the controls themselves: words, curves, pictures.
const seen = (page) => page.evaluate(() => {
  const main = document.querySelector("main").cloneNode(true);
  main.querySelectorAll(".field").forEach((field) => field.remove());
  const curves = [...document.querySelectorAll(".drawing path")].map((path) => path.getAttribute("d"));
  const cells = [...document.querySelectorAll(".cells .cell")].map((cell) => cell.className);
  const widths = [...document.querySelectorAll(".stack-bar span")].map((part) => part.style.width);
  const pictures = [...document.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL());
  return JSON.stringify([main.textContent, curves, cells, widths, pictures]);
});

const figure = (page, name) => page.evaluate((name) => {
  const term = [...document.querySelectorAll(".figures dt")].find((term) => term.textContent === name);
  return term?.nextElementSibling.textContent;
}, name);

const slide = (page, label, place) => page.getByLabel(label, { exact: true }).fill(String(place));
const choose = (page, label, value) => page.getByLabel(label, { exact: true }).selectOption(value);

const bytes = (count) => {
  let unit = 0;
  for (; count >= 1024 && unit < 4; unit++) count /= 1024;
  const digits = count < 10 ? 2 : count < 100 ? 1 : 0;
  return unit ? `${count.toFixed(digits)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}` : `${count} B`;
};

// Llama 3.1 8B and Llama 3.2 1B, as their configurations have it.
const big = { layers: 32, hidden: 4096, inner: 14336, heads: 32, kv: 8, head: 128, vocabulary: 128256, tied: false };
const small = { layers: 16, hidden: 2048, inner: 8192, heads: 32, kv: 8, head: 64, vocabulary: 128256, tied: true };
const linears = ({ hidden, inner, heads, kv, head }) => ({
  q: [heads * head, hidden], k: [kv * head, hidden], v: [kv * head, hidden], o: [hidden, heads * head],
  gate: [inner, hidden], up: [inner, hidden], down: [hidden, inner],
});
const sum = (values) => values.reduce((a, b) => a + b, 0);
const frozen = (model) => model.layers * sum(Object.values(linears(model)).map(([out, inner]) => out * inner));
const rest = (model) => (model.tied ? 1 : 2) * model.vocabulary * model.hidden + (2 * model.layers + 1) * model.hidden;
const adapter = (model, rank, names = Object.keys(linears(model))) =>
  model.layers * sum(names.map((name) => rank * sum(linears(model)[name])));
// Operations of a token with adapters of rank 16 on all layers.
const operations = (model, length, recompute) => {
  const forward = recompute ? 2 : 1;
  const attention = 2 * model.layers * model.heads * model.head * length * (forward + 2);
  return 2 * (forward + 1) * frozen(model) + 2 * (forward + 2) * adapter(model, 16) + 4 * model.vocabulary * model.hidden + attention;
};

// The shipped model's weights, read here without the site's code.
async function tensor(name) {
  const file = await readFile(new URL("../../models/wordnet-4m/model.safetensors", import.meta.url));
  const header = Number(file.readBigUInt64LE(0));
  const { shape, data_offsets: [from, to] } = JSON.parse(file.subarray(8, 8 + header))[name];
  const words = new Uint32Array((to - from) / 2).map((_, i) => file.readUInt16LE(8 + header + from + 2 * i) << 16);
  return { shape, values: [...new Float32Array(words.buffer)] };
}
const NF4 = [-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1];
const nearest = (levels, value) => levels.reduce((best, level, i) => (Math.abs(level - value) < Math.abs(levels[best] - value) ? i : best), 0);

const lessons = {
  memory: {
    right: 2,
    async numbers(page) {
      await choose(page, "Model", "llama-3.1-8b");
      assert.equal(await figure(page, "Parameters"), (frozen(big) + rest(big)).toLocaleString("en-US"));
      assert.equal(await figure(page, "Bytes per parameter, full"), "16.00");
      const weights = await page.locator(".methods .stack").nth(2).locator(".legend li", { hasText: /^weights/ }).locator(".amount").textContent();
      const nf4 = frozen(big) * (1 / 2 + 1 / 64 + 4 / (64 * 256)) + 7 * big.layers * 1040;
      assert.equal(weights, bytes(nf4 + 2 * rest(big)));
      const before = await page.textContent("#peak-2");
      await slide(page, "Tokens of a sequence", 6);
      assert.ok(parseFloat(await page.textContent("#peak-2")) > parseFloat(before), "longer sequences need more");
    },
    async solve(page) {
      await choose(page, "Model", "llama-2-7b");
      await slide(page, "Tokens of a sequence", 4);
    },
    state: "model=llama-2-7b",
  },
  nf4: {
    right: 1,
    async numbers(page) {
      const errors = () => page.$$eval("#tables tbody tr", (rows) => rows.map((row) => parseFloat(row.cells[2].textContent)));
      const [nf4, uniform, naive] = await errors();
      assert.ok(nf4 < uniform && Math.abs(nf4 / naive - 1) < 0.03, `${nf4} ${uniform} ${naive}`);
      await slide(page, "Width", 0.08);
      assert.deepEqual(await errors(), [nf4, uniform, naive], "the width drops out");
      await slide(page, "Outliers, ten times as far out", 0.02);
      assert.ok((await errors()).every((error, i) => error > [nf4, uniform, naive][i]), "outliers hurt");
      await slide(page, "Outliers, ten times as far out", 0);

      await page.getByRole("button", { name: /^Load the shipped model/ }).click();
      await page.waitForSelector("#block tbody tr");
      const name = "model.layers.1.mlp.down_proj.weight";
      await choose(page, "Tensor", name);
      await slide(page, "Block", 77);
      const { shape, values } = await tensor(name);
      assert.equal(await figure(page, "Weights"), shape.join(" × "));
      const block = values.slice(77 * 64, 78 * 64);
      const absmax = Math.max(...block.map(Math.abs));
      assert.equal(await figure(page, "Absmax of the block"), absmax.toFixed(6));
      const rows = await page.$$eval("#block tbody tr", (all) => all.map((row) => [...row.cells].map((cell) => cell.textContent)));
      assert.deepEqual(rows.map((row) => row[1]), block.map((value) => value.toFixed(6)));
      assert.deepEqual(rows.map((row) => Number(row[2])), block.map((value) => nearest(NF4, value / absmax)));
      const decoded = parseFloat(await figure(page, "Absmax, decoded"));
      assert.ok(Math.abs(decoded / absmax - 1) < 0.02, `${decoded} for ${absmax}`);
      // The whole tensor with 16 even levels.
      const even = NF4.map((_, i) => (2 * i) / 15 - 1);
      let off = 0;
      for (let start = 0; start < values.length; start += 64) {
        const block = values.slice(start, start + 64);
        const scale = Math.max(...block.map(Math.abs));
        for (const value of block) off += (even[nearest(even, value / scale)] * scale - value) ** 2;
      }
      const relative = Math.sqrt(off / sum(values.map((value) => value ** 2)));
      assert.ok(Math.abs(parseFloat(await figure(page, "Error, uniform")) - 100 * relative) < 0.011);
    },
    async solve(page) {
      await slide(page, "Exact zeros", 0.25);
    },
    state: "zeros=0.25",
  },
  "double-quantization": {
    right: 1,
    async numbers(page) {
      assert.equal(await page.textContent("#plain"), "4.5000 bits");
      assert.equal(await page.textContent("#double"), `${(4 + 8 / 64 + 32 / (64 * 256)).toFixed(4)} bits`);
      assert.equal(await figure(page, "Saved per weight"), "0.373 bits");
      await slide(page, "Weights of a block", 0);
      await slide(page, "Scales that share a scale", 0);
      // 4.28125 lies between two numbers of four places.
      assert.ok(Math.abs(parseFloat(await page.textContent("#double")) - (4 + 8 / 32 + 32 / (32 * 32))) < 5.1e-5);
      await choose(page, "Model", "llama-3.1-8b");
      assert.equal(await figure(page, "Saved on this model"), bytes((frozen(big) * (24 / 32 - 32 / 1024)) / 8));
    },
    async solve(page) {
      await slide(page, "Weights of a block", 2);
      await slide(page, "Scales that share a scale", 3);
    },
    state: "block=128",
  },
  lora: {
    right: 0,
    async numbers(page) {
      const left = async () => parseFloat(await figure(page, "Left over of the update"));
      await slide(page, "Noise in all directions", 0);
      await slide(page, "Own rank of the update", 6);
      await slide(page, "Rank of the adapter", 5);
      assert.ok((await left()) > 1, "a rank below the update's own leaves something");
      await slide(page, "Rank of the adapter", 6);
      assert.equal(await left(), 0);
      assert.equal(await figure(page, "Trained parameters"), adapter(big, 6).toLocaleString("en-US"));
      await page.getByText("k_proj", { exact: true }).click();
      const without = adapter(big, 6, ["q", "v", "o", "gate", "up", "down"]);
      assert.equal(await figure(page, "Trained parameters"), without.toLocaleString("en-US"));
      assert.equal(await figure(page, "Share of the model"), `${((100 * without) / (frozen(big) + rest(big))).toFixed(3)} %`);
    },
    async solve(page) {
      for (const name of ["o_proj", "gate_proj", "up_proj", "down_proj"]) await page.getByText(name, { exact: true }).click();
      await slide(page, "Own rank of the update", 8);
      await slide(page, "Rank of the adapter", 8);
      await slide(page, "Noise in all directions", 0.05);
    },
    state: "noise=0.05",
  },
  "paged-optimizers": {
    right: 0,
    async numbers(page) {
      const state = 8 * adapter(big, 64);
      assert.equal(await figure(page, "Optimizer state"), bytes(state));
      assert.equal(await figure(page, "Fetched in a step"), "0 pages");
      await slide(page, "Budget for the optimizer's state", 0.3);
      // The pages that were used longest ago go first; every second step goes backwards.
      const sizes = Array.from({ length: big.layers }, () => Object.values(linears(big)).flatMap(([out, inner]) => [8 * 64 * inner, 8 * 64 * out])).flat();
      const [budget, here, made] = [Math.floor(0.3 * state), new Map(), new Set()];
      const room = (incoming) => {
        while (sum([...here.keys()].map((page) => sizes[page])) > Math.max(budget - incoming, 0) && here.size) here.delete(here.keys().next().value);
      };
      let fetched;
      for (let step = 1; step <= 6; step++) {
        fetched = 0;
        const order = sizes.map((_, page) => page);
        for (const page of step % 2 ? order : order.reverse()) {
          if (!here.has(page)) room(sizes[page]);
          if (!here.has(page) && made.has(page)) fetched++;
          here.delete(page);
          here.set(page, true);
          made.add(page);
          room(0);
        }
      }
      assert.equal(await figure(page, "Fetched in a step"), `${fetched} pages`);
      await slide(page, "Instant of the timeline", 500);
      assert.match(await page.textContent("#now"), /^Step 2, updating with page/);
      await slide(page, "Budget for the optimizer's state", 1);
    },
    async solve(page) {
      await slide(page, "Tokens of the long sequence", 4);
      await slide(page, "Budget for the optimizer's state", 0.35);
    },
    state: "budget=0.35",
  },
  "training-loop": {
    right: 1,
    async numbers(page) {
      const ratio = operations(small, 1024, true) / operations(small, 1024, false);
      assert.equal(await figure(page, "Operations, computed again"), `${ratio.toFixed(2)} ×`);
      await page.getByRole("button", { name: "Step" }).click();
      assert.match(await page.locator(".lane").first().textContent(), /^forward through layer 2: only its input/);
      assert.match(await page.locator(".lane").last().textContent(), /^forward through layer 2: its whole graph/);
      await slide(page, "Place in the step", 16);
      assert.match(await page.locator(".lane").first().textContent(), /^the loss/);
      // Each layer's input and the last layer's result.
      const inputs = 17 * 1024 * small.hidden * 4;
      assert.ok((await page.locator(".method .amount").first().textContent()).startsWith(`${bytes(inputs)} of inputs`));
      await page.getByRole("button", { name: "Play" }).click();
      await page.waitForFunction(() => /backwards through/.test(document.querySelector(".lane").textContent));
      await page.getByRole("button", { name: "Pause" }).click();
    },
    async solve(page) {
      await choose(page, "Model", "llama-3.1-8b");
      await slide(page, "Sequences at once", 3);
      await slide(page, "Tokens of a sequence", 3);
    },
    state: "batch=8",
  },
  hardware: {
    right: 2,
    async numbers(page) {
      const all = operations(small, 1024, true) * 1e7;
      const [digits, power] = all.toExponential(2).split("e+");
      assert.equal(await figure(page, "Operations for 10⁷ tokens"), `${digits}e${power}`);
      const minutes = Math.round(all / 50e12 / 60);
      assert.equal(await page.textContent("#duration"), `Ten million tokens take ${minutes} minutes at this rate.`);
      const row = async () => (await page.locator("#cards tr.chosen td").allTextContents()).slice(1);
      const batches = (await row()).map((cell) => (cell === "no" ? 0 : parseInt(cell)));
      assert.ok(batches[0] <= batches[1] && batches[1] <= batches[2], batches.join());
      await choose(page, "Model", "llama-3.1-70b");
      assert.deepEqual(await row(), ["no", "no", "no"]);
      await choose(page, "Your card", "A100 80GB");
      assert.deepEqual((await row()).map((cell) => cell !== "no"), [false, false, true]);
    },
    async solve(page) {
      await choose(page, "Your card", "RTX 4090");
      await choose(page, "Model", "llama-2-13b");
      await slide(page, "Tokens of a sequence", 4);
    },
    state: "length=4096",
  },
  "qlora-or-lora": {
    right: 2,
    async numbers(page) {
      const advice = () => page.textContent("#advice");
      assert.equal(await advice(), "LoRA");
      await page.getByText("in 4 bits", { exact: true }).click();
      assert.equal(await advice(), "QLoRA");
      await page.getByText("in 16 bits, or merged", { exact: true }).click();
      await choose(page, "Which card do you have?", "RTX 3060");
      assert.equal(await advice(), "QLoRA", "the weights alone take 16 GB");
      await choose(page, "Model", "llama-3.1-405b");
      assert.equal(await advice(), "Neither, as it stands");
      await choose(page, "Model", "llama-3.1-8b");
      await choose(page, "Which card do you have?", "RTX 4090");
    },
    async solve(page) {
      await slide(page, "How many should be seen at once?", 6);
    },
    state: "batch=64",
  },
  inference: {
    right: 2,
    async numbers(page) {
      const scales = () => page.$$eval("#servers tbody tr", (rows) => rows.map((row) => row.cells[1].textContent));
      assert.deepEqual(await scales(), Array(4).fill((32 / 64).toFixed(3)));
      await page.getByText("rsLoRA: α / √r", { exact: true }).click();
      assert.deepEqual(await scales(), [32 / 8, 32 / 8, 32 / 64, 32 / 64].map((scale) => scale.toFixed(3)));
      await slide(page, "Adapters of the same base", 2);
      const dense = 2 * (frozen(big) + rest(big));
      assert.equal(await figure(page, "Merged: held"), bytes(4 * dense));
      assert.equal(await figure(page, "Merged: at most"), `${Math.round(1000e9 / dense)} tokens/s`);
      assert.equal(await figure(page, "Kept: more operations"), `${((100 * adapter(big, 64)) / frozen(big)).toFixed(2)} %`);
      const lost = async () => parseFloat(await figure(page, "Lost, merged and in NF4 again"));
      const small = await lost();
      await slide(page, "Length of the update over that of the weights", -0.5);
      assert.ok((await lost()) < small, "a larger update survives better");
    },
    async solve(page) {
      await slide(page, "Rank", 2);
      await slide(page, "Adapters of the same base", 3);
    },
    state: "adapters=8",
  },
};

async function visit(path) {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const { page, faults } = await watched(context);
  await open(page, path);
  return { context, page, faults };
}

test("the overview leads to every lesson", async () => {
  const { context, page, faults } = await visit("lessons/");
  const names = await page.$$eval(".path a", (links) => links.map((link) => link.getAttribute("href").split("/").at(-2)));
  assert.deepEqual(names, Object.keys(lessons).sort((a, b) => names.indexOf(a) - names.indexOf(b)));
  await page.locator(".path a").first().click();
  for (const _ of names.slice(1)) await page.locator(".lesson-way a").last().click();
  await page.waitForURL(/\/inference\//);
  assert.deepEqual(faults, []);
  await context.close();
});

for (const [name, lesson] of Object.entries(lessons)) {
  test(`${name}: every control changes what is shown`, async () => {
    const { context, page, faults } = await visit(`lessons/${name}/`);
    if (name === "nf4") {
      await page.getByRole("button", { name: /^Load the shipped model/ }).click();
      await page.waitForSelector("#block tbody tr");
    }
    const controls = page.locator("section:not(.predict) .field").locator("input, select");
    const count = await controls.count();
    assert.ok(count > 0);
    // From the last to the first: a choice of a model hides what comes after it.
    for (let i = count - 1; i >= 0; i--) {
      const control = controls.nth(i);
      const what = await control.evaluate((one) => `${one.labels[0]?.textContent ?? ""} (${one.type})`);
      if (await control.evaluate((one) => one.type === "radio" && one.checked)) continue;
      const before = await seen(page);
      await control.evaluate((one) => {
        if (one.type === "range") {
          one.value = one.value === one.max ? one.min : one.max;
          one.dispatchEvent(new Event("input", { bubbles: true }));
        } else if (one.type === "select-one") {
          one.selectedIndex = one.selectedIndex === one.options.length - 1 ? 0 : one.options.length - 1;
          one.dispatchEvent(new Event("change", { bubbles: true }));
        } else {
          one.click();
        }
      });
      await page.waitForFunction(() => true);
      assert.notEqual(await seen(page), before, `${what} changes nothing`);
      // The last adapted layer cannot be taken away, so that each is put back.
      if (await control.evaluate((one) => one.type === "checkbox")) await control.evaluate((one) => one.click());
      assert.equal(await page.evaluate(() => /NaN|inf\b|undefined/.test(document.querySelector("main").textContent)), false, what);
    }
    assert.deepEqual(faults, []);
    await context.close();
  });

  test(`${name}: the prediction, the numbers, the task, the address`, async () => {
    const { context, page, faults } = await visit(`lessons/${name}/`);
    const predict = page.locator("section.predict");
    assert.equal(await predict.getByRole("status").textContent(), "", "no answer before a guess");
    const commit = predict.getByRole("button", { name: "Commit to it" });
    assert.ok(await commit.isDisabled());
    const wrong = lesson.right === 0 ? 1 : 0;
    await predict.locator(".option").nth(wrong).click();
    await commit.click();
    assert.match(await predict.getByRole("status").textContent(), /^It is: /);
    await predict.getByRole("button", { name: "Forget my guess" }).click();
    await predict.locator(".option").nth(lesson.right).click();
    await commit.click();
    assert.match(await predict.getByRole("status").textContent(), /^Right: /);

    assert.equal(await page.locator(".task.done").count(), 0, "not solved at first");
    await lesson.numbers(page);
    await lesson.solve(page);
    await page.waitForSelector(".task.done");
    assert.match(await page.locator(".task .verdict").textContent(), /^Solved\./);

    await page.waitForURL((url) => url.search.includes(lesson.state) && url.search.includes(`guess=${lesson.right + 1}`));
    // The address follows the controls after a pause.
    await page.waitForTimeout(600);
    const [link, before] = [page.url(), await seen(page)];
    await page.reload();
    await page.waitForSelector("html[data-ready] .task.done");
    if (name === "nf4") await page.waitForSelector("#block tbody tr");
    assert.equal(page.url(), link);
    assert.equal(await seen(page), before);
    await open(page, "lessons/");
    assert.equal(await page.locator(".path .solved").count(), 1, "the overview remembers");
    assert.deepEqual(faults, []);
    await context.close();
  });
}

test("with reduced motion nothing plays by itself", async () => {
  const context = await browser.newContext({ reducedMotion: "reduce", serviceWorkers: "block" });
  const { page } = await watched(context);
  await open(page, "lessons/training-loop/");
  assert.equal(await page.getByRole("button", { name: "Play" }).count(), 0);
  await page.getByRole("button", { name: "Step" }).press("Enter");
  assert.match(await page.locator(".lane").first().textContent(), /layer 2/);
  await context.close();
});
