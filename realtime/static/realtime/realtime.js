/**
 * Subscribe to a site's topics from a web page, over one WebSocket that comes back by itself.
 *
 *     connect().subscribe("orders.42", (event) => show(event.status));
 *
 * It speaks the protocol demows.v1 (docs/protocol.md); its guide is docs/browser.md. All times are in milliseconds.
 */

const SUBPROTOCOL = "demows.v1";
const CONNECT_TIMEOUT = 10_000;
const SILENCE = 25_000; // without any frame, after which the server is asked whether it is there
const ECHO_TIMEOUT = 10_000;
const REQUEST_TIMEOUT = 10_000;
const LATER = 10_000; // the least wait after 1013
const LONGEST_TIMER = 2 ** 31 - 1; // for anything longer setTimeout() calls at once
const BACKOFF = { base: 1_000, max: 30_000, stable: 10_000 };
const CLOCK = {
  now: () => performance.now(),
  setTimeout: (callback, delay) => setTimeout(callback, delay),
  clearTimeout: (timer) => clearTimeout(timer),
};
const INTERRUPTED = 1006;
const RECONNECT = { 1001: "backoff", 1006: "backoff", 1011: "backoff", 1012: "backoff", 1013: "later" };

/** Return what a client does after a close with `code`, as client_reconnect() in realtime/protocol.py has it. */
export function reconnectAfter(code) {
  if ((code >= 3000 && code <= 3499) || (code >= 4000 && code <= 4499)) return "backoff";
  return RECONNECT[code] ?? "stay_away";
}

/** What requests and subscriptions fail with; `code` is the server's, or TIMEOUT, ABORTED or CLOSED. */
export class RealtimeError extends Error {
  constructor(code, message, options) {
    super(message, options);
    this.name = "RealtimeError";
    this.code = code;
  }
}

/** Connect to the page's site, or to `options.url`: at once, and again and again until `close()`. */
export function connect(options) {
  return new RealtimeClient(options);
}

/** Return the URL to connect to: the one given, or the one that {% realtime_client %} put into the page, or /ws/. */
function socketURL(url, window) {
  // Of a script element only: users of a site may be able to write other markup with such an attribute.
  const ofPage = window.document?.querySelector("script[data-realtime-url]")?.dataset.realtimeUrl;
  const resolved = new URL(url ?? ofPage ?? "/ws/", window.location?.href);
  resolved.protocol = resolved.protocol.replace("http", "ws");
  resolved.hash = "";
  return resolved.href;
}

class RealtimeClient extends EventTarget {
  #options;
  #clock;
  #window;

  #state = "closed";
  #ended = false; // by close(), for good
  #revived = false; // by reconnect(), and since then no connection has lasted
  #listeners; // aborts all listeners on the window and the document
  #timer; // of the state: while connecting, open or waiting
  #socket = null;
  #attempt = 0; // numbers the connections: a token may come when its connection was given up
  #openedAt = null;
  #probing = false;
  #failures = 0; // connections in a row that did not last
  #notBefore = -Infinity; // when a server that was full may be asked again
  #topics = new Map(); // by name: {name, status, error, subscriptions}
  #lastId = 0;
  #asked = new Map(); // by reqId, in the order sent: what to call with the answer
  #unsent = new Set(); // requests made while there was no connection: {message, text, settle}

  constructor({ url, token, backoff, clock, random = Math.random, window = globalThis, WebSocket } = {}) {
    super();
    this.#window = window;
    this.#clock = { ...CLOCK, ...clock };
    WebSocket ??= window.WebSocket;
    this.#options = { url: socketURL(url, window), token, backoff: { ...BACKOFF, ...backoff }, random, WebSocket };
    this.#listen();
    this.#connect();
  }

  /** "connecting", "open", "waiting" (to connect again), "offline" (until the browser is online) or "closed". */
  get state() {
    return this.#state;
  }

