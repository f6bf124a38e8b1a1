// How soon the first page is useful: prints it, and asserts nothing, for it is the machine's speed as much as the site's.
//
//   cargo xtask web --serve      in one shell, then in another
//   node tests/browser/speed.js  after `npm ci` in tests/browser
//
// First visit: a browser without anything stored. Later visit: a browser started anew over what the first one left on the disk,
// which the service worker answers from.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { chromium } from "playwright-core";

import { executablePath, plain, site } from "./launch.js";

const RUNS = 5;
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

// Milliseconds from the start of the navigation.
async function visit(profile, stay) {
  const context = await chromium.launchPersistentContext(profile, { executablePath, args: plain });
  try {
    const page = await context.newPage();
    await page.addInitScript(() => {
      new MutationObserver((_, observer) => {
        if (!document.querySelector("main h1")) return;
        window.useful = performance.now();
        observer.disconnect();
      }).observe(document, { childList: true, subtree: true });
    });
    await page.goto(site);
    await page.waitForFunction(() => window.useful && performance.getEntriesByName("first-contentful-paint").length);
    const found = await page.evaluate(() => ({
      painted: performance.getEntriesByName("first-contentful-paint")[0].startTime,
      useful: window.useful,
      worker: Boolean(navigator.serviceWorker.controller),
    }));
    if (stay) {
      await page.evaluate(() => navigator.serviceWorker.ready.then(({ active }) =>
        active.state === "activated" || new Promise((done) => active.addEventListener("statechange", () => active.state === "activated" && done()))));
    }
    return found;
  } finally {
    await context.close();
  }
}

const runs = { "first visit": [], "later visit": [] };
for (let run = 0; run < RUNS; run++) {
  const profile = await mkdtemp(join(tmpdir(), "halfbyte-speed-"));
  try {
    runs["first visit"].push(await visit(profile, true));
    const later = await visit(profile, false);
    if (!later.worker) throw new Error("the service worker did not answer");
    runs["later visit"].push(later);
  } finally {
    await rm(profile, { recursive: true });
  }
}
for (const [name, all] of Object.entries(runs)) {
  for (const [word, key] of [["first contentful paint", "painted"], ["heading of the app", "useful"]]) {
    const values = all.map((one) => one[key]);
    console.log(`${name}, ${word}: median ${Math.round(median(values))} ms (${values.map(Math.round).join(", ")})`);
  }
}
