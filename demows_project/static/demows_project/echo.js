import { $, element, explain, milliseconds, say } from "./dom.js";

/** The form that sends an echo, and the line that says what came back. */
export class Echo {
  #link;

  constructor(link) {
    this.#link = link;
    $("echo").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send($("text").value, $("err").checked);
    });
  }

  async #send(text, err) {
    const line = $("echoed");
    say(line, "", "…");
    const began = performance.now();
    try {
      const { echo } = await this.#link.request("echo_request", err ? { echo: text, err } : { echo: text });
      const took = element("span", { className: "quiet" }, ` in ${milliseconds(performance.now() - began)}`);
      say(line, "good", element("code", {}, "OK"), " ", element("q", {}, echo), took);
    } catch (error) {
      say(line, "bad", ...explain(error));
    }
  }
}
