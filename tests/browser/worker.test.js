// The engine in a tab: trains on WebGPU and on the CPU, agrees with the native command, survives a lost device.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { launch } from "./launch.js";
import { distance, unzip } from "./worker/adapter.js";
import { hub } from "./worker/hub.js";
import { root, serve } from "./worker/site.js";

const STEPS = 20;
const toml = readFileSync(join(root, "recipes/kinds.toml"), "utf8");
// Short records, one a step: WebGPU's software adapter makes a multiplication after the other.
const SHORT = ["a large fish", "a tall tree", "someone who bakes bread", "a small bird", "a red flower", "a kind of dance"];
const KINDS = ["an animal", "a plant", "a person", "an animal", "a plant", "an act"];
const record = (what, i) => JSON.stringify({ prompt: `What kind of thing is this: ${what}?`, completion: `It is ${KINDS[i]}.` });
const text = SHORT.map(record).join("\n");
const set = [`training.max_steps=${STEPS}`, "training.epochs=0", "training.batch_size=1", "show.questions=[]", 'data.test=""'];
const recipe = { toml, set };
const train = { do: "train", recipe, train: { from: "text", name: "short.jsonl", text }, test: null };
const PROMPT = "What kind of thing is this: a large fish?";

const halfbyte = process.env.HALFBYTE ?? join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), "release/halfbyte");
const native = (...args) =>
  execFileSync(halfbyte, args, { cwd: root, encoding: "utf8", env: { ...process.env, CUBECL_AUTOTUNE_LEVEL: "0" } });

const { asked, answer } = hub();
let site, folder;
const adapters = {};

before(async () => {
  site = await serve(answer);
  folder = mkdtempSync(join(tmpdir(), "halfbyte-worker-"));
  writeFileSync(join(folder, "short.jsonl"), text);
});

after(() => {
  site.close();
  rmSync(folder, { recursive: true });
});

// A page with a worker's client; `keep` lets a test reach the worker's GPU device.
async function open(context, keep = false) {
  const page = await context.newPage();
  page.on("console", (line) => ["error", "warning"].includes(line.type()) && console.log(`  console: ${line.text()}`));
  await page.goto(`${site.url}/host/host.html${keep ? "?keep" : ""}`);
  await page.waitForFunction(() => window.Client);
  return page;
}

async function inBrowser(options, work) {
  const browser = await launch(options);
  try {
    return await work(await browser.newContext());
  } finally {
    await browser.close();
  }
}

// Runs `work` in a page, in a browser of its own.
const inPage = (options, work, argument) =>
  inBrowser(options, async (context) => (await open(context)).evaluate(work, argument));

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
  native("train", "recipes/kinds.toml", "--train", join(folder, "short.jsonl"), "--device", device, "--output", output, ...sets);
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
      mkdirSync(own);
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

