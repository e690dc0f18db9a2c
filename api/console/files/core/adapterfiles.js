// The list of the server's adapter files, page by page.
import { getJson, withQuery } from "./api.js";
import { useEffect, useState } from "./ui.js";

const NOTHING = { files: [], cursor: null, hasMore: true, isLoading: false, error: null };

// All pages that were read so far, in order. A search reads on until it has found enough, because the server does not
// search names. `shown` is how many a view shows at most; `reload` begins with the first page again.
export function useAdapterFiles(search, shown) {
  const [state, setState] = useState(NOTHING);
  const found = state.files.filter((file) => file.path.toLowerCase().includes(search.toLowerCase()));
  const isWanted = state.hasMore && !state.error && (!state.files.length || (search && found.length < shown));
  const load = () => {
    const aborter = new AbortController();
    setState((before) => ({ ...before, isLoading: true, error: null }));
    getJson(withQuery("/v1/adapters", { cursor: state.cursor }), { signal: aborter.signal }).then(
      (page) => setState((before) => ({
        files: [...before.files, ...page.data], cursor: page.next_cursor, hasMore: page.has_more, isLoading: false, error: null,
      })),
      (error) => error.name !== "AbortError" && setState((before) => ({ ...before, isLoading: false, error })),
    );
    return () => aborter.abort();
  };
  useEffect(() => (isWanted ? load() : undefined), [isWanted, state.cursor]);
  return { ...state, found, load, reload: () => setState(NOTHING) };
}
