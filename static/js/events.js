/** The list of what happened, newest first. New lines come in at the top; a reader who scrolled down stays there. */

import { eventGlyph, eventTint } from "./health.js";
import { setAttribute, setText, setTint } from "./fields.js";

export class EventList {
  /** @param {HTMLUListElement} list */
  constructor(list) {
    this.list = list;
    this.template = document.getElementById("event-template").content.firstElementChild;
  }

  /** @param {object[]} events newest first */
  update(events) {
    const known = new Map([...this.list.children].map((item) => [item.dataset.id, item]));
    const wanted = new Set(events.map((event) => String(event.id)));
    for (const [id, item] of known) if (!wanted.has(id)) item.remove();
    events.forEach((event, position) => {
      const item = known.get(String(event.id)) ?? this.make(event);
      if (this.list.children[position] !== item) this.list.insertBefore(item, this.list.children[position] ?? null);
    });
    this.list.closest("[data-empty]")?.setAttribute("data-empty", String(events.length === 0));
  }

  make(event) {
    const item = this.template.cloneNode(true);
    item.dataset.id = String(event.id);
    item.dataset.kind = event.kind;
    const glyph = item.querySelector(".glyph");
    setText(glyph, eventGlyph(event.kind));
    setTint(glyph, eventTint(event.kind));
    setText(item.querySelector("b"), event.subject);
    setText(item.querySelector(".event-text"), event.text);
    setAttribute(item.querySelector("time"), "data-at", event.at_s);
    return item;
  }
}
