// xterm.js makes <style> elements and style attributes, which the page's Content-Security-Policy
// refuses: they would let text restyle the page. With this, the elements that it makes put their
// styles into constructed style sheets and properties, which are allowed. (Its option
// documentOverride does not reach all of its parts in 6.0.)

let isDone = false;

/** From now on, <style> elements and spans of this document are made so. */
export function makeStylesStrict() {
  if (isDone) return;
  isDone = true;
  const make = Document.prototype.createElement;
  document.createElement = (tag, options) => {
    if (tag === "style") return styleSheet(make);
    const element = make.call(document, tag, options);
    if (tag === "span") element.setAttribute = setAttribute;
    return element;
  };
}

function setAttribute(name, value) {
  if (name === "style") this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
}

/** A node whose text is the content of a style sheet, from when it is set until it is removed. */
function styleSheet(make) {
  const sheet = new CSSStyleSheet();
  const element = make.call(document, "span");
  element.hidden = true;
  Object.defineProperty(element, "textContent", { set: (text) => sheet.replaceSync(text) });
  document.adoptedStyleSheets.push(sheet);
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((other) => other !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}
