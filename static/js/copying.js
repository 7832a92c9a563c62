/** Buttons that copy: `data-copy` holds the text, or `data-copies` the id of the element whose text it is. */

const SHOWN_MS = 1_500;

/** One listener for the page: rows that come later have it too. */
export function prepareCopying() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy], [data-copies]");
    if (!button) return;
    const text = button.dataset.copy ?? document.getElementById(button.dataset.copies)?.textContent.trim() ?? "";
    button.dataset.copied = (await copy(text)) ? "yes" : "no";
    setTimeout(() => delete button.dataset.copied, SHOWN_MS);
  });
}

/** The clipboard's own call needs https or this machine; a selection and a command do elsewhere. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "off-screen";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
