/** A browser to test the client in: its clock, its sockets and its window are moved by the test alone. */

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";

import { connect } from "../../realtime/static/realtime/realtime.js";

const PAGE = "https://example.com/shop/orders/?page=2#top";

class Clock {
  time = 0;
  timers = new Map();
  #last = 0;

  now = () => this.time;

  setTimeout = (callback, delay) => {
    assert.ok(delay >= 0 && Number.isFinite(delay), `a timer of ${delay} ms`);
    this.timers.set(++this.#last, { at: this.time + delay, callback });
    return this.#last;
  };

  clearTimeout = (id) => {
    this.timers.delete(id);
  };

  /** The times until the timers are due, soonest first. */
  get delays() {
    return [...this.timers.values()].map(({ at }) => at - this.time).sort((a, b) => a - b);
  }

  /** Let so much time go by, and let all that is due in it happen. */
  async pass(duration) {
    const end = this.time + duration;
    for (;;) {
      const due = [...this.timers].filter(([, { at }]) => at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      this.time = due[1].at;
      this.timers.delete(due[0]);
      due[1].callback();
      await settled();
    }
    this.time = end;
  }
}

class Socket {
  onopen = null;
  onmessage = null;
  onclose = null;
  readyState = 0;
  sent = [];
  closed = null;

  constructor(url, protocols) {
    if (protocols.some((protocol) => /[^!#$%&'*+.^_`|~\w-]/.test(protocol))) throw new SyntaxError("bad subprotocol");
    this.url = url;
    this.protocols = protocols;
  }

  send(text) {
    if (this.readyState === 0) throw new Error("InvalidStateError");
    if (this.readyState === 1) this.sent.push(JSON.parse(text));
  }

  close(...how) {
    const [code] = how;
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) throw new Error("InvalidAccessError");
    if (this.readyState < 2) {
      this.closed = how;
      this.readyState = 2; // until the server answers, which it need not
    }
  }

  // What the server does

  open() {
    this.readyState = 1;
    this.onopen?.({});
  }

  receive(...messages) {
    for (const message of messages) this.onmessage?.({ data: JSON.stringify(message) });
  }

  end(code, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason, wasClean: code !== 1006 });
  }

  /** Answer the oldest request that has not been answered. */
  answer(fields = {}) {
    const { type, reqId, topic } = this.sent[(this.answered ??= 0)];
    this.answered += 1;
    this.receive({ type: type.replace("request", "response"), reqId, status: "OK", data: { topic }, ...fields });
  }

  refuse(code, message = "no") {
    this.answer({ status: "ERROR", data: undefined, error: { code, message } });
  }

  publish(topic, data, timestamp = "2026-11-22T17:08:01.670383Z") {
    this.receive({ type: "publication", topic, data, timestamp });
  }
}

class Window extends EventTarget {
  document = new EventTarget();
  navigator = { onLine: true };
  errors = [];
  reportError = (error) => this.errors.push(error);

  constructor(url, scriptUrl) {
    super();
    this.location = new URL(url);
    this.document.visibilityState = "visible";
    this.document.querySelector = (selector) => {
      assert.equal(selector, "script[data-realtime-url]");
      return scriptUrl === undefined ? null : { dataset: { realtimeUrl: scriptUrl } };
    };
  }

  get listening() {
    const types = ["online", "offline", "pagehide", "pageshow"].flatMap((type) => getEventListeners(this, type));
    return types.length + getEventListeners(this.document, "visibilitychange").length;
  }

  happen(type, fields = {}) {
    this.dispatchEvent(Object.assign(new Event(type), fields));
  }

  setOnline(online) {
    this.navigator.onLine = online;
    this.happen(online ? "online" : "offline");
  }

  show(visible) {
    this.document.visibilityState = visible ? "visible" : "hidden";
    this.document.dispatchEvent(new Event("visibilitychange"));
  }
}

/** Wait until promises that are settled have told so. */
export const settled = () => new Promise((resolve) => setImmediate(resolve));

/** Return a client with all that it touches. `random` is what every draw gives. */
export async function started({ random = 0.5, page = PAGE, scriptUrl, online = true, ...options } = {}) {
  const clock = new Clock();
  const window = new Window(page, scriptUrl);
  window.navigator.onLine = online;
  const sockets = [];
  window.WebSocket = class extends Socket {
    constructor(...parameters) {
      super(...parameters);
      sockets.push(this);
    }
  };
  const client = connect({ clock, window, random: () => random, ...options });
  const events = [];
  for (const type of ["state", "open", "close"]) {
    client.addEventListener(type, ({ detail }) => events.push([type, type === "state" ? detail.state : detail]));
  }
  await settled();
  return {
    client,
    clock,
    window,
    sockets,
    events,
    get socket() {
      return sockets.at(-1);
    },
    /** The details of the close events. */
    get closes() {
      return events.filter(([type]) => type === "close").map(([, detail]) => detail);
    },
  };
}

/** Return the same, connected. */
export async function opened(options) {
  const all = await started(options);
  all.socket.open();
  return all;
}
