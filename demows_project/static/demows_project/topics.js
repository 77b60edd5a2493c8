import { $, element, explain, say } from "./dom.js";

/**
 * The list of topics that the page subscribes to. Its events: `data` (topic, data) for whatever arrives, `joined` and
 * `left` (topic).
 */
export class Topics extends EventTarget {
  #link;
  #rows = new Map(); // by topic: {leave, count, item, status, button}

  constructor(link) {
    super();
    this.#link = link;
    $("subscribe").addEventListener("submit", (event) => {
      event.preventDefault();
      this.add($("topic").value);
    });
    link.addEventListener("state", () => this.#each((row) => this.#tell(row)));
  }

  /** Subscribe to a topic, now and on every connection to come. */
  add(topic) {
    say($("refused"), "");
    if (this.#rows.has(topic)) {
      say($("refused"), "bad", element("code", {}, "ALREADY_SUBSCRIBED"), ` this page has ${topic} already`);
      return;
    }
    const status = element("span", { className: "quiet" });
    const button = element("button", { type: "button", "aria-label": `Unsubscribe from ${topic}` }, "Unsubscribe");
    const item = element("li", {}, element("span", {}, element("code", {}, topic), " ", status), button);
    const row = { topic, item, status, count: 0, joined: false };
    this.#rows.set(topic, row);
    $("topics").append(item);
    button.addEventListener("click", () => this.#remove(row));
    this.#tell(row);
    row.leave = this.#link.subscribe(topic, (data) => this.#received(row, data), {
      onSubscribed: () => this.#joined(row),
      onError: (error) => this.#refused(row, error),
    });
  }

  #joined(row) {
    row.joined = true;
    this.#tell(row);
    if ($("topic").value === row.topic) $("topic").value = "";
    this.#emit("joined", { topic: row.topic });
  }

  #refused(row, error) {
    this.#remove(row);
    say($("refused"), "bad", ...explain(error), ": ", element("code", {}, row.topic));
  }

  #received(row, data) {
    row.count += 1;
    this.#tell(row);
    this.#emit("data", { topic: row.topic, data });
  }

  #remove(row) {
    if (row.item.contains(document.activeElement)) $("topic").focus();
    row.leave();
    row.item.remove();
    this.#rows.delete(row.topic);
    this.#emit("left", { topic: row.topic });
  }

  #tell(row) {
    const open = this.#link.state === "open";
    row.joined &&= open;
    if (row.joined) row.status.textContent = `${row.count} received`;
    else row.status.textContent = open ? "asked for" : "when connected";
  }

  #each(callback) {
    for (const row of this.#rows.values()) callback(row);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
