// Tooltips: beside their buttons, under the pointer, or after a click or a key.

const GAP = 8; // pixels between a button and its text

function place(button, text) {
  const [at, box] = [button.getBoundingClientRect(), text.getBoundingClientRect()];
  const left = Math.max(GAP, Math.min(at.left, innerWidth - box.width - GAP));
  const above = at.bottom + GAP + box.height > innerHeight;
  text.style.left = `${left}px`;
  text.style.top = `${above ? at.top - GAP - box.height : at.bottom + GAP}px`;
}

export function connect() {
  for (const button of document.querySelectorAll(".tip")) {
    const text = button.popoverTargetElement;
    text.addEventListener("toggle", (event) => event.newState === "open" && place(button, text));
    const mouse = (work) => (event) => event.pointerType === "mouse" && work(event);
    button.addEventListener("pointerenter", mouse(() => text.showPopover()));
    button.addEventListener("pointerleave", mouse(() => text.hidePopover()));
    button.addEventListener("click", mouse((event) => event.preventDefault())); // the pointer has opened it already
  }
}