describe("a run", () => {
  const saving = { ...train, answer_every: 0, save_every: 5 };

  test("goes on from its last checkpoint after the device is lost, to the same adapter", async () => {
    const { lost, started, zip } = await inBrowser({ webgpu: true }, async (context) => {
      const page = await open(context, true);
      const broken = page.evaluate(
        async ({ recipe, saving }) => {
          window.client = await Client.open("webgpu", recipe);
          const lost = client.wait(["finished"]).then(() => "it was not lost", (error) => error.message);
          client.post(saving);
          return lost;
        },
        { recipe, saving },
      );
      await page.waitForFunction(() => window.client?.events.some(({ is, step }) => is === "saved" && step === 10), null, { timeout: 0 });
      await page.workers()[0].evaluate(() => globalThis.device.destroy());
      const lost = await broken;
      const { started, zip } = await page.evaluate(async (recipe) => {
        client.worker.terminate();
        const fresh = await Client.open("webgpu");
        await fresh.ask({ do: "continue" }, ["finished"]);
        const { parts } = await fresh.ask({ do: "export" }, ["adapter"]);
        return { started: fresh.events.find(({ is }) => is === "started"), zip: [...new Uint8Array(parts[0])] };
      }, recipe);
      return { lost, started, zip };
    });
    assert.match(lost, /lost \(device\)/);
    assert.ok(started.done >= 10 && started.done < STEPS && started.losses.length === started.done, JSON.stringify(started));
    const own = join(folder, "resumed");
    mkdirSync(own, { recursive: true });
    adapters["native-cpu"] ??= nativeAdapter("cpu");
    const { whole } = distance(unzip(Buffer.from(zip), own), adapters["native-cpu"]);
    console.log(`  lost and continued, against native cpu: ${whole.toExponential(1)}`);
    assert.ok(whole < 1e-3, `${whole}`);
  });

  test("survives the tab: another one finds it and goes on", async () => {
    const { saved, started, last } = await inBrowser({ webgpu: false }, async (context) => {
      const first = await open(context);
      await first.evaluate(
        async ({ recipe, saving }) => {
          window.client = await Client.open("cpu", recipe);
          client.post(saving);
          await client.wait(["saved"], 0);
        },
        { recipe, saving },
      );
      await first.close();
      return (await open(context)).evaluate(async () => {
        const client = await Client.open("cpu");
        const { run: saved } = await client.ask({ do: "find-saved" }, ["saved-run"]);
        const last = await client.ask({ do: "continue" }, ["finished"]);
        return { saved, last, started: client.events.find(({ is }) => is === "started") };
      });
    });
    assert.ok(saved.step >= 5 && saved.steps === STEPS && saved.model === "models/wordnet-4m", JSON.stringify(saved));
    assert.equal(started.done, saved.step);
    assert.deepEqual([last.step, last.stopped], [STEPS, false]);
  });

  test("pauses, goes on and stops when it is told to", async () => {
    const { during, resumed, last } = await inPage({ webgpu: false }, async ({ recipe, train }) => {
      const client = await Client.open("cpu", { ...recipe, set: [...recipe.set, "training.max_steps=1000"] });
      const steps = () => client.events.filter(({ is }) => is === "step").length;
      const long = { ...train, recipe: { ...recipe, set: [...recipe.set, "training.max_steps=1000"] } };
      client.post({ ...long, answer_every: 0, save_every: 0 });
      await client.wait(["step"], 0);
      await client.ask({ do: "pause" }, ["paused"]);
      const before = steps();
      await new Promise((later) => setTimeout(later, 500));
      const during = steps() - before;
      await client.ask({ do: "resume" }, ["resumed"]);
      const resumed = await client.wait(["step"]);
      const last = await client.ask({ do: "stop" }, ["finished"]);
      return { during, resumed, last };
    }, { recipe, train });
    assert.equal(during, 0);
    assert.equal(resumed.is, "step");
    assert.ok(last.stopped && last.step < 1000, JSON.stringify(last));
  });

  test("is refused with the place of what is wrong", async () => {
    const failures = await inPage({ webgpu: false }, async ({ recipe, train }) => {
      const client = await Client.open("cpu", recipe);
      const refused = async (request) => {
        const from = client.events.length;
        client.post({ ...train, answer_every: 0, save_every: 0, ...request });
        const { kind, message } = await client.wait(["failed"], from);
        return { kind, message };
      };
      const text = '{"prompt": "a", "completion": "b"}\n{"prompt": "a"';
      return [
        await refused({ train: { from: "text", name: "pasted.jsonl", text } }),
        await refused({ recipe: { ...recipe, set: ["lora.rank=3"] } }),
        await refused({ train: { from: "site", url: "/recipes/kinds/nowhere.jsonl" } }),
      ];
    }, { recipe, train });
    assert.deepEqual(failures.map(({ kind }) => kind), ["file", "setting", "network"]);
    assert.match(failures[0].message, /pasted\.jsonl:2/);
    assert.match(failures[1].message, /lora\.rank/);
    assert.match(failures[2].message, /404/);
  });
});

describe("an adapter", () => {
  test("comes back from its zip and answers the same", async () => {
    const { imported, before, after } = await inPage({ webgpu: false }, async ({ recipe, train, prompt }) => {
      const client = await Client.open("cpu", recipe);
      await client.ask({ ...train, answer_every: 0, save_every: 0 }, ["finished"]);
      const sampling = { temperature: 0, top_p: 1, max_new_tokens: 40, seed: 0 };
      const ask = async (client) =>
        (await client.ask({ do: "generate", prompts: [prompt], sampling, adapter: true }, ["answers"])).answers[0].text;
      const before = await ask(client);
      const { parts } = await client.ask({ do: "export" }, ["adapter"]);
      const fresh = await Client.open("cpu", recipe);
      const imported = await fresh.ask({ do: "import", zip: 0 }, ["imported"], [parts[0]]);
      return { imported, before, after: await ask(fresh) };
    }, { recipe, train, prompt: PROMPT });
    assert.deepEqual([imported.rank, imported.layers, imported.base], [16, 28, "models/wordnet-4m"]);
    assert.equal(after, before);
  });
});

describe("without WebGPU", () => {
  test("says what is in the way", async () => {
    const { auto, asked } = await inPage({ webgpu: false }, async () => {
      const auto = (await Client.open("auto")).events.find(({ is }) => is === "ready");
      const asked = await Client.open("webgpu").then(() => "opened", (error) => error.message);
      return { auto, asked };
    });
    assert.equal(auto.device, "cpu");
    assert.match(auto.why, /WebGPU cannot be used: /);
    assert.match(asked, /WebGPU cannot be used: .*choose the CPU/);
  });
});

