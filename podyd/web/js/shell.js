// A session of /pod/shell: frames whose first byte is the channel (the API's document has them all).

import { protocols, socketUrl } from "./api.js";
import { interrupts, Interruption } from "./interruption.js";

const STDIN = 0;
const STDOUT = 1;
const END = 3;
const CONTROL = 4;
// So much output podyd may be ahead of what the terminal has drawn: small, so that what is typed is
// answered soon while a program floods it.
const WINDOW_BYTES = 64 * 1024;
const PIECE_BYTES = 32 * 1024;
// Where so much has come within one or two of these spans, more is under way.
const FLOOD_BYTES = 8 * 1024;
const FLOOD_MS = 1000;
// What is not drawn may come as fast as podyd can send it.
const SKIP_BYTES = 1024 * 1024;

export class Shell {
  /** `output(bytes, taken)`: calls `taken` once it is drawn. `skipped(count)`: called where output is
   * left out, if `maySkip()` when a program was interrupted. `ended(end)`: podyd's last message; null
   * if the connection was lost, or could not be made. */
  constructor({ ins, rows, cols, cmd, output, maySkip, skipped, ended }) {
    this.output = output;
    this.maySkip = maySkip;
    this.skipped = skipped;
    this.interruption = null;
    this.came = { since: 0, before: 0, lately: 0 }; // Bytes of output in this span and the one before.
    this.input = [];
    this.sent = 0; // Bytes of input: sent, and taken by the program.
    this.taken = 0;
    this.window = 0;
    this.drawn = 0; // Bytes of output: drawn, and acknowledged.
    this.acknowledged = 0;
    this.size = { rows, cols };
    this.end = null;
    const socket = new WebSocket(socketUrl("pod/shell", { ins, rows, cols }), protocols());
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.control({ ...(cmd ? { cmd } : {}), window: WINDOW_BYTES, term: "xterm-256color" });
    };
    socket.onmessage = ({ data }) => this.took(new Uint8Array(data));
    socket.onclose = () => {
      this.interruption?.end();
      ended(this.end);
    };
  }

  took(frame) {
    const data = frame.subarray(1);
    if (frame[0] === STDOUT) this.draw(data);
    else if (frame[0] === END) this.end = JSON.parse(new TextDecoder().decode(data));
    else if (frame[0] === CONTROL) this.controlled(JSON.parse(new TextDecoder().decode(data)));
  }

  controlled(message) {
    if (message.window !== undefined) this.window = message.window;
    if (message.taken !== undefined) this.taken = message.taken;
    this.flush();
  }

  /** Adds to how much output has come lately; returns that. */
  count(bytes) {
    const now = performance.now();
    const { since, lately } = this.came;
    if (now - since > FLOOD_MS) this.came = { since: now, before: now - since > 2 * FLOOD_MS ? 0 : lately, lately: 0 };
    this.came.lately += bytes;
    return this.came.before + this.came.lately;
  }

  draw(data) {
    this.count(data.length);
    if (this.interruption === null) return this.output(data, () => this.drew(data.length));
    this.drawn += data.length;
    if (this.drawn + SKIP_BYTES - this.acknowledged >= SKIP_BYTES / 4) this.acknowledge(this.drawn + SKIP_BYTES);
    this.interruption.take(data);
  }

  interrupt(key) {
    this.acknowledge(this.drawn + SKIP_BYTES);
    this.interruption = new Interruption(key, (pieces, dropped) => {
      this.interruption = null;
      this.acknowledge(this.drawn);
      if (dropped) this.skipped(dropped);
      for (const piece of pieces) this.output(piece, () => {});
    });
  }

  drew(count) {
    this.drawn += count;
    if (this.interruption === null && this.drawn - this.acknowledged >= WINDOW_BYTES / 4) this.acknowledge(this.drawn);
  }

  /** podyd may send one window beyond so many bytes. */
  acknowledge(count) {
    this.acknowledged = count;
    this.control({ taken: count });
  }

  /** Sends input, as fast as the program reads it: podyd holds one window of it at most. */
  send(bytes) {
    if (interrupts(bytes) && this.interruption === null && this.count(0) > FLOOD_BYTES && this.maySkip()) this.interrupt(bytes[0]);
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) this.input.push(bytes.subarray(at, at + PIECE_BYTES));
    this.flush();
  }

  flush() {
    while (this.input.length && this.sent - this.taken + this.input[0].length <= this.window) {
      const piece = this.input.shift();
      this.sent += piece.length;
      this.frame(STDIN, piece);
    }
  }

  resize(rows, cols) {
    if (rows === this.size.rows && cols === this.size.cols) return;
    this.size = { rows, cols };
    this.control({ resize: this.size });
  }

  control(message) {
    this.frame(CONTROL, new TextEncoder().encode(JSON.stringify(message)));
  }

  frame(channel, data) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    const frame = new Uint8Array(data.length + 1);
    frame[0] = channel;
    frame.set(data, 1);
    this.socket.send(frame);
  }

  close() {
    this.interruption?.end();
    this.socket.onclose = null;
    this.socket.close();
  }
}
