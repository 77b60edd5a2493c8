/** Making elements. Whatever comes from outside becomes text, never markup. */

export const $ = (id) => document.getElementById(id);

/** Return a new element with properties (or, where there is none of the name, attributes) and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Let a result line say something: of the kind "good", "bad" or "" (neither). */
export function say(line, kind, ...content) {
  line.dataset.kind = kind;
  line.replaceChildren(...content);
}

/** Return an error as what `say` takes: its code and its text. */
export const explain = ({ code, message }) => [element("code", {}, code ?? "ERROR"), ` ${message}`];

export const milliseconds = (time) => `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`;
