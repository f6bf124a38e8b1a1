// The widget in pages of others: with a strict policy, from another origin, in an iframe.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";

import { launch, site, watched } from "./launch.mjs";

const plans = JSON.parse(await readFile(process.env.HALFBYTE_PLANS, "utf8"));
const origin = new URL(site).origin;

// Another host, with the policy that the documentation asks for and nothing more.
const policy = `default-src 'none'; script-src ${origin} 'wasm-unsafe-eval'; connect-src ${origin}; frame-src ${origin}`;
const host = (body) => `<!doctype html><html lang="en"><title>host</title><script type="module" src="${site}halfbyte-memory.js"></script>${body}`;

let browser, server, page, faults;
before(async () => {
  browser = await launch();
  server = createServer((request, response) => {
    response.writeHead(200, { "content-type": "text/html", "content-security-policy": policy });
    response.end(host(decodeURIComponent(new URL(request.url, origin).search.slice(1))));
  });
  await new Promise((done) => server.listen(0, "localhost", done));
});
after(async () => {
  server.close();
  await browser.close();
});

async function embed(body) {
  const context = await browser.newContext();
  ({ page, faults } = await watched(context));
  await page.addInitScript(() => {
    window.heard = [];
    addEventListener("change", ({ detail }) => window.heard.push(detail));
    addEventListener("message", ({ data }) => window.heard.push(data));
  });
  // `localhost` is another origin than the site's 127.0.0.1.
  await page.goto(`http://localhost:${server.address().port}/?${encodeURIComponent(body)}`);
}
const heard = (count) => page.waitForFunction((count) => window.heard.length >= count && window.heard, count).then((handle) => handle.jsonValue());

test("an element tells its plan, the library's, also when an attribute changes", async () => {
  for (const { widget, bytes } of plans.filter((plan) => plan.widget)) {
    await embed(`<halfbyte-memory ${widget}></halfbyte-memory>`);
    assert.equal((await heard(1))[0].needed, bytes, widget);
  }
  await page.evaluate(() => (document.querySelector("halfbyte-memory").length = 512));
  const [first, second] = await heard(2);
  assert.ok(second.needed < first.needed);
  assert.equal(await page.getAttribute("halfbyte-memory", "length"), "512");
  assert.deepEqual(faults, []);
});

test("settings of the keyboard are reflected", async () => {
  await embed('<halfbyte-memory model="llama-3.1-8b" gpu="h100-80gb"></halfbyte-memory>');
  await heard(1);
  assert.equal(await page.getByLabel("GPU").inputValue(), "H100");
  await page.getByLabel("Method").focus();
  await page.keyboard.press("End");
  const [first, second] = await heard(2);
  assert.equal(await page.getAttribute("halfbyte-memory", "method"), "full");
  assert.ok(first.gpu.fits && !second.gpu.fits && second.needed > first.needed);
  assert.equal(second.parts.reduce((sum, part) => sum + part.bytes, 0), second.needed);
  assert.deepEqual(faults, []);
});

test("a configuration as a property; nonsense is an error, not a crash", async () => {
  await embed("<halfbyte-memory></halfbyte-memory>");
  await heard(1);
  const config = { text_config: { model_type: "gemma3_text", hidden_size: 2560, intermediate_size: 10240, num_hidden_layers: 34 } };
  await page.evaluate((config) => (document.querySelector("halfbyte-memory").config = config), config);
  assert.equal((await heard(2))[1].parameters, 3880263168);
  const error = page.locator("halfbyte-memory").getByRole("alert");
  for (const [name, value, words] of [
    ["config", '{"hidden_size": 4096}', /`vocab_size`/],
    ["config", "{", /JSON/],
    ["config", '{"vocab_size": 1.5}', /`vocab_size` is 1\.5/],
    ["config", '{"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 0, "num_attention_heads": 2}', /`num_hidden_layers` is 0/],
    ["rank", "-3", /`rank` is -3/],
    ["method", "magic", /magic/],
    ["gpu", "abacus", /abacus/],
    ["model", "no-such-model", /no-such-model/],
  ]) {
    await page.evaluate(([name, value]) => {
      const element = document.querySelector("halfbyte-memory");
      for (const attribute of [...element.attributes]) element.removeAttribute(attribute.name);
      element.setAttribute(name, value);
    }, [name, value]);
    await error.filter({ hasText: words }).waitFor();
    assert.equal(await page.evaluate(() => document.querySelector("halfbyte-memory").plan), null);
  }
  await page.evaluate(() => document.querySelector("halfbyte-memory").removeAttribute("model"));
  await heard(3);
  assert.equal(await error.textContent(), "");
  assert.deepEqual(faults, []);
});

test("an iframe tells its height and its plan", async () => {
  await embed(`<iframe title="calculator" width="700" src="${site}embed.html?model=qwen3-8b&amp;gpu=l4"></iframe>`);
  const of = (key) => page.waitForFunction((key) => window.heard.findLast((data) => data.source === "halfbyte-memory" && data[key])?.[key], key).then((handle) => handle.jsonValue());
  assert.equal((await of("plan")).gpu.name, "L4");
  const wide = await of("height");
  assert.ok(wide > 150, `${wide}`);
  await page.evaluate(() => (window.heard.length = 0, document.querySelector("iframe").width = 300));
  const narrow = await of("height");
  assert.ok(narrow > wide, `${narrow} in 300 pixels, ${wide} in 700`);
});

test("the demo page uses both", async () => {
  const context = await browser.newContext();
  ({ page, faults } = await watched(context));
  await page.goto(`${site}demo/`);
  await page.getByText(/GiB, (fits|does not fit) RTX 4090/).waitFor();
  await page.waitForFunction(() => document.querySelector("iframe").style.height !== "");
  const [frame, inside] = [page.locator("iframe"), page.frameLocator("iframe").locator("body")];
  await inside.getByText("does not fit").or(inside.getByText("fits")).first().waitFor();
  await page.waitForFunction(() => Math.abs(document.querySelector("iframe").getBoundingClientRect().height - parseFloat(document.querySelector("iframe").style.height)) < 1);
  assert.ok((await frame.boundingBox()).height > 200);
  assert.deepEqual(faults, []);
});
