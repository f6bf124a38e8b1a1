// What a lesson has the GPU compute is equal to the CPU's, and a browser without a GPU is told so.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { launch, open, watched } from "./launch.js";

const CHECK = { name: "Check on this device's GPU" };

// Lesson, words and numbers of its check, and what of it must differ when a control is moved.
const lessons = {
  nf4: {
    codes: "0 of 65,536",
    scales: "0 of 1,024",
    async ready(page) {
      await page.getByRole("button", { name: /^Load the shipped model/ }).click();
      await page.waitForSelector("#block tbody tr");
    },
    async other(page) {
      await page.getByLabel("Tensor", { exact: true }).selectOption("model.layers.1.mlp.down_proj.weight");
      return "0 of 180,224";
    },
  },
  "double-quantization": {
    codes: "0 of 65,536",
    scales: "0 of 1,024",
    async ready() {},
    async other(page) {
      await page.getByLabel("Weights of a block", { exact: true }).fill("0");
      return "0 of 65,536";
    },
  },
  lora: {
    codes: "0 of 1,024",
    scales: "0 of 16",
    async ready() {},
    async other(page) {
      await page.getByLabel("Rank of the adapter", { exact: true }).fill("32");
      return "0 of 1,024";
    },
  },
};

const answer = (page) => page.getByTestId("on-gpu");
const figures = (page) => answer(page).locator("dl div").evaluateAll((all) => Object.fromEntries(all.map((one) => [one.children[0].textContent, one.children[1].textContent])));

describe("with WebGPU", () => {
  let browser;
  before(async () => (browser = await launch({ webgpu: true })));
  after(() => browser.close());

  for (const [name, lesson] of Object.entries(lessons)) {
    test(`${name}: the GPU's results are the CPU's`, async () => {
      const context = await browser.newContext({ serviceWorkers: "block" });
      const { page, faults } = await watched(context);
      page.setDefaultTimeout(120_000);
      await open(page, `lessons/${name}/`);
      await lesson.ready(page);
      await page.getByRole("button", CHECK).click();
      await answer(page).getByText("The GPU's results are the CPU's").waitFor();
      assert.match(await answer(page).textContent(), /swiftshader.*It is software/i);
      const found = await figures(page);
      assert.equal(found["Codes that differ"], lesson.codes);
      assert.equal(found["Scales that differ"], lesson.scales);
      assert.ok(Number(found["Largest error of a scale from 8 bits"]) < 1e-6);
      assert.ok(Number(found["Largest error of a decoded weight"]) < 1e-6);
      assert.ok(Number(found["Error of a product, 16 rows"]) < 1e-5);
      if (name === "lora") assert.ok(Number(found["The same with the adapter"]) < 1e-5);
      console.log(`  ${name}: ${JSON.stringify(found)}`);

      const codes = await lesson.other(page);
      await answer(page).getByText("The GPU's results are the CPU's").waitFor({ state: "detached" });
      await page.getByRole("button", CHECK).click();
      await answer(page).getByText("The GPU's results are the CPU's").waitFor();
      assert.equal((await figures(page))["Codes that differ"], codes);
      assert.deepEqual(faults, []);
      await context.close();
    });
  }

  test("a wrong result would be seen", async () => {
    const context = await browser.newContext({ serviceWorkers: "block" });
    const { page } = await watched(context);
    page.setDefaultTimeout(120_000);
    // One bit of what is sent to the GPU to be quantized, in the copy that the device gets.
    await page.route("**/worker/worker.js", async (route) => {
      const response = await route.fetch();
      await route.fulfill({ response, body: SPOIL + (await response.text()) });
    });
    await open(page, "lessons/lora/");
    await page.getByRole("button", CHECK).click();
    await answer(page).getByText("The GPU's results are not the CPU's").waitFor();
    await context.close();
  });
});

// Goes before the worker's own script: every read of a buffer from the GPU has its first byte changed.
const SPOIL = `
const read = GPUBuffer.prototype.getMappedRange;
GPUBuffer.prototype.getMappedRange = function (...place) {
  const range = read.apply(this, place);
  if (this.usage & GPUBufferUsage.MAP_READ) new Uint8Array(range)[0] ^= 16;
  return range;
};
`;

test("without WebGPU the check says so, and what to do", async () => {
  const browser = await launch({ webgpu: false });
  try {
    const context = await browser.newContext({ serviceWorkers: "block" });
    const { page, faults } = await watched(context);
    page.setDefaultTimeout(120_000);
    await open(page, "lessons/double-quantization/");
    await page.getByRole("button", CHECK).click();
    await answer(page).getByText("There is no GPU to check on").waitFor();
    assert.match(await answer(page).textContent(), /WebGPU cannot be used: .*graphics acceleration/s);
    assert.deepEqual(faults, []);
  } finally {
    await browser.close();
  }
});
