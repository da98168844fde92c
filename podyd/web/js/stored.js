// What the browser keeps of this page. One that keeps nothing, or is full, is no error: the page
// forgets it when it is loaded anew.

/** What was kept under a name; null if nothing was. `where`: "sessionStorage" is this tab's own. */
export function recall(name, where = "localStorage") {
  try {
    return window[where].getItem(name);
  } catch {
    return null;
  }
}

/** Keeps text under a name. */
export function keep(name, text, where = "localStorage") {
  try {
    window[where].setItem(name, text);
  } catch {
    forget(name, where); // What was there before does not hold any more.
  }
}

function forget(name, where) {
  try {
    window[where].removeItem(name);
  } catch { /* Then there is nothing. */ }
}
