// Starts the app, and says where the site begins: it may lie at the root of a host or in a folder of one.
const script = document.querySelector("script[data-wasm]");
const root = new URL(".", import.meta.url);
document.documentElement.dataset.base = root.pathname.replace(/\/$/, "");

// A browser may ask for the icon again when the app has changed the address, which the icon's must not follow.
const icon = document.querySelector("link[rel=icon]");
icon.href = new URL(icon.getAttribute("href"), document.baseURI);

try {
  const app = await import(new URL(script.dataset.js, document.baseURI));
  await app.default({ module_or_path: new URL(script.dataset.wasm, document.baseURI) });
  document.documentElement.dataset.ready = "";
} catch (error) {
  console.error(error);
  const message = document.createElement("p");
  message.className = "boot-failed";
  message.textContent = `Halfbyte could not start: ${error}. It needs a browser with WebAssembly; reloading the page helps when the download broke off.`;
  document.body.append(message);
}

// A page of the published site names its service worker; while the site is worked on there is none. It fetches the whole site, so
// the page comes first.
const offline = document.documentElement.dataset.offline;
if (offline && "serviceWorker" in navigator) {
  navigator.serviceWorker.register(new URL(offline, root)).catch((error) => console.warn("no offline copy:", error));
}
