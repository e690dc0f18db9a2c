// Fields of the form, with the problem that each has.
import { html, useId } from "../../core/ui.js";

// A label, what goes into it, and the problem below it. `children(attributes)` gets those of the control.
export function Field({ label, problem, help, children }) {
  const id = useId();
  const described = [problem && `${id}-problem`, help && `${id}-help`].filter(Boolean).join(" ");
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      ${children({ id, "aria-invalid": problem ? "true" : null, "aria-describedby": described || null })}
      ${problem && html`<p class="field-error" id="${id}-problem">${problem}</p>`}
      ${help && html`<p class="field-help" id="${id}-help">${help}</p>`}
    </div>`;
}

// A number as it was typed; its limits are those of `rule`, a schema of the server.
export function NumberField({ label, value, placeholder, rule, problem, help, step = "1", onChange }) {
  return html`
    <${Field} label=${label} problem=${problem} help=${help}>
      ${(attributes) => html`
        <input ...${attributes} type="number" inputmode="decimal" value=${value} placeholder=${placeholder}
          min=${rule?.minimum} max=${rule?.maximum} step=${step} onInput=${(event) => onChange(event.target.value)} />`}
    <//>`;
}

// `options` is [[value, text]]; the first one stands for the default.
export function SelectField({ label, value, options, problem, help, onChange }) {
  return html`
    <${Field} label=${label} problem=${problem} help=${help}>
      ${(attributes) => html`
        <select ...${attributes} value=${value} onChange=${(event) => onChange(event.target.value)}>
          ${options.map(([each, text]) => html`<option key=${each} value=${each}
            selected=${each === value}>${text}</option>`)}
        </select>`}
    <//>`;
}
