// Builds elements. Text goes into text nodes only: nothing here, or anywhere, parses markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("button", {type: "button", class: "quiet", onclick: f}, "Stop"). Properties are
 * attributes, but for functions (event listeners: onclick) and `data` (an object: data-...). A value
 * of null, undefined or false leaves an attribute out; true sets it to "". */
export function h(tag, properties, ...children) {
  return build(document.createElement(tag), properties, children);
}

/** As `h`, for SVG. */
export function svg(tag, properties, ...children) {
  return build(document.createElementNS(SVG, tag), properties, children);
}

function build(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Replaces what is in an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

/** As `fill`, but a child that would be the same stays as it is, with focus and selection. Not for
 * children whose listeners would be others. */
export function refill(element, ...children) {
  const fresh = [...fill(document.createElement("div"), ...children).childNodes];
  const old = [...element.childNodes];
  fresh.forEach((node, index) => {
    if (index >= old.length) element.append(node);
    else if (!old[index].isEqualNode(node)) old[index].replaceWith(node);
  });
  old.slice(fresh.length).forEach((node) => node.remove());
  return element;
}

/** Sets an element's text, unless it has it already, so that what is selected stays selected. */
export function setText(element, text) {
  if (element.textContent !== String(text)) element.textContent = String(text);
}
