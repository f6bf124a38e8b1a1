// A headless Chromium, with WebGPU by its software adapter or without.

import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const SOFTWARE_GPU = [
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--enable-features=Vulkan,WebGPU",
  "--use-vulkan=swiftshader",
  "--ignore-gpu-blocklist",
];

export async function launch({ webgpu = true } = {}) {
  const installed = process.env.CHROMIUM ?? "/usr/bin/chromium";
  return chromium.launch({
    executablePath: existsSync(installed) ? installed : undefined,
    args: ["--no-sandbox", "--disable-background-networking", ...(webgpu ? SOFTWARE_GPU : ["--disable-features=WebGPU"])],
  });
}
