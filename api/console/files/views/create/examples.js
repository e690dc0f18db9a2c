// What to try first: prompts that the demonstration model draws well.
import { getJson } from "../../core/api.js";
import { changeDraft } from "../../core/draft.js";
import { Empty } from "../../core/parts.js";
import { html, useLoaded } from "../../core/ui.js";

// As in shared/demo_model.py.
const PROMPTS = [
  "a yellow circle to the left of a purple square",
  "a tree in the snow at night",
  "a house with a red roof on green hills under a yellow sun",
];
const DEMONSTRATION_PX = "128";

export function Examples() {
  // Only the demonstration model is small enough for a CPU, and it draws small pictures best.
  const { data } = useLoaded(({ signal }) => getJson("/v1/slots?limit=1", { signal }), []);
  const isDemonstration = data?.data[0]?.device.startsWith("cpu");
  const use = (prompt) => {
    changeDraft({ prompts: prompt, ...(isDemonstration ? { width: DEMONSTRATION_PX, height: DEMONSTRATION_PX } : {}) });
    document.querySelector(".create-submit .primary")?.focus();
  };
  return html`
    <${Empty} title="No images yet">
      <p>Write a prompt, or begin with one of these:</p>
      <ul class="examples">
        ${PROMPTS.map((prompt) => html`<li key=${prompt}><button type="button"
          onClick=${() => use(prompt)}>${prompt}</button></li>`)}
      </ul>
    <//>`;
}
