// Ctrl-C while a program floods the terminal. The pod's kernel then drops what the program has
// written and nobody has read yet, so that the prompt comes at once; but the engine's connection holds
// megabytes that were read before, and to draw them takes seconds. They are dropped here, but for
// their end, up to the "^C" with which the kernel answers the key.

const KEYS = [0x03, 0x1a, 0x1c]; // Ctrl-C, Ctrl-Z, Ctrl-\: the kernel writes "^" and the letter.
const CARET = 0x5e;
const LETTERS = 0x40;
const LINE_FEED = 0x0a;
const KEPT_BYTES = 16 * 1024;
// Where no "^C" comes (a program that reads keys itself, `stty -echo`): until nothing has come for
// so long, or at the latest.
const QUIET_MS = 400;
const LAST_MS = 4000;

/** Whether these bytes of input are a key that interrupts a program. */
export function interrupts(bytes) {
  return bytes.length === 1 && KEYS.includes(bytes[0]);
}

export class Interruption {
  /** `over(pieces, dropped)` is called once, with what is to be drawn and how many bytes before it
   * are not. */
  constructor(key, over) {
    this.letter = key + LETTERS;
    this.over = over;
    this.pieces = [];
    this.kept = 0;
    this.dropped = 0;
    this.last = performance.now() + LAST_MS;
    this.wait();
  }

  wait() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.end(), QUIET_MS);
  }

  /** Takes output. */
  take(data) {
    this.pieces.push(data);
    this.kept += data.length;
    while (this.kept - this.pieces[0].length >= KEPT_BYTES) this.drop(this.pieces.shift().length);
    if (this.isAnswered(data) || performance.now() > this.last) this.end();
    else this.wait();
  }

  drop(count) {
    this.kept -= count;
    this.dropped += count;
  }

  isAnswered(data) {
    for (let at = data.indexOf(CARET); at >= 0; at = data.indexOf(CARET, at + 1)) {
      if (data[at + 1] === this.letter) return true;
    }
    return false;
  }

  end() {
    clearTimeout(this.timer);
    if (this.dropped) {
      // Not in the middle of a character, or of what sets a colour.
      const rest = this.pieces[0].indexOf(LINE_FEED) + 1;
      this.pieces[0] = this.pieces[0].subarray(rest);
      this.drop(rest);
    }
    this.over(this.pieces, this.dropped);
  }
}
