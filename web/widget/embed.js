// The page inside an iframe: attributes come from the address, and the page around hears how high this one is and each plan.
const element = document.querySelector("halfbyte-memory");
for (const [name, value] of new URLSearchParams(location.search)) element.setAttribute(name, value);

const sheet = new CSSStyleSheet();
sheet.replaceSync("body { margin: 0; }");
document.adoptedStyleSheets = [sheet];

// Any page may embed this one, and nothing that is told is secret.
const tell = (message) => parent.postMessage({ source: "halfbyte-memory", ...message }, "*");
new ResizeObserver(() => tell({ height: Math.ceil(document.documentElement.getBoundingClientRect().height) })).observe(document.documentElement);
element.addEventListener("change", (event) => tell({ plan: event.detail }));
