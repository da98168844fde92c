// A session of /pod/shell: frames whose first byte is the channel (the API's document has them all).

import { protocols, socketUrl } from "./api.js";

const STDIN = 0;
const STDOUT = 1;
const END = 3;
const CONTROL = 4;
// So much output podyd may be ahead of what the terminal has drawn: small, so that Ctrl-C is seen
// soon while a program floods it.
const WINDOW_BYTES = 128 * 1024;
const PIECE_BYTES = 32 * 1024;

export class Shell {
  /** `output(bytes, taken)`: calls `taken` once it is drawn. `ended(end)`: podyd's last message;
   * null if the connection was lost, or could not be made. */
  constructor({ ins, rows, cols, cmd, output, ended }) {
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
    socket.onmessage = ({ data }) => this.received(new Uint8Array(data), output);
    socket.onclose = () => ended(this.end);
  }

  received(frame, output) {
    const data = frame.subarray(1);
    if (frame[0] === STDOUT) output(data, () => this.drew(data.length));
    else if (frame[0] === END) this.end = JSON.parse(new TextDecoder().decode(data));
    else if (frame[0] === CONTROL) this.controlled(JSON.parse(new TextDecoder().decode(data)));
  }

  controlled(message) {
    if (message.window !== undefined) this.window = message.window;
    if (message.taken !== undefined) this.taken = message.taken;
    this.flush();
  }

  drew(count) {
    this.drawn += count;
    if (this.drawn - this.acknowledged < WINDOW_BYTES / 4) return;
    this.acknowledged = this.drawn;
    this.control({ taken: this.drawn });
  }

  /** Sends input, as fast as the program reads it: podyd holds one window of it at most. */
  send(bytes) {
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
    this.socket.onclose = null;
    this.socket.close();
  }
}
