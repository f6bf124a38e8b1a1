// Every page: it is found by its address and by the navigation, breaks no policy, asks no other host, and can be read and used
// without a mouse or without seeing it.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";

import { launch, open, site, watched } from "./launch.js";

const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const table = await readFile(new URL("../../web/src/routes.rs", import.meta.url), "utf8");
const paths = [...table.matchAll(/^ {12}"([^"]*)", "/gm)].map((match) => match[1]);
const address = (path) => (path ? `${path}/` : "");

let browser;
before(async () => (browser = await launch({ webgpu: false })));
after(() => browser.close());

test("the table of pages was read", () => assert.ok(paths.includes("") && paths.includes("calculator"), paths.join()));

for (const path of paths) {
  test(`/${path} is found by its address`, async () => {
    const context = await browser.newContext({ serviceWorkers: "block" });
    const { page, faults } = await watched(context);
    const hosts = new Set();
    page.on("request", (request) => hosts.add(new URL(request.url()).host));
    await open(page, address(path));
    assert.notEqual(await page.textContent("main h1"), "There is no such page");
    assert.ok((await page.title()).includes("Halfbyte"));
    assert.deepEqual(faults, []);
    assert.deepEqual([...hosts], [new URL(site).host]);
    await context.close();
  });

  for (const [width, height] of [[390, 844], [1280, 800]]) {
    for (const colorScheme of ["light", "dark"]) {
      test(`/${path} passes axe, ${width} wide and ${colorScheme}`, async () => {
        const context = await browser.newContext({ viewport: { width, height }, colorScheme, bypassCSP: true, serviceWorkers: "block" });
        const { page } = await watched(context);
        await open(page, address(path));
        // What is folded away is looked at too.
        await page.$$eval("details", (all) => all.forEach((one) => (one.open = true)));
        await page.evaluate(axe);
        const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
        const grave = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
        assert.deepEqual(grave.map(({ id, nodes }) => [id, ...nodes.map((node) => node.target.join(" "))]), []);
        const [inner, whole] = await page.evaluate(() => [document.documentElement.clientWidth, document.documentElement.scrollWidth]);
        assert.ok(whole <= inner, `the page is ${whole} wide in a window of ${inner}`);
        await context.close();
      });
    }
  }
}

test("the navigation goes to every page it names, and back", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const { page, faults } = await watched(context);
  await open(page);
  const words = await page.locator("header nav a").allTextContents();
  assert.ok(words.length >= 2);
  for (const word of words) {
    await page.locator("header nav").getByText(word, { exact: true }).click();
    // The link of the page before is the current one until the new page is there.
    await page.locator("header nav a[aria-current=page]").filter({ hasText: word }).waitFor();
    assert.notEqual(await page.textContent("main h1"), "There is no such page");
  }
  await page.goBack();
  await page.locator("header nav a[aria-current=page]").filter({ hasText: words.at(-2) }).waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});

test("the keyboard skips to the content, and starts there on a new page", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const { page } = await watched(context);
  await open(page);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "content");
  await page.locator("header nav").getByText("Calculator", { exact: true }).press("Enter");
  await page.waitForFunction(() => document.activeElement.id === "content");
  assert.match(await page.title(), /^Memory calculator/);
  await context.close();
});

test("a theme is chosen and remembered", async () => {
  const context = await browser.newContext({ colorScheme: "light", serviceWorkers: "block" });
  const { page } = await watched(context);
  const paper = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  await open(page);
  const light = await paper();
  await page.getByRole("group", { name: "Theme" }).getByText("Dark").click();
  const dark = await paper();
  assert.notEqual(dark, light);
  await page.reload();
  await page.waitForSelector("html[data-ready]");
  assert.equal(await paper(), dark);
  await page.getByRole("group", { name: "Theme" }).getByText("Auto").click();
  assert.equal(await paper(), light);
  await context.close();
});

test("an unknown address says so", async () => {
  const context = await browser.newContext({ serviceWorkers: "block" });
  const page = await context.newPage();
  const response = await page.goto(`${site}no/such/page/`);
  assert.equal(response.status(), 404);
  assert.equal(await page.textContent("h1"), "There is no such page");
  await context.close();
});

test("after the first visit the site works without a network", async () => {
  const context = await browser.newContext();
  const page = await context.newPage();
  await open(page);
  await page.evaluate(() => navigator.serviceWorker.ready.then(({ active }) =>
    active.state === "activated" || new Promise((done) => active.addEventListener("statechange", () => active.state === "activated" && done()))));
  await context.setOffline(true);
  for (const path of [...paths.map(address), "calculator/?model=qwen3-8b", "embed.html"]) {
    await page.goto(site + path);
    await page.waitForSelector(path === "embed.html" ? "halfbyte-memory" : "html[data-ready] main h1");
    assert.notEqual(await page.textContent("body"), "");
  }
  await page.goto(`${site}calculator/?model=qwen3-8b`);
  await page.waitForFunction(() => /GiB/.test(document.querySelector("#needed")?.textContent));
  await context.close();
});

test("on a phone the pages are on one line, and all of them can be reached", async () => {
  for (const width of [360, 390]) {
    const context = await browser.newContext({ viewport: { width, height: 844 }, serviceWorkers: "block" });
    const { page } = await watched(context);
    await open(page, "lessons/nf4/");
    const links = await page.locator("header nav a:visible").evaluateAll((all) => all.map((link) => {
      const { top, left, right } = link.getBoundingClientRect();
      return { word: link.textContent, top, left, right };
    }));
    assert.deepEqual(links.map(({ word }) => word), ["Lessons", "Playground", "GPU lab", "Calculator"]);
    assert.equal(new Set(links.map(({ top }) => Math.round(top))).size, 1, `one line at ${width}`);
    assert.ok(links.every(({ left, right }) => left >= 0 && right <= width), `in sight at ${width}: ${JSON.stringify(links)}`);
    // The name leads home, where there is no word for it.
    await page.getByRole("link", { name: "Halfbyte, home" }).click();
    await page.getByRole("heading", { level: 1, name: "Fine-tune a language model in four bits" }).waitFor();
    await context.close();
  }
});