  /**
   * Call `handler(data, {topic, timestamp})` with whatever is published on a topic, on this connection and all later
   * ones. Handlers of one topic share one subscription on the wire.
   */
  subscribe(name, handler, { onError, onSubscribed, onGap } = {}) {
    if (typeof name !== "string" || typeof handler !== "function") {
      throw new TypeError("subscribe() takes the name of a topic and a function");
    }
    this.#refuseEnded();
    let topic = this.#topics.get(name);
    if (!topic) {
      topic = { name, status: "idle", error: null, subscriptions: new Set() };
      this.#topics.set(name, topic);
    }
    const subscription = { handler, onError, onSubscribed, onGap };
    topic.subscriptions.add(subscription);
    if (topic.status === "idle") this.#join(topic);
    else if (topic.status !== "asked") queueMicrotask(() => this.#tell(topic, [subscription]));
    return { topic: name, unsubscribe: () => this.#unsubscribe(topic, subscription) };
  }

  /**
   * Send a request, now or when there is a connection, and return a promise of the answer's `data`. When the
   * connection ends before the answer, it fails with CLOSED: whether the server has handled it, nobody knows.
   */
  request(type, fields = {}, { timeout = REQUEST_TIMEOUT, signal } = {}) {
    return new Promise((resolve, reject) => {
      const aborted = () => new RealtimeError("ABORTED", `${type} was aborted`, { cause: signal.reason });
      if (signal?.aborted) throw aborted();
      if (this.#state === "closed") throw new RealtimeError("CLOSED", "the client is closed");
      const request = this.#encode(type, fields);
      let timer;
      const abort = () => request.settle(aborted());
      const late = () => request.settle(new RealtimeError("TIMEOUT", `${type}: no answer within ${timeout} ms`));
      request.settle = (error, data) => {
        this.#clock.clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        this.#unsent.delete(request);
        if (error) reject(error);
        else resolve(data);
      };
      if (timeout <= LONGEST_TIMER) timer = this.#clock.setTimeout(late, timeout);
      signal?.addEventListener("abort", abort);
      this.#unsent.add(request);
      this.#flush();
    });
  }

  /** Return a promise of `text`, as the server sends it back. */
  async echo(text, options) {
    return (await this.request("echo_request", { echo: text }, options)).echo;
  }

  /** Connect again after a close that the client stays away after; while it waits, do so now. */
  reconnect() {
    this.#refuseEnded();
    if (this.#state === "waiting") this.#wake();
    if (this.#state !== "closed") return;
    this.#listen();
    // Once at once. A page that calls this whenever its token is refused is not to flood the server.
    if (this.#revived) this.#wait(this.#jitter());
    else this.#connect();
    this.#revived = true;
  }

  /** End the connection for good, and let go of all handlers. */
  close(code = 1000, reason = "") {
    this.#socket?.close(code, reason); // first, as it throws for a code that pages may not send
    this.#ended = true;
    for (const topic of this.#topics.values()) topic.subscriptions.clear();
    this.#topics.clear();
    if (this.#state !== "closed") this.#end("closed", { code, reason, delay: null });
  }

  #refuseEnded() {
    if (this.#ended) throw new RealtimeError("CLOSED", "close() has ended this client; connect() makes a new one");
  }

  // The connection

  #listen() {
    const { document } = this.#window;
    this.#listeners = new AbortController();
    const { signal } = this.#listeners;
    const on = (target, type, listener) => target?.addEventListener?.(type, listener, { signal });
    on(this.#window, "online", () => this.#wake());
    on(this.#window, "offline", () => this.#pause("offline", "the browser is offline"));
    // Most browsers keep no page for "back" that has an open WebSocket, and none keeps the WebSocket.
    on(this.#window, "pagehide", () => this.#pause("waiting", "the page is hidden"));
    on(this.#window, "pageshow", (event) => event.persisted && this.#wake());
    on(document, "visibilitychange", () => document.visibilityState === "visible" && this.#wake());
  }

  async #connect() {
    this.#clock.clearTimeout(this.#timer);
    if (this.#window.navigator?.onLine === false) {
      this.#setState("offline");
      return;
    }
    const { token } = this.#options;
    const attempt = ++this.#attempt;
    this.#arm(CONNECT_TIMEOUT, () => this.#lost(INTERRUPTED, "no connection in time"));
    this.#setState("connecting");
    let current;
    try {
      current = await (typeof token === "function" ? token() : token);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#report(error);
      this.#lost(INTERRUPTED, "the page's token function failed");
    }
    if (attempt === this.#attempt) this.#open(current ? [SUBPROTOCOL, `token.${current}`] : [SUBPROTOCOL]);
  }

  #open(protocols) {
    const { WebSocket, url } = this.#options;
    try {
      this.#socket = new WebSocket(url, protocols);
    } catch (error) {
      this.#report(error); // the URL or the token cannot be: another attempt would end like this one
      this.#lost(INTERRUPTED, "the browser refuses to connect", "stay_away");
      return;
    }
    this.#socket.onopen = () => this.#opened();
    this.#socket.onmessage = (event) => this.#receive(event.data);
    this.#socket.onclose = (event) => this.#lost(event.code, event.reason);
  }

  #opened() {
    this.#openedAt = this.#clock.now();
    this.#heard();
    this.#setState("open");
    for (const topic of this.#topics.values()) this.#join(topic);
    this.#flush();
    if (this.#state === "open") this.#emit("open");
  }

  /** Do what is to be done after the connection, or the attempt at one, ended with `code`. */
  #lost(code, reason, after = reconnectAfter(code)) {
    this.#assess();
    let delay = null;
    if (after === "backoff") delay = this.#jitter();
    if (after === "later") {
      delay = LATER + this.#jitter(LATER);
      this.#notBefore = this.#clock.now() + delay;
    }
    this.#failures += 1;
    this.#end(delay === null ? "closed" : "waiting", { code, reason, delay });
  }

  /** Forget the failures before a connection that has lasted. */
  #assess() {
    if (this.#openedAt === null || this.#clock.now() - this.#openedAt < this.#options.backoff.stable) return;
    this.#failures = 0;
    this.#revived = false;
  }

  /** Be without a connection until an event ends that: the browser is online, the page is shown. */
  #pause(state, reason) {
    this.#assess();
    if (this.#state === "open" || this.#state === "connecting") {
      this.#end(state, { code: INTERRUPTED, reason, delay: null });
    } else if (this.#state === "waiting") {
      this.#clock.clearTimeout(this.#timer);
      this.#setState(state);
    }
  }

  /** Be prompt: the browser is online, or somebody looks at the page. */
  #wake() {
    if (this.#state === "open" && !this.#probing) this.#probe();
    if (this.#state !== "waiting" && this.#state !== "offline") return;
    const left = this.#notBefore - this.#clock.now();
    if (left > 0) this.#wait(left);
    else this.#connect();
  }

  #wait(delay) {
    this.#arm(delay, () => this.#connect());
    this.#setState("waiting");
  }

  /** Return a delay with full jitter: clients that were closed together come back apart. */
  #jitter(least = 0) {
    const { random, backoff } = this.#options;
    return random() * Math.max(least, Math.min(backoff.max, backoff.base * 2 ** this.#failures));
  }

  /** Let go of the connection, and say so when all is as it will be. */
  #end(state, { code, reason, delay }) {
    const socket = this.#socket;
    this.#socket = this.#openedAt = null;
    this.#attempt += 1;
    this.#clock.clearTimeout(this.#timer);
    if (socket) {
      // Its own close event is not waited for: on a dead connection that takes the browser a long time.
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
    for (const topic of this.#topics.values()) topic.status = "idle";
    const settles = [...this.#asked.values()];
    this.#asked.clear();
    if (state === "closed") {
      this.#listeners.abort();
      for (const { settle } of this.#unsent) settles.push(settle);
    }
    for (const settle of settles) settle(new RealtimeError("CLOSED", "the connection ended before the answer"));
    if (delay !== null) this.#arm(delay, () => this.#connect());
    this.#setState(state);
    this.#emit("close", { code, reason, willReconnect: state !== "closed", delay });
  }

  // What comes in

  #receive(text) {
    this.#heard();
    let message;
    try {
      message = JSON.parse(text) ?? {};
    } catch (error) {
      this.#report(error);
      return;
    }
    this.#emit("message", message);
    const { type, topic, timestamp } = message;
    if (type === "publication") this.#deliver(topic, (one) => one.handler(message.data, { topic, timestamp }));
    else if (type === "heartbeat") this.#deliver(type, (one) => one.handler(message, { topic: type, timestamp }));
    else if (type === "gap") this.#deliver(topic, (one) => one.onGap?.({ topic }));
    else this.#answered(message);
  }

  #answered(message) {
    const flat = message.type === "error";
    let { reqId } = message;
    // Answers come in the order of the requests, so that one without an id is for the oldest.
    if (flat && reqId === undefined) [reqId] = this.#asked.keys();
    const settle = this.#asked.get(reqId);
    if (!settle) return;
    this.#asked.delete(reqId);
    if (flat || message.status === "ERROR") {
      const { code = "UNKNOWN", message: text } = flat ? message : (message.error ?? {});
      settle(new RealtimeError(code, text));
    } else {
      settle(null, message.data);
    }
  }

  #deliver(name, call) {
    const topic = this.#topics.get(name);
    // Between an unsubscribe and a subscribe that follows it, there may be frames of the former subscription.
    if (topic?.status === "joined") this.#each(topic, topic.subscriptions, call);
  }

  #each(topic, subscriptions, call) {
    for (const subscription of [...subscriptions]) {
      if (!topic.subscriptions.has(subscription)) continue; // unsubscribed by the one before
      try {
        call(subscription);
      } catch (error) {
        this.#report(error);
      }
    }
  }

  #heard() {
    this.#probing = false;
    this.#arm(SILENCE, () => this.#probe());
  }

  #probe() {
    this.#probing = true;
    this.#arm(ECHO_TIMEOUT, () => this.#lost(INTERRUPTED, "the server is silent"));
    this.#ask(this.#encode("echo_request", { echo: "are you there?" }), () => {});
  }

  // What goes out

  #encode(type, fields) {
    const reqId = String(++this.#lastId);
    const message = Object.assign({ type, reqId }, fields, { type, reqId });
    return { message, text: JSON.stringify(message) };
  }

  #ask({ message, text }, settle) {
    this.#asked.set(message.reqId, settle);
    this.#socket.send(text);
    this.#emit("send", message);
  }

  #flush() {
    for (const request of this.#unsent) {
      if (this.#state !== "open") return;
      this.#unsent.delete(request);
      this.#ask(request, request.settle);
    }
  }

  #join(topic) {
    if (this.#state !== "open" || topic.status !== "idle") return;
    topic.status = "asked";
    this.#ask(this.#encode("subscribe_request", { topic: topic.name }), (error) => {
      if (topic.status !== "asked") return; // the connection has ended
      const refused = error && error.code !== "ALREADY_SUBSCRIBED"; // the page's own request() may have done it
      topic.status = refused ? "refused" : "joined";
      topic.error = error;
      this.#tell(topic, topic.subscriptions);
    });
  }

  #tell(topic, subscriptions) {
    const { name, status, error } = topic;
    this.#each(topic, subscriptions, ({ onSubscribed, onError }) => {
      if (status === "joined") onSubscribed?.({ topic: name });
      else if (status === "refused" && onError) onError(error, { topic: name });
      else if (status === "refused") throw error;
    });
  }

  #unsubscribe(topic, subscription) {
    if (!topic.subscriptions.delete(subscription) || topic.subscriptions.size) return;
    this.#topics.delete(topic.name);
    if (topic.status !== "asked" && topic.status !== "joined") return;
    this.#ask(this.#encode("unsubscribe_request", { topic: topic.name }), () => {});
  }

  // Odds and ends

  #arm(delay, callback) {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(callback, delay);
  }

  #setState(state) {
    const previous = this.#state;
    if (state === previous) return;
    this.#state = state;
    this.#emit("state", { state, previous });
  }

  #emit(type, detail = {}) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #report(error) {
    this.#window.reportError(error); // as if nobody had caught it, and whoever comes next is not disturbed
  }
}
