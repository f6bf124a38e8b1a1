// The GPU lab's page: reports of several devices side by side, and what it says where there is no GPU.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launch, open, watched } from "./launch.js";

let browser, page, faults;
before(async () => {
  browser = await launch({ webgpu: false });
  ({ page, faults } = await watched(await browser.newContext({ serviceWorkers: "block" })));
  await open(page, "gpu/");
});
after(() => browser.close());

const device = (name, software) => ({
  device: "webgpu", name, why: "WebGPU was asked for", software, vendor: "", architecture: "", device_id: "", description: "", features: [], limits: [], browser: "",
});
const report = (name, software, worst, seconds) => ({
  halfbyte: "0.1.0",
  device: device(name, software),
  kernels: [{ kernel: "matmul", count: 6, passed: worst === null ? 5 : 6, worst, tolerance: 1e-5, failures: [] }],
  gpu: seconds ? [{ kernel: "nf4_dequantize", shape: [896, 896], rows: 0, seconds, bandwidth: 2.5, arithmetic: 0 }] : [],
  cpu: [],
});
const file = (name, content) => ({ name, mimeType: "application/json", buffer: Buffer.from(typeof content === "string" ? content : JSON.stringify(content)) });

test("reports stand side by side, what one lacks is left empty, and what is no report is named", async () => {
  const input = page.getByLabel("Reports as JSON, as many as you like");
  await input.setInputFiles([file("one.json", report("one", false, 1e-7, 0.002)), file("two.json", report("two", true, null))]);
  const table = page.getByRole("region", { name: "Compare reports" }).locator("table");
  await table.getByText("two (software)").waitFor();
  const rows = await table.locator("tr").evaluateAll((all) => all.map((row) => [...row.cells].map((cell) => cell.textContent)));
  assert.deepEqual(rows[0].slice(1).sort(), ["one", "two (software)"]);
  const cell = (row, name) => rows[row][rows[0].indexOf(name)];
  assert.equal(cell(1, "one"), "6/6, worst 1.0e-7");
  assert.equal(cell(1, "two (software)"), "5/6, worst not a number");
  assert.match(rows[2][0], /^nf4_dequantize \[896, 896\]/);
  assert.equal(cell(2, "one"), "2.00 ms, 2.5 GB/s, 0.0 GFLOP/s");
  assert.equal(cell(2, "two (software)"), "–");

  await input.setInputFiles([file("other.json", '{"kernels": 1}')]);
  assert.match(await page.getByRole("alert").textContent(), /other\.json: not a report of this lab/);
  assert.equal(await table.locator("thead th").count(), 3);
  assert.deepEqual(faults, []);
});

test("without WebGPU it says what is in the way", async () => {
  await page.getByRole("button", { name: "Test the kernels" }).click();
  await page.getByRole("alert").filter({ hasText: "WebGPU cannot be used: " }).waitFor();
  assert.ok(await page.getByRole("button", { name: "Test the kernels" }).isEnabled());
});

test("a worker that cannot be loaded is told, not thrown", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const { page, faults } = await watched(context);
  await page.route("**/worker/worker.js", (route) => route.abort());
  await open(page, "gpu/");
  await page.getByRole("button", { name: "Test the kernels" }).click();
  await page.getByRole("alert").filter({ hasText: "the engine's worker cannot be loaded" }).waitFor();
  assert.ok(faults.every((fault) => fault.includes("worker/worker.js")), faults.join("; "));
  await context.close();
});
