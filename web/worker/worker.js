// Starts the engine in this worker; it says `awake` when it listens.
import init from "./halfbyte_worker.js";

await init();
