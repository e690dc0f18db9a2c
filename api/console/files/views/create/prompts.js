// Prompts, one on each line, and what they stand for.
import { countOf } from "../../core/format.js";
import { html, useEffect, useLayoutEffect, useRef } from "../../core/ui.js";
import { expandPrompts } from "../../core/wildcards.js";
import { Field } from "./fields.js";

const SHOWN_VARIANTS = 50;

function Syntax() {
  return html`
    <code>${"{red|blue} fox"}</code> makes an image of each; <code>[trigger]</code> becomes the trigger word;
    ${" "}<code>${"\\{"}</code> is a brace.`;
}

export function Prompts({ draft, change, problems }) {
  const area = useRef(null);
  // The field is as high as its text: a list of prompts is read as a whole.
  const fit = () => {
    area.current.style.height = "auto";
    area.current.style.height = `${area.current.scrollHeight + 2}px`;
  };
  useLayoutEffect(fit, [draft.prompts]);
  // The sheet of a phone has no size before it is open.
  useEffect(() => {
    let frame = 0;
    const observer = new ResizeObserver(() => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(fit);
    });
    observer.observe(area.current);
    return () => { observer.disconnect(); cancelAnimationFrame(frame); };
  }, []);
  const needsTrigger = draft.prompts.includes("[trigger]");
  return html`
    <${Field} label="Prompts, one on each line" problem=${problems.prompts} help=${html`<${Syntax} />`}>
      ${(attributes) => html`
        <textarea ...${attributes} ref=${area} class="prompts" rows="3" spellcheck="false" value=${draft.prompts}
          placeholder="a {red|blue} fox in the snow"
            onInput=${(event) => change({ prompts: event.target.value })}></textarea>`}
    <//>
    <${Variants} text=${draft.prompts} />
    ${(needsTrigger || draft.trigger) && html`
      <${Field} label="Trigger word" problem=${problems.trigger}
          help=${needsTrigger && !draft.trigger ? "Without a word, [trigger] stays as written." : null}>
        ${(attributes) => html`
          <input ...${attributes} value=${draft.trigger} spellcheck="false" autocomplete="off"
            onInput=${(event) => change({ trigger: event.target.value })} />`}
      <//>`}`;
}

function Variants({ text }) {
  const { count, prompts } = expandPrompts(text, SHOWN_VARIANTS);
  const lines = text.split("\n").filter((line) => line.trim()).length;
  if (count <= lines) return null;
  return html`
    <details class="variants">
      <summary>${countOf(lines, "line")} stand for ${countOf(count, "prompt")}</summary>
      <ol>
        ${prompts.map((prompt, index) => html`<li key=${index}>${prompt}</li>`)}
        ${count > prompts.length && html`<li class="more">and ${(count - prompts.length).toLocaleString()} more</li>`}
      </ol>
    </details>`;
}
