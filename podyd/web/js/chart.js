// Meters and curves.

import { h, svg } from "./dom.js";

/** A bar of how much of a limit is used; `share` from 0 to 1, NaN if it is not known, null without a
 * limit and so without a bar. `label` is its name for screen readers, `text` what stands beside it. */
export function meter({ share, label, text }) {
  const bar = share !== null && h("span", { class: "bar" });
  const known = Number.isFinite(share);
  const percent = known ? Math.round(Math.min(1, Math.max(0, share)) * 100) : 0;
  if (bar) bar.style.setProperty("--share", `${percent}%`);
  if (known && share >= 0.9) bar.classList.add("high");
  const described = { role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100,
    "aria-valuenow": percent, "aria-valuetext": text };
  return h("span", { class: "meter", ...(known ? described : {}) }, bar, h("span", { class: "value" }, text));
}

/** A curve of values (null: not known, a gap) from 0 to `top`, as an SVG image with a name: {element,
 * mark(index)}, which draws a line at a value, or none with null. `pointed(index)`: the one that is
 * pointed at, null if none is. */
export function curve({ values, top, label, pointed, width = 240, height = 48 }) {
  const step = width / Math.max(1, values.length - 1);
  const y = (value) => height - 1 - (Math.min(value, top) / (top || 1)) * (height - 2);
  let path = "";
  let isGap = true;
  values.forEach((value, index) => {
    if (value === null || value === undefined) {
      isGap = true;
      return;
    }
    path += `${isGap ? "M" : "L"}${(index * step).toFixed(1)} ${y(value).toFixed(1)}`;
    // A value between two gaps would not be seen.
    if (isGap) path += "h0.5";
    isGap = false;
  });
  const thin = { "vector-effect": "non-scaling-stroke" };
  const marker = svg("path", { class: "marker", ...thin });
  const element = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", role: "img", "aria-label": label,
    preserveAspectRatio: "none" },
    svg("path", { d: [0.5, height / 2, height - 0.5].map((at) => `M0 ${at}H${width}`).join(""), class: "axis", ...thin }),
    path && svg("path", { d: path, class: "line", ...thin }), marker);
  const point = ({ clientX }) => {
    const { left, width: wide } = element.getBoundingClientRect();
    pointed(Math.min(values.length - 1, Math.max(0, Math.round(((clientX - left) / wide) * (values.length - 1)))));
  };
  element.addEventListener("pointermove", point);
  element.addEventListener("pointerdown", point);
  element.addEventListener("pointerleave", () => pointed(null));
  const mark = (index) => marker.setAttribute("d", index === null ? "" : `M${(index * step).toFixed(1)} 0V${height}`);
  return { element, mark };
}
