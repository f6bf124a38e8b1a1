// What the worker's tests serve: the built worker, a page that has it, the shipped model and data.

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

import { KEEP_DEVICE } from "./keep.js";

export const root = fileURLToPath(new URL("../../../", import.meta.url));
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm", ".json": "application/json" };
const folders = {
  worker: process.env.HALFBYTE_WORKER ?? join(root, "web/dist/worker"),
  models: join(root, "models"),
  recipes: join(root, "recipes"),
  host: fileURLToPath(new URL(".", import.meta.url)),
};

async function answer(request, response, extra) {
  const url = new URL(request.url, "http://localhost");
  if (await extra?.(request, response, url)) return;
  if (url.pathname === "/favicon.ico") return response.writeHead(204).end();
  const [, folder, ...rest] = normalize(url.pathname).split("/");
  try {
    let bytes = await readFile(join(folders[folder], ...rest));
    if (url.pathname === "/worker/worker.js" && url.searchParams.has("keep")) bytes = KEEP_DEVICE + bytes;
    const type = TYPES[extname(url.pathname)] ?? "application/octet-stream";
    response.writeHead(200, { "content-type": type, "content-length": Buffer.byteLength(bytes) });
    response.end(request.method === "HEAD" ? undefined : bytes);
  } catch {
    response.writeHead(404).end("not here");
  }
}

// Serves on a free port; `extra` may answer a request itself.
export async function serve(extra) {
  const server = createServer((request, response) => answer(request, response, extra));
  await new Promise((listening) => server.listen(0, "localhost", listening));
  return { url: `http://localhost:${server.address().port}`, close: () => server.close() };
}