describe("a model of the hub", () => {
  const weights = (name = "tiny") => asked.filter(({ of, file }) => of === name && file === "model.safetensors");

  test("is planned before it is fetched, and a download that broke off goes on", async () => {
    const model = { from: "hub", name: "tests/tiny", endpoint: site.url };
    const { planned, broken, loaded } = await inPage({ webgpu: false }, async ({ model, recipe }) => {
      const client = await Client.open("cpu");
      const planned = await client.ask({ do: "plan", model, recipe }, ["planned"]);
      const load = { do: "load", model, recipe, anyway: false };
      const broken = await client.ask(load, ["loaded"]).catch((error) => error.message);
      return { planned, broken, loaded: await client.ask(load, ["loaded"]) };
    }, { model, recipe });
    assert.ok(planned.parameters > 3e6 && planned.download > 7e6 && planned.needed > 0 && !planned.refusal);
    assert.match(broken, /network/);
    assert.equal(loaded.parameters, planned.parameters);
    const [first, second] = weights();
    assert.equal(weights().length, 2);
    assert.equal(first.from, 0);
    assert.ok(second.from > 1_000_000, `went on from byte ${second.from}`);
  });

  test("is refused, and not kept, where its weights are not those that the hub speaks of", async () => {
    const model = { from: "hub", name: "tests/other", endpoint: site.url };
    const messages = await inPage({ webgpu: false }, async ({ model, recipe }) => {
      const client = await Client.open("cpu");
      const load = () => client.ask({ do: "load", model, recipe, anyway: false }, ["loaded"]).catch((error) => error.message);
      return [await load(), await load()];
    }, { model, recipe });
    for (const message of messages) assert.match(message, /SHA-256/);
    assert.deepEqual(weights("other").map(({ from }) => from), [0, 0]);
  });

  test("is refused before it is fetched where memory will not do", async () => {
    const before = weights().length;
    const model = { from: "hub", name: "tests/tiny", endpoint: site.url };
    const large = { ...recipe, set: [...recipe.set, "training.batch_size=100000"] };
    const message = await inPage({ webgpu: false }, async ({ model, recipe }) => {
      const client = await Client.open("cpu");
      return client.ask({ do: "load", model, recipe, anyway: false }, ["loaded"]).catch((error) => error.message);
    }, { model, recipe: large });
    assert.match(message, /memory.*smaller/s);
    assert.equal(weights().length, before);
  });
});

describe("the GPU lab", () => {
  test("finds every kernel right on WebGPU", async () => {
    const kernels = await inPage({ webgpu: true }, async () => {
      const client = await Client.open("webgpu");
      await client.ask({ do: "conformance", seed: 7 }, ["done"]);
      return client.events.filter(({ is }) => is === "kernel");
    });
    const failed = kernels.filter(({ passed }) => !passed);
    console.log(`  ${kernels.length} comparisons of ${new Set(kernels.map(({ kernel }) => kernel)).size} kernels`);
    assert.deepEqual(failed.map(({ kernel, shapes, error }) => `${kernel} ${shapes}: ${error}`), []);
    assert.ok(kernels.length > 500);
  });
});

describe("a matrix taken through the device", () => {
  test("is refused where the request does not fit itself", async () => {
    const failures = await inPage({ webgpu: false }, async () => {
      const client = await Client.open("cpu");
      const refused = async (matrix, parts) => {
        const from = client.events.length;
        client.post({ do: "compare", shape: [8, 8], block_size: 64, double_quant: false, adapter: null, values: 0, ...matrix }, parts);
        const { kind, message } = await client.wait(["failed", "lost"], from);
        return `${kind}: ${message}`;
      };
      const numbers = (count, value = 0.5) => new Float32Array(count).fill(value).buffer;
      return [
        await refused({ block_size: 48 }, [numbers(64)]),
        await refused({}, [numbers(63)]),
        await refused({}, []),
        await refused({ shape: [1 << 20, 1 << 20] }, [numbers(64)]),
        await refused({ shape: [0, 8] }, [numbers(0)]),
        await refused({}, [numbers(64, NaN)]),
        await refused({ adapter: { a: 1, b: 1, rank: 4, scaling: 1 } }, [numbers(64), numbers(16)]),
        await refused({ adapter: { a: 1, b: 1, rank: 4294967295, scaling: 1 } }, [numbers(64), numbers(16)]),
      ];
    });
    const words = [/48/, /63|252 bytes/, /no part 0/, /elements/, /elements/, /finite/, /part 1 has 64 bytes/, /part 1|rank/];
    words.forEach((word, i) => assert.match(failures[i], word));
    assert.ok(failures.every((failure) => /^(setting|request|file): /.test(failure)), failures.join("; "));
  });

  test("is the same on the CPU", async () => {
    const found = await inPage({ webgpu: false }, async () => {
      const client = await Client.open("cpu");
      const values = Float32Array.from({ length: 40 * 72 }, (_, i) => Math.sin(i)).buffer;
      return client.ask({ do: "compare", values: 0, shape: [40, 72], block_size: 64, double_quant: true, adapter: null }, ["compared"], [values]);
    });
    assert.deepEqual([found.codes, found.scales], [[2880, 0], [45, 0]]);
    assert.ok(found.weight_error < 1e-6 && found.product_error < 1e-5 && found.adapter_error === null, JSON.stringify(found));
  });
});
