// The last images that were made with an adapter.
import { getJson, withQuery } from "../../core/api.js";
import { Problem } from "../../core/parts.js";
import { hrefOf } from "../../core/router.js";
import { html, useLoaded } from "../../core/ui.js";

const SHOWN = 8;
// A page may be short or empty although more follow; after this many pages the gallery is the better place to look.
const MOST_PAGES = 5;

export function MadeImages({ path }) {
  const { data, error, isLoading, reload } = useLoaded(({ signal }) => load(path, signal), [path]);
  return html`
    <section class="made" aria-label="Made with it" aria-busy=${isLoading}>
      <h3>Made with it</h3>
      <${Problem} error=${error} onRetry=${reload} />
      ${data?.length === 0 && html`<p class="field-help">No image yet.</p>`}
      <ul>
        ${data?.map((image) => html`
          <li key=${`${image.request_id}/${image.index}`}>
            <a href=${hrefOf("gallery", [], { adapter: path })} title=${image.prompt}>
              <img src=${image.thumbnail_url ?? image.url} alt=${image.prompt || "an image without a prompt"} loading="lazy"
                width=${image.width} height=${image.height} />
            </a>
          </li>`)}
      </ul>
      ${data?.length > 0 && html`<a href=${hrefOf("gallery", [], { adapter: path })}>All of them in the gallery</a>`}
    </section>`;
}

async function load(adapter, signal) {
  const images = [];
  let cursor = null;
  for (let page = 0; page < MOST_PAGES && images.length < SHOWN; page++) {
    const answer = await getJson(withQuery("/v1/images", { adapter, limit: SHOWN, cursor }), { signal });
    images.push(...answer.data);
    if (!answer.has_more) break;
    cursor = answer.next_cursor;
  }
  return images.slice(0, SHOWN);
}
