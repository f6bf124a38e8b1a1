// The engine in a tab: trains on WebGPU and on the CPU, agrees with the native command, survives a lost device.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { launch } from "./launch.js";
import { distance, unzip } from "./worker/adapter.js";
import { root, serve } from "./worker/site.js";

const STEPS = 20;
const toml = readFileSync(join(root, "recipes/kinds.toml"), "utf8");
const recipe = { toml, set: [`training.max_steps=${STEPS}`, "show.questions=[]", 'data.test=""'] };
const train = { do: "train", recipe, train: { from: "site", url: "/recipes/kinds/train.jsonl" }, test: null };
const PROMPT = "What kind of thing is this: a large fish that lives in cold rivers?";

const halfbyte = process.env.HALFBYTE ?? join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), "release/halfbyte");
const native = (...args) =>
  execFileSync(halfbyte, args, { cwd: root, encoding: "utf8", env: { ...process.env, CUBECL_AUTOTUNE_LEVEL: "0" } });

let site, folder;
const adapters = {};

before(async () => {
  site = await serve();
  folder = mkdtempSync(join(tmpdir(), "halfbyte-worker-"));
});

after(() => {
  site.close();
  rmSync(folder, { recursive: true });
});

// Runs `work` in a page with a worker's client, in a browser of its own.
async function inPage(options, work, argument) {
  const browser = await launch(options);
  try {
    const page = await (await browser.newContext()).newPage();
    page.on("console", (line) => ["error", "warning"].includes(line.type()) && console.log(`  console: ${line.text()}`));
    await page.goto(`${site.url}/host/host.html`);
    await page.waitForFunction(() => window.Client);
    return await page.evaluate(work, argument);
  } finally {
    await browser.close();
  }
}

// Trains, and gives the steps, the adapter's zip and a greedy answer.
async function trained({ device, recipe, train, prompt }) {
  const client = await Client.open(device, recipe);
  await client.ask({ ...train, answer_every: 0, save_every: 0 }, ["finished"]);
  const steps = client.events.filter((event) => event.is === "step");
  const { parts } = await client.ask({ do: "export" }, ["adapter"]);
  const sampling = { temperature: 0, top_p: 1, max_new_tokens: 40, seed: 0 };
  const { answers } = await client.ask({ do: "generate", prompts: [prompt], sampling, adapter: true }, ["answers"]);
  const ready = client.events.find((event) => event.is === "ready");
  return { ready, steps, zip: [...new Uint8Array(parts[0])], answer: answers[0].text };
}

// The adapter of the native command after the same steps.
function nativeAdapter(device) {
  const output = join(folder, `native-${device}`);
  const sets = recipe.set.flatMap((set) => ["--set", set]);
  native("train", "recipes/kinds.toml", "--device", device, "--output", output, ...sets);
  return join(output, "adapter");
}

const learns = (steps) => {
  assert.equal(steps.length, STEPS);
  const mean = (part) => part.reduce((sum, { loss }) => sum + loss, 0) / part.length;
  assert.ok(mean(steps.slice(-5)) < 0.8 * mean(steps.slice(0, 5)), `losses ${steps.map((step) => step.loss)}`);
};

for (const [device, webgpu, choice] of [
  ["cpu", false, "auto"],
  ["webgpu", true, "webgpu"],
]) {
  describe(`on ${device}`, () => {
    test(`trains ${STEPS} steps and learns`, async () => {
      const { ready, steps, zip, answer } = await inPage({ webgpu }, trained, { device: choice, recipe, train, prompt: PROMPT });
      assert.equal(ready.device, device);
      learns(steps);
      const seconds = steps.slice(1).reduce((sum, step) => sum + step.seconds, 0);
      const tokens = steps.slice(1).reduce((sum, step) => sum + step.tokens, 0);
      console.log(`  ${ready.name}: ${(tokens / seconds).toFixed(0)} tokens/s; ${ready.why}`);
      const own = join(folder, device);
      execFileSync("mkdir", ["-p", own]);
      adapters[device] = { path: unzip(Buffer.from(zip), own), answer };
    });

    test("the native command reads the adapter and answers the same", () => {
      const { path, answer } = adapters[device];
      const said = native("generate", "models/wordnet-4m", "--adapter", path, "--prompt", PROMPT, "--device", "cpu", "--max-new-tokens", "40");
      assert.equal(said.trim(), answer);
    });

    for (const other of ["cpu", "wgpu"]) {
      test(`the adapter is that of the native command on ${other}, within 1e-3`, () => {
        adapters[`native-${other}`] ??= nativeAdapter(other);
        const { whole, worst } = distance(adapters[device].path, adapters[`native-${other}`]);
        console.log(`  ${device} in the browser against native ${other}: ${whole.toExponential(1)}, the worst tensor ${worst.toExponential(1)}`);
        assert.ok(whole < 1e-3, `${whole}`);
      });
    }
  });
}
