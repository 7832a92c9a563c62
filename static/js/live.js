/**
 * The websocket: a snapshot, then numbered deltas; a gap or a silence means connecting again, with jittered backoff.
 * Knows nothing of the page: it calls back with the view and with the state of the connection.
 */

import { applyChange } from "./view.js";

const FIRST_RETRY_MS = 300;
const LONGEST_RETRY_MS = 8_000;
const SILENCE_MS = 7_000; // a delta comes at least every 2 s: after three are missed the line is dead, whatever TCP thinks

/**
 * @typedef {object} LiveHandlers
 * @property {(view: object, change: ?object) => void} onView after a snapshot (change null) and after every delta
 * @property {(state: "connecting"|"live"|"disconnected") => void} onState
 */

export class LiveConnection {
  /** @param {string} url @param {LiveHandlers} handlers */
  constructor(url, handlers) {
    this.url = url;
    this.handlers = handlers;
    this.view = null;
    this.state = "connecting";
    this.sequence = 0;
    this.snapshots = 0;
    this.gaps = 0;
    this.retries = 0;
    this.clockOffsetS = null; // this browser's clock minus the server's, at most the true value plus the way's delay
    this.socket = null;
    this.retryTimer = 0;
    this.silenceTimer = 0;
    this.onOnline = () => this.reconnectNow();
    this.onVisible = () => document.visibilityState === "visible" && this.state !== "live" && this.reconnectNow();
  }

  /** Connect and stay connected until the page goes. */
  start() {
    addEventListener("online", this.onOnline);
    document.addEventListener("visibilitychange", this.onVisible);
    this.connect();
  }

  /** Age in seconds of what is shown, by the server's clock; null before the first message. */
  ageS() {
    return this.view === null ? null : Math.max(0, Date.now() / 1_000 - this.clockOffsetS - this.view.at_s);
  }

  connect() {
    clearTimeout(this.retryTimer);
    const socket = new WebSocket(this.url);
    this.socket = socket;
    this.expectWord();
    socket.addEventListener("message", (event) => socket === this.socket && this.receive(event.data));
    socket.addEventListener("close", () => socket === this.socket && this.lost());
  }

  /** Skip what is left of the wait. */
  reconnectNow() {
    if (this.state === "live") return;
    this.retries = 0;
    this.drop();
    this.connect();
  }

  receive(text) {
    const message = JSON.parse(text);
    this.expectWord();
    if (message.type === "snapshot") {
      this.sequence = message.sequence;
      this.snapshots += 1;
      this.retries = 0;
      this.view = message.view;
      this.learnClock(message.view.at_s);
      this.setState("live");
      this.handlers.onView(this.view, null);
    } else if (message.type === "delta" && this.view !== null) {
      if (message.sequence !== this.sequence + 1) {
        this.resynchronize();
        return;
      }
      this.sequence = message.sequence;
      applyChange(this.view, message.change, message.at_s);
      this.learnClock(message.at_s);
      this.handlers.onView(this.view, message.change);
    }
  }

  /** A delta is missing: what is shown may be wrong, so ask for everything again. It is no disconnection. */
  resynchronize() {
    this.gaps += 1;
    this.drop();
    this.connect();
  }

  lost() {
    this.drop();
    this.setState("disconnected");
    const longest = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.retries);
    this.retries += 1;
    // Jitter over the upper half: a thousand browsers must not come back in the same instant.
    this.retryTimer = setTimeout(() => this.connect(), longest * (0.5 + Math.random() / 2));
  }

  drop() {
    clearTimeout(this.silenceTimer);
    clearTimeout(this.retryTimer);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  expectWord() {
    clearTimeout(this.silenceTimer);
    this.silenceTimer = setTimeout(() => this.lost(), SILENCE_MS);
  }

  learnClock(atS) {
    const offset = Date.now() / 1_000 - atS;
    // The smallest seen is the one that travelled fastest; a clock that was set starts anew.
    if (this.clockOffsetS === null || offset < this.clockOffsetS || offset > this.clockOffsetS + 60)
      this.clockOffsetS = offset;
  }

  setState(state) {
    if (state === this.state) return;
    this.state = state;
    this.handlers.onState(state);
  }
}
