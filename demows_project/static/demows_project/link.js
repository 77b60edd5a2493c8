import { connect } from "../realtime/realtime.js";

const EVENTS = ["state", "open", "close", "message", "send"];

/**
 * The page's connection. A client of realtime.js that was closed is closed for good; this one can be connected again,
 * with another client and the same subscriptions. Its events are the client's.
 */
export class Link extends EventTarget {
  #client = null;
  #subscriptions = new Set();

  get state() {
    return this.#client?.state ?? "closed";
  }

  /** Connect; while the client waits for the next attempt, or stays away, let it try now. */
  connect() {
    if (this.#client) {
      this.#client.reconnect();
      return;
    }
    this.#client = connect();
    for (const event of EVENTS) {
      this.#client.addEventListener(event, ({ detail }) => this.dispatchEvent(new CustomEvent(event, { detail })));
    }
    this.dispatchEvent(new CustomEvent("state", { detail: { state: this.state, previous: "closed" } }));
    for (const subscription of this.#subscriptions) this.#join(subscription);
  }

  disconnect() {
    const client = this.#client;
    this.#client = null;
    client?.close();
  }

  /** Do what the client's subscribe() does, on this client and on those after it. */
  subscribe(topic, handler, options) {
    const subscription = { topic, handler, options, joined: null };
    this.#subscriptions.add(subscription);
    if (this.#client) this.#join(subscription);
    return () => {
      this.#subscriptions.delete(subscription);
      subscription.joined?.unsubscribe();
    };
  }

  async request(type, fields) {
    if (!this.#client) throw Object.assign(new Error("the page is not connected"), { code: "CLOSED" });
    return this.#client.request(type, fields);
  }

  #join(subscription) {
    const { topic, handler, options } = subscription;
    subscription.joined = this.#client.subscribe(topic, handler, options);
  }
}
