// Adapters on the disk: out of a zip, and how far two are apart.

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

// Unpacks the zip of an adapter; the folder that it holds.
export function unzip(bytes, folder) {
  const file = join(folder, "adapter.zip");
  writeFileSync(file, bytes);
  execFileSync("python3", ["-m", "zipfile", "-e", file, folder]);
  return join(folder, "adapter");
}

// The tensors of an adapter folder, all of them f32.
export function tensors(folder) {
  const bytes = readFileSync(join(folder, "adapter_model.safetensors"));
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + length));
  delete header.__metadata__;
  const tensor = ({ dtype, data_offsets: [from, to] }) => {
    if (dtype !== "F32") throw new Error(`a tensor is ${dtype}`);
    // Copied: a Buffer's own slices are views of memory that begins elsewhere.
    return new Float32Array(Uint8Array.from(bytes.subarray(8 + length + from, 8 + length + to)).buffer);
  };
  return new Map(Object.entries(header).map(([name, info]) => [name, tensor(info)]));
}

// The norm of the difference of two adapters over that of the second: of all their tensors as one vector, and of the worst
// tensor that was trained at all.
export function distance(one, other) {
  const [found, expected] = [tensors(one), tensors(other)];
  if (String([...found.keys()].sort()) !== String([...expected.keys()].sort())) throw new Error("other tensors");
  let [difference, norm, worst] = [0, 0, 0];
  for (const [name, values] of expected) {
    let [d, n] = [0, 0];
    values.forEach((value, i) => {
      d += (found.get(name)[i] - value) ** 2;
      n += value ** 2;
    });
    if (n > 0) worst = Math.max(worst, Math.sqrt(d / n));
    difference += d;
    norm += n;
  }
  return { whole: Math.sqrt(difference / norm), worst };
}
