// A hub with one repository, the shipped model, whose first download of the weights breaks off.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { root } from "./site.js";

const FOLDER = join(root, "models/wordnet-4m");
const COMMIT = "0123456789abcdef0123456789abcdef01234567";
const BROKEN_AT = 3_000_000;

// What the hub was asked for, and how it answers: `answer` goes into the tests' server.
export function hub() {
  const asked = [];
  let broken = false;
  const answer = (request, response, { pathname }) => {
    if (pathname === "/api/models/tests/tiny/revision/main") {
      const siblings = readdirSync(FOLDER).map((rfilename) => ({ rfilename, size: readFileSync(join(FOLDER, rfilename)).length }));
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ sha: COMMIT, siblings }));
      return true;
    }
    const file = pathname.match(`^/tests/tiny/resolve/${COMMIT}/([^/]+)$`)?.[1];
    if (!file) return false;
    const bytes = readFileSync(join(FOLDER, file));
    const from = Number(request.headers.range?.match(/^bytes=(\d+)-$/)?.[1] ?? 0);
    asked.push({ file, from });
    const headers = { "content-type": "application/octet-stream", "content-length": bytes.length - from };
    if (from) headers["content-range"] = `bytes ${from}-${bytes.length - 1}/${bytes.length}`;
    response.writeHead(from ? 206 : 200, headers);
    if (file === "model.safetensors" && !broken) {
      broken = true;
      response.write(bytes.subarray(0, BROKEN_AT), () => setTimeout(() => response.destroy(), 200));
    } else {
      response.end(bytes.subarray(from));
    }
    return true;
  };
  return { asked, answer };
}
