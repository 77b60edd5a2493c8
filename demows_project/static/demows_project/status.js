import { $, element } from "./dom.js";

const WORDS = { connecting: "Connecting", open: "Open", waiting: "Waiting", offline: "Offline", closed: "Closed" };
const SWITCH = { open: "Disconnect", closed: "Connect" };
const DOTS_AT_ONCE = 12;

const seconds = (time) => (time < 9_950 ? `${(time / 1000).toFixed(1)} s` : `${Math.round(time / 1000)} s`);

function clock(time) {
  const [minutes, rest] = [Math.floor(time / 60_000), Math.floor(time / 1000) % 60];
  return `${minutes}:${String(rest).padStart(2, "0")}`;
}

/** The strip on top: how the connection is, what ended the last one, and what the client does next. */
export class Status {
  #link;
  #panel = $("connection");
  #since = performance.now(); // when the state began
  #next = null; // when the client tries again
  #lost = null; // {at, attempts} from the end of a connection until the next is open
  #byPage = false;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(link) {
    this.#link = link;
    const { protocol, host } = location;
    for (const place of document.querySelectorAll("#address, .address")) {
      place.textContent = `${protocol.replace("http", "ws")}//${host}/`;
    }
    $("switch").addEventListener("click", () => this.#toggle());
    $("now").addEventListener("click", () => link.connect());
    link.addEventListener("state", ({ detail }) => this.#show(detail.state));
    link.addEventListener("close", ({ detail }) => this.#ended(detail));
    link.addEventListener("send", () => this.#dot("out"));
    link.addEventListener("message", () => this.#dot("in"));
    setInterval(() => this.#tick(), 100);
  }

  #toggle() {
    if (this.#link.state === "closed") {
      this.#link.connect();
      return;
    }
    this.#byPage = true;
    this.#link.disconnect();
    this.#byPage = false;
  }

  #show(state) {
    this.#since = performance.now();
    if (state !== "waiting") this.#next = null;
    if (state === "connecting" && this.#lost) this.#lost.attempts += 1;
    if (state === "open" && this.#lost) this.#back();
    this.#panel.dataset.state = state;
    $("state").textContent = WORDS[state];
    $("switch").textContent = SWITCH[state] ?? "Stop";
    if (document.activeElement === $("now")) $("switch").focus();
    $("now").hidden = state !== "waiting";
    this.#tick();
  }

  #ended({ code, reason, willReconnect, delay }) {
    this.#next = delay === null ? null : performance.now() + delay;
    // While the server is away every attempt ends in the same way: what closed the connection stays in view.
    if (!this.#lost || !willReconnect) {
      this.#lost = { at: performance.now(), attempts: 0 };
      this.#tell(code, reason, willReconnect);
    }
    this.#tick();
  }

  #tell(code, reason, willReconnect) {
    const said = [element("code", {}, String(code)), reason && ` “${reason}”`];
    let what = ["Closed by the server with ", ...said];
    if (this.#byPage) what = ["Closed by this page with ", ...said];
    else if (code === 1006) what = ["Connection lost, without a close frame: ", ...said];
    const then = willReconnect ? "the client comes back by itself" : "the client stays away until you connect";
    $("closed").replaceChildren(...what, " – ", element("span", { id: "then" }, then));
    $("closed").hidden = false;
  }

  #back() {
    const { at, attempts } = this.#lost;
    const tries = attempts === 1 ? "" : `, at attempt ${attempts}`;
    if ($("then")) $("then").textContent = `back after ${seconds(performance.now() - at)}${tries}`;
    this.#lost = null;
  }

  #tick() {
    const time = performance.now() - this.#since;
    let text = "";
    if (this.#link.state === "open") text = `for ${clock(time)}`;
    else if (this.#next !== null) text = `tries again in ${seconds(Math.max(0, this.#next - performance.now()))}`;
    else if (this.#link.state === "offline") text = "until the browser is online";
    if ($("since").textContent !== text) $("since").textContent = text;
  }

  /** Show a frame on its way. */
  #dot(direction) {
    const cable = this.#panel.querySelector(".cable");
    if (this.#calm.matches || document.hidden || cable.childElementCount >= DOTS_AT_ONCE) return;
    const dot = element("span", { className: `dot ${direction}` });
    cable.append(dot);
    const way = [{ left: "0%" }, { left: "100%" }];
    const going = dot.animate(direction === "out" ? way : way.reverse(), { duration: 600, easing: "ease-in-out" });
    going.onfinish = () => dot.remove();
  }
}
