// Goes before the worker's own script, so that a test can do to its GPU device what a driver does: `globalThis.device`.

export const KEEP_DEVICE = `
const request = GPUAdapter.prototype.requestDevice;
GPUAdapter.prototype.requestDevice = async function (...options) {
  return (globalThis.device = await request.apply(this, options));
};
`;
