// The smallest page side of the worker's protocol, for tests: posts requests, keeps events, waits for one of a kind.

class Client {
  events = [];
  #waiting = [];

  constructor() {
    this.worker = new Worker(`/worker/worker.js${location.search}`, { type: "module" });
    this.worker.onmessage = ({ data: { json, parts } }) => {
      const event = { ...JSON.parse(json), parts };
      this.events.push(event);
      this.#waiting = this.#waiting.filter((waiting) => !waiting(event));
    };
    this.worker.onerror = (event) => {
      this.events.push({ is: "lost", kind: "bug", message: `the worker's script failed: ${event.message}` });
    };
  }

  post(request, parts = []) {
    const buffers = parts.filter((part) => part instanceof ArrayBuffer);
    this.worker.postMessage({ json: JSON.stringify(request), parts }, buffers);
  }

  // The next event of one of these kinds from place `from` on; a failure is thrown unless it is one of them.
  wait(kinds, from = this.events.length) {
    const wanted = (event) => kinds.includes(event.is) || ["failed", "lost"].includes(event.is);
    const answer = (event) => {
      if (!kinds.includes(event.is)) throw new Error(`${event.is} (${event.kind}): ${event.message}`);
      return event;
    };
    const past = this.events.slice(from).find(wanted);
    if (past) return Promise.resolve(past).then(answer);
    return new Promise((resolve) => {
      this.#waiting.push((event) => wanted(event) && (resolve(event), true));
    }).then(answer);
  }

  ask(request, kinds, parts) {
    const answer = this.wait(kinds);
    this.post(request, parts);
    return answer;
  }

  // A worker with a device, and the shipped model where a recipe is given.
  static async open(device, recipe) {
    const client = new Client();
    await client.wait(["awake"], 0);
    await client.ask({ do: "open", device }, ["ready"]);
    if (recipe) await client.ask({ do: "load", model: Client.model, recipe, anyway: false }, ["loaded"]);
    return client;
  }

  static model = { from: "site", name: "models/wordnet-4m", url: "/models/wordnet-4m/" };
}

window.Client = Client;
