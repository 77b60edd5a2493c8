/** Note what happens, for tests to look at. They are in a hurry, so that the times are shorter. */

import { connect } from "../realtime/realtime.js";

window.noted = { states: [], closes: [], data: [], subscribed: [], errors: [], violations: [] };

document.addEventListener("securitypolicyviolation", (event) => noted.violations.push(event.violatedDirective));

/** Connect. `hurry` divides all times. */
window.start = ({ hurry = 1, ...options } = {}) => {
  const clock = { setTimeout: (callback, delay) => setTimeout(callback, delay / hurry) };
  window.client = connect({ clock, backoff: { base: 50, max: 200 }, ...options });
  client.addEventListener("state", ({ detail }) => noted.states.push(detail.state));
  client.addEventListener("close", ({ detail }) => noted.closes.push(detail));
};

/** Subscribe, and note what comes. */
window.follow = (topic) =>
  client.subscribe(topic, (data) => noted.data.push(data), {
    onSubscribed: () => noted.subscribed.push(topic),
    onError: (error) => noted.errors.push([topic, error.code]),
  });
