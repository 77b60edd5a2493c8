import { element } from "./dom.js";

/** Give each line for the terminal a button that copies it. */
export function addCopyButtons() {
  for (const [index, code] of document.querySelectorAll(".line code").entries()) {
    code.id = `line-${index}`;
    const button = element("button", { type: "button", className: "copy", "aria-describedby": code.id }, "Copy");
    button.addEventListener("click", async () => {
      button.textContent = (await copy(code)) ? "Copied" : "Press Ctrl-C";
      setTimeout(() => (button.textContent = "Copy"), 2_000);
    });
    code.after(button);
  }
}

async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(code); // without HTTPS, away from localhost, pages have no clipboard
    return document.execCommand("copy");
  }
}
