// A picture of every page, on a phone and on a desktop, light and dark, for somebody to look at.
//
//   cargo xtask web --serve                      in one shell, then in another
//   npm run photograph FOLDER                    in tests/browser, after `npm ci`

import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";

import { launch, open } from "./launch.js";

const [folder] = process.argv.slice(2);
if (!folder) throw new Error("usage: node photograph.js FOLDER");
await mkdir(folder, { recursive: true });

const table = await readFile(new URL("../../web/src/routes.rs", import.meta.url), "utf8");
const paths = [...table.matchAll(/^ {12}"([^"]*)", "/gm)].map((match) => match[1]);

const browser = await launch();
for (const [kind, width, height] of [["phone", 390, 844], ["desktop", 1280, 800]]) {
  for (const colorScheme of ["light", "dark"]) {
    const context = await browser.newContext({ viewport: { width, height }, colorScheme, serviceWorkers: "block" });
    for (const path of paths) {
      const page = await context.newPage();
      await open(page, path ? `${path}/` : "");
      // Charts are drawn, and the playground has found its device.
      await page.waitForTimeout(1500);
      const name = `${path.replaceAll("/", "-") || "home"}-${kind}-${colorScheme}.png`;
      await page.screenshot({ path: join(folder, name), fullPage: true });
      console.log(name);
      await page.close();
    }
    await context.close();
  }
}
await browser.close();
