// Text that somebody else has chosen, such as the name of a file in a pod: each in an isolated
// direction, with what cannot be seen written out.

import { h } from "./dom.js";

// Control characters, and those that turn the direction of what follows.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe]/;
// In text of several lines, joiners are of scripts and emoji, and lines end as they do.
const UNSEEN_IN_TEXT = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
// Colours and movements of a terminal.
const ESCAPES = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[()][0-9A-B]|[=>78cM])/g;

/** A name for a sentence; one that is read from the right is isolated, and nothing in it ends that. */
export function plain(name) {
  const shown = name.replace(UNSEEN, escaped);
  return RIGHT_TO_LEFT.test(shown) ? `\u2068${shown}\u2069` : shown;
}

/** A name as children of an element. */
export function written(name) {
  const shown = name.split(UNSEEN);
  const between = name.match(UNSEEN) ?? [];
  return shown.map((text, at) => [text, at < between.length && h("span", { class: "escape" }, escaped(between[at]))]);
}

function escaped(character) {
  const short = { "\n": "\\n", "\t": "\\t", "\r": "\\r" }[character];
  return short ?? `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`;
}

/** Text of several lines, such as a log, without what a terminal would make of it. */
export function harmless(text) {
  return text.replace(ESCAPES, "").replace(/\r(?=[\r\n])/g, "").replace(UNSEEN_IN_TEXT, escaped);
}
