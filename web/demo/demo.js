// What a host page does with the widget: hears its plans, and gives the frame the height that it asks for.
document.querySelector("#element").addEventListener("change", ({ detail: plan }) => {
  const fits = plan.gpu ? `${plan.gpu.fits ? "fits" : "does not fit"} ${plan.gpu.name}` : "no GPU chosen";
  document.querySelector("#heard").textContent = `${(plan.needed / 2 ** 30).toFixed(1)} GiB, ${fits}`;
});

const frame = document.querySelector("#frame");
addEventListener("message", ({ source, data }) => {
  if (source === frame.contentWindow && data?.source === "halfbyte-memory" && data.height) frame.style.height = `${data.height}px`;
});
