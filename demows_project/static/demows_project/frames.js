import { $, element } from "./dom.js";

const MOST = 200; // frames that are kept
const TOLD = ["waiting", "closed"]; // by the close itself
const SIGNS = { in: ["↓", "received"], out: ["↑", "sent"], event: ["·", "connection"] };

const time = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
});

/** Return a frame as it was on the wire, with its type in bold. */
function oneLine(content) {
  const text = JSON.stringify(content);
  const begin = '{"type":';
  if (!text.startsWith(begin)) return [text];
  const type = JSON.stringify(content.type);
  return [begin, element("b", {}, type), text.slice(begin.length + type.length)];
}

function ended({ code, reason, willReconnect, delay }) {
  let then = "stays away";
  if (willReconnect) then = delay === null ? "comes back" : `comes back in ${(delay / 1000).toFixed(1)} s`;
  return ` ${code}${reason && ` “${reason}”`}: ${then}`;
}

/** The stream of frames, both ways, with what befell the connection in between; the newest first. */
export class Frames {
  #fresh = []; // not shown yet
  #total = 0;
  #paused = false;
  #drawing = false;

  constructor(link) {
    link.addEventListener("send", ({ detail }) => this.#add({ direction: "out", content: detail }));
    link.addEventListener("message", ({ detail }) => this.#add({ direction: "in", content: detail }));
    link.addEventListener("state", ({ detail }) => {
      if (!TOLD.includes(detail.state)) this.#add({ direction: "event", type: detail.state });
    });
    link.addEventListener("close", ({ detail }) => {
      this.#add({ direction: "event", type: "close", content: ended(detail) });
    });
    $("pause").addEventListener("click", () => this.#pause(!this.#paused));
    $("clear").addEventListener("click", () => this.#clear());
    $("pretty").addEventListener("change", () => {
      for (const details of $("list").querySelectorAll("details")) details.open = $("pretty").checked;
    });
    $("list").addEventListener("keydown", (event) => this.#move(event));
    this.#count();
  }

  #add(frame) {
    if (frame.direction !== "event") this.#total += 1;
    this.#fresh.push({ ...frame, at: Date.now() });
    if (this.#fresh.length > MOST) this.#fresh.shift();
    if (this.#drawing) return;
    this.#drawing = true; // once a picture, however many frames come in
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#drawing = false;
    this.#count();
    if (this.#paused) return;
    const list = $("list");
    list.prepend(...this.#fresh.splice(0).reverse().map((frame) => this.#row(frame)));
    while (list.childElementCount > MOST) list.lastElementChild.remove();
  }

  #row({ direction, type, content, at }) {
    const [sign, word] = SIGNS[direction];
    const head = [
      element("time", {}, time.format(at)),
      element("span", { className: "sign", role: "img", "aria-label": word }, sign),
    ];
    if (direction === "event") {
      const text = element("span", {}, element("b", {}, type), content ?? "");
      return element("li", { className: direction }, element("p", {}, ...head, text));
    }
    const summary = element("summary", { tabIndex: -1 }, ...head, element("code", {}, ...oneLine(content)));
    const details = element("details", {}, summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) {
        details.append(element("pre", {}, JSON.stringify(content, null, 2)));
      }
    });
    details.open = $("pretty").checked;
    return element("li", { className: direction }, details);
  }

  /** Move the focus with the arrow keys: the list is one stop for Tab, not two hundred. */
  #move(event) {
    const summaries = [...$("list").querySelectorAll("summary")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const next = step && summaries[summaries.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  #pause(paused) {
    this.#paused = paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    this.#draw();
  }

  #clear() {
    this.#fresh = [];
    this.#total = 0;
    $("list").replaceChildren();
    this.#count();
  }

  #count() {
    const waiting = this.#paused && this.#fresh.length ? `, ${this.#fresh.length} since the pause` : "";
    $("count").textContent = `${this.#total}${waiting}`;
  }
}
