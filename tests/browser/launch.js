// A browser for tests, and what every page must not do.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

// Where the built site is served: `cargo xtask web-test` says it, or `cargo xtask web --serve` and HALFBYTE_SITE.
export const site = process.env.HALFBYTE_SITE ?? "http://127.0.0.1:8080/halfbyte/";

export const plain = ["--no-sandbox", "--disable-background-networking"];
// WebGPU on the CPU: what it computes is right, what it measures says nothing about a GPU.
const software = [
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--enable-features=Vulkan,WebGPU",
  "--use-vulkan=swiftshader",
  "--ignore-gpu-blocklist",
];

export const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";

export function launch({ webgpu = true } = {}) {
  const args = webgpu ? [...plain, ...software] : plain;
  return chromium.launch({ executablePath, args });
}

// A page that remembers what went wrong on it; `faults` must stay empty.
export async function watched(context) {
  const page = await context.newPage();
  const faults = [];
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("requestfailed", (request) => {
    // What a page or a worker was still fetching when it went is broken off with it.
    if (request.failure()?.errorText !== "net::ERR_ABORTED") faults.push(`${request.url()}: ${request.failure()?.errorText}`);
  });
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  });
  return { page, faults };
}

// Opens a page of the site and waits until the app has started.
export async function open(page, path = "") {
  const response = await page.goto(site + path);
  assert.equal(response.status(), 200, path);
  await page.waitForSelector("html[data-ready] main h1");
}
