// A hub with the shipped model, whose first download of the weights breaks off, and the same again under another name, whose weights are not
// those that the hub speaks of.

import { createHash } from "node:crypto";
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
  const sibling = (rfilename, repository) => {
    const bytes = readFileSync(join(FOLDER, rfilename));
    const sha256 = createHash("sha256").update(repository === "other" ? "other weights" : bytes).digest("hex");
    return { rfilename, size: bytes.length, ...(rfilename.endsWith(".safetensors") && { lfs: { sha256 } }) };
  };
  const answer = (request, response, { pathname }) => {
    const repository = pathname.match(/^\/api\/models\/tests\/(tiny|other)\/revision\/main$/)?.[1];
    if (repository) {
      const siblings = readdirSync(FOLDER).map((name) => sibling(name, repository));
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ sha: COMMIT, siblings }));
      return true;
    }
    const [, of, file] = pathname.match(`^/tests/(tiny|other)/resolve/${COMMIT}/([^/]+)$`) ?? [];
    if (!file) return false;
    const bytes = readFileSync(join(FOLDER, file));
    const from = Number(request.headers.range?.match(/^bytes=(\d+)-$/)?.[1] ?? 0);
    asked.push({ of, file, from });
    const headers = { "content-type": "application/octet-stream", "content-length": bytes.length - from };
    if (from) headers["content-range"] = `bytes ${from}-${bytes.length - 1}/${bytes.length}`;
    response.writeHead(from ? 206 : 200, headers);
    if (of === "tiny" && file === "model.safetensors" && !broken) {
      broken = true;
      response.write(bytes.subarray(0, BROKEN_AT), () => setTimeout(() => response.destroy(), 200));
    } else {
      response.end(bytes.subarray(from));
    }
    return true;
  };
  return { asked, answer };
}
