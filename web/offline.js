// The service worker: after the first visit the site works without a network. `cargo xtask web` fills in the list of files,
// and a name that changes when any of them does.
const cacheName = "halfbyte-" + "NAME";
const files = ["FILES"];

self.addEventListener("install", (event) => {
  const fresh = files.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(cacheName).then((cache) => cache.addAll(fresh)));
});

self.addEventListener("activate", (event) => {
  const clean = async () => {
    const names = await caches.keys();
    const old = names.filter((name) => name.startsWith("halfbyte-") && name !== cacheName);
    await Promise.all(old.map((name) => caches.delete(name)));
    await self.clients.claim();
  };
  event.waitUntil(clean());
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const inside = url.href.startsWith(self.registration.scope);
  if (event.request.method !== "GET" || !inside || event.request.headers.has("range")) return;
  event.respondWith(answer(event.request, url));
});

async function answer(request, url) {
  const cache = await caches.open(cacheName);
  // A page is the same whatever its query says, with a slash at its end or without.
  const known = (await cache.match(request, { ignoreSearch: true })) ?? (await cache.match(url.origin + url.pathname + "/"));
  if (known) return known;
  const response = await fetch(request);
  if (response.ok && url.pathname.includes("/models/")) await cache.put(request, response.clone());
  return response;
}
