// What can be done with one image.
import { may } from "../../core/api.js";
import { curlOf, pythonOf } from "../../core/code.js";
import { parametersOfImage, useAsDraft } from "../../core/draft.js";
import { fileNameOf, recipeOf, requestOf } from "../../core/image.js";
import { Dialog, announce, copyText } from "../../core/parts.js";
import { referenceFrom } from "../../core/reference.js";
import { hrefOf } from "../../core/router.js";
import { saveJson } from "../../pictures/save.js";
import { html, useState } from "../../core/ui.js";

export function Actions({ image }) {
  const [showsRecipe, setShowsRecipe] = useState(false);
  const isReadable = image.prompt !== null && image.seed !== null;
  const mayUse = may("submit") && isReadable;
  const copyCode = (make, what) => copyText(make(requestOf(image)), what);
  return html`
    <div class="actions">
      ${mayUse && html`
        <button type="button" class="primary" onClick=${() => useAsDraft(parametersOfImage(image, image.model))}>Use all</button>
        <button type="button" onClick=${() => useAsDraft({ prompts: [image.prompt] })}>Use prompt</button>
        <${UseAsReference} image=${image} />`}
      ${!may("submit") && html`<p class="actions-note">This key may look at images, but not render new ones.</p>`}
      ${isReadable && html`
        <button type="button" onClick=${() => copyText(image.prompt, "The prompt")}>Copy as prompt</button>
        <button type="button" onClick=${() => copyCode(curlOf, "The curl command")}>Copy curl</button>
        <button type="button" onClick=${() => copyCode(pythonOf, "The Python program")}>Copy Python</button>
        <button type="button" onClick=${() => setShowsRecipe(true)}>Open recipe</button>`}
      <a class="button" href=${hrefOf("compare", [], { requests: image.request_id })}>Compare the job</a>
      <a class="button" href=${image.url} target="_blank" rel="noopener" download=${fileNameOf(image)}>Download</a>
    </div>
    ${showsRecipe && html`<${Recipe} image=${image} onClose=${() => setShowsRecipe(false)} />`}`;
}

function UseAsReference({ image }) {
  const [isBusy, setBusy] = useState(false);
  const use = async () => {
    setBusy(true);
    try {
      useAsDraft({ references: [await referenceFrom(image)] });
    } catch (error) {
      announce(error.message, { kind: "error" });
      setBusy(false);
    }
  };
  return html`<button type="button" disabled=${isBusy} onClick=${use}>${isBusy ? "Preparing" : "Use as reference"}</button>`;
}

function Recipe({ image, onClose }) {
  const recipe = recipeOf(image);
  const text = JSON.stringify(recipe, null, 2);
  return html`
    <${Dialog} title="Recipe" kind="recipe" onClose=${onClose} ownsKeys>
      <div>
        <p>The request that renders this image again, and everything that is known about it.</p>
        <pre tabindex="0" aria-label="Recipe as JSON">${text}</pre>
        <p class="actions">
          <button type="button" onClick=${() => copyText(text, "The recipe")}>Copy</button>
          <button type="button" onClick=${() => saveJson(recipe, `${fileNameOf(image)}.json`)}>Save</button>
        </p>
      </div>
    <//>`;
}
