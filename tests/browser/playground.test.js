// The playground as a visitor uses it: trains, shows it, gives the adapter away, survives a lost device.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launch, open, watched } from "./launch.js";
import { unzip } from "./worker/adapter.js";
import { KEEP_DEVICE } from "./worker/keep.js";
import { root } from "./worker/site.js";

const QUESTION = "What kind of thing is this: a large fish?";
const RECORDS = [
  ["a large fish", "an animal"],
  ["a tall tree", "a plant"],
  ["someone who bakes bread", "a person"],
].map(([what, kind]) => JSON.stringify({ prompt: `What kind of thing is this: ${what}?`, completion: `It is ${kind}.` }));

let folder;
before(() => (folder = mkdtempSync(join(tmpdir(), "halfbyte-playground-"))));
after(() => rmSync(folder, { recursive: true }));

// A playground on a device, with a model loaded.
async function playground(browser, device, query) {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const { page, faults } = await watched(context);
  page.setDefaultTimeout(0);
  await page.route("**/worker/worker.js", async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, body: device === "WebGPU" ? KEEP_DEVICE + (await response.text()) : undefined });
  });
  await open(page, `playground/?${query}`);
  await page.getByText(device, { exact: true }).click();
  await page.getByTestId("device").filter({ hasText: device === "CPU" ? "On the CPU" : "WebGPU was asked for" }).waitFor();
  await page.getByTestId("model").filter({ hasText: "loaded" }).waitFor();
  return { page, faults };
}

async function paste(page) {
  await page.getByText("Paste", { exact: true }).click();
  await page.getByLabel("Records").fill(RECORDS.join("\n"));
}

const finished = (page) => page.getByTestId("adapter").filter({ hasText: "trained here, finished" }).waitFor();
const number = async (page, id) => Number(await page.getByTestId(id).textContent());

async function adapter(page) {
  const coming = page.waitForEvent("download");
  await page.getByRole("button", { name: "Download the adapter" }).click();
  const download = await coming;
  assert.equal(download.suggestedFilename(), "adapter.zip");
  return unzip(readFileSync(await download.path()), folder);
}

test("trains on the CPU, stays responsive, and the native command talks with its adapter", async () => {
  const browser = await launch({ webgpu: false });
  try {
    const { page, faults } = await playground(browser, "CPU", "steps=20&batch=1&every=5");
    await paste(page);
    await page.evaluate(() => {
      window.long = [];
      new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => window.long.push(duration))).observe({ type: "longtask" });
    });
    await page.getByRole("button", { name: "Train" }).click();
    await finished(page);
    const long = await page.evaluate(() => window.long);
    console.log(`  tasks over 50 ms on the page's thread while training: ${long.map(Math.round).join(", ") || "none"}`);
    assert.equal(await page.getByTestId("step").textContent(), "20 / 20");
    assert.ok((await number(page, "loss")) < 1, `loss ${await number(page, "loss")}`);
    const head = await page.getByTestId("rounds").locator("thead th").allTextContents();
    assert.deepEqual([head[1], head.at(-1)], ["Before", "After step 20"]);
    await page.getByLabel("Question", { exact: true }).fill(QUESTION);
    await page.getByRole("button", { name: "Ask", exact: true }).click();
    await page.getByTestId("own").getByText("With the adapter").waitFor();
    const own = await page.getByTestId("own").locator("div", { hasText: "With the adapter" }).locator("p").first().textContent();
    const native = process.env.HALFBYTE ?? join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), "release/halfbyte");
    const words = ["generate", "models/wordnet-4m", "--adapter", await adapter(page), "--prompt", QUESTION, "--device", "cpu", "--max-new-tokens", "64"];
    assert.equal(execFileSync(native, words, { cwd: root, encoding: "utf8" }).trim(), own);
    assert.deepEqual(faults, []);
  } finally {
    await browser.close();
  }
});

test("trains 20 steps on WebGPU, and goes on by itself when the device is lost", async () => {
  const browser = await launch({ webgpu: true });
  try {
    const { page } = await playground(browser, "WebGPU", "steps=20&batch=1&every=0");
    await paste(page);
    await page.getByRole("button", { name: "Train" }).click();
    await page.getByText("up to step 10", { exact: false }).waitFor();
    const before = await number(page, "loss");
    await page.workers()[0].evaluate(() => globalThis.device.destroy());
    await page.getByText("Started anew; the run goes on from step 1").waitFor();
    await finished(page);
    assert.equal(await page.getByTestId("step").textContent(), "20 / 20");
    assert.ok((await number(page, "loss")) < Math.max(before, 1.5), `loss ${before}, then ${await number(page, "loss")}`);
  } finally {
    await browser.close();
  }
});

// Tab to the control of this name; every stop on the way can be seen and has a name.
async function tabTo(page, name) {
  const seen = [];
  for (let stop = 0; stop < 80; stop++) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => {
      const one = document.activeElement;
      // What stands for a radio button or a slider is drawn beside it.
      const { width, height } = (one.type === "radio" ? one.parentElement : one).getBoundingClientRect();
      const label = one.getAttribute("aria-label") ?? document.getElementById(one.getAttribute("aria-labelledby"))?.textContent;
      return { name: (label ?? one.labels?.[0]?.textContent ?? one.textContent).trim(), visible: width > 0 && height > 0 };
    });
    seen.push(at.name);
    assert.ok(at.name && at.visible, `stop ${stop}, after ${seen.join(", ")}`);
    if (at.name === name) return seen;
  }
  throw new Error(`the keyboard does not get to ${name}: ${seen.join(", ")}`);
}

test("a run is set, begun, looked at and taken away by the keyboard alone", async () => {
  const browser = await launch({ webgpu: false });
  try {
    const { page, faults } = await playground(browser, "CPU", "steps=10&batch=1&every=0");
    await page.evaluate(() => document.querySelector("#content").focus());
    await tabTo(page, "Shipped questions");
    await page.keyboard.press("ArrowRight");
    const records = await tabTo(page, "Records, one JSON object a line");
    assert.equal(records.length, 1, "the field is next to its choice");
    await page.keyboard.press("Control+A");
    await page.keyboard.type(RECORDS.join("\n"));
    await tabTo(page, "Rank");
    await page.keyboard.press("ArrowLeft");
    await tabTo(page, "q_proj");
    await page.keyboard.press("Space");
    await tabTo(page, "Train");
    await page.keyboard.press("Enter");
    await finished(page);
    const recipe = await page.locator("details", { hasText: "The recipe of this run" }).locator("pre").textContent();
    assert.match(recipe, /r = 8\b/);
    assert.doesNotMatch(recipe, /q_proj/);
    // The button that began the run was switched off meanwhile, which may send the keyboard back to the page's beginning.
    await tabTo(page, "Download the adapter");
    const coming = page.waitForEvent("download");
    await page.keyboard.press("Enter");
    assert.equal((await coming).suggestedFilename(), "adapter.zip");
    assert.deepEqual(faults, []);
  } finally {
    await browser.close();
  }
});
