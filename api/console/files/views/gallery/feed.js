// The images of the service that match some filters, newest first: read page by page, and completed while jobs run.
import { getJson, withQuery } from "../../core/api.js";
import { keyOf, rereadImages, withFreshAddress } from "../../core/image.js";
import { jobs } from "../../core/store.js";
import { batch, effect, signal } from "../../core/ui.js";

const PAGE = 200;
// A job is read again for each of its new images, so large jobs are read less often.
const PAUSE_MS = 600;
const PAUSE_MS_FOR_EACH_IMAGE = 10;

class Feed {
  images = signal([]);
  // New images that are kept back while `isHeld`, so that nothing moves under the reader.
  waiting = signal([]);
  // { isLoading, hasMore, error }
  state = signal({ isLoading: false, hasMore: true, error: null });
  isHeld = false;
  scrollY = 0;
  #filters;
  #cursor = null;
  // The cursor of the page that an image came from, by the image's key.
  #cursors = new Map();
  // Pages that are being read again, by their cursors.
  #renewals = new Map();
  #counts = null;
  #timers = new Map();
  #stopFollowing = null;
  #aborter = new AbortController();

  constructor(filters) {
    this.#filters = filters;
  }

  // Follow the running jobs until `leave()`.
  enter() {
    this.#aborter = new AbortController();
    this.#stopFollowing = effect(() => this.#compareCounts(jobs.value));
    if (!this.images.peek().length) this.readMore();
    else this.#readNewest();
  }

  leave() {
    this.#stopFollowing?.();
    this.#stopFollowing = null;
    this.#aborter.abort();
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
    this.state.value = { ...this.state.peek(), isLoading: false };
  }

  async readMore() {
    const { isLoading, hasMore } = this.state.peek();
    if (isLoading || !hasMore) return;
    this.state.value = { isLoading: true, hasMore, error: null };
    const aborter = this.#aborter;
    try {
      const page = await this.#readPage(this.#cursor);
      batch(() => {
        this.images.value = merged(this.images.peek(), page.data);
        this.#cursor = page.next_cursor;
        this.state.value = { isLoading: false, hasMore: page.has_more, error: null };
      });
    } catch (error) {
      if (!aborter.signal.aborted) this.state.value = { isLoading: false, hasMore, error };
    }
  }

  showWaiting() {
    batch(() => {
      this.images.value = merged(this.images.peek(), this.waiting.peek());
      this.waiting.value = [];
    });
  }

  // Get new addresses for an image whose address no longer works, and for those that came with it.
  async renew(image) {
    const isIt = (each) => keyOf(each) === keyOf(image);
    try {
      let read = await this.#rereadPage(this.#cursors.get(keyOf(image)));
      if (!read.some(isIt)) read = await rereadImages(image.request_id);
      // The images of a page fail together: the first of them has renewed all.
      if (this.images.peek().find(isIt)?.url !== image.url) return;
      this.images.value = merged(this.images.peek(), read, { onlyKnown: true, isForced: true });
    } catch {
      // The tile says that it has no picture.
    }
  }

  #rereadPage(cursor) {
    if (cursor === undefined) return [];
    if (!this.#renewals.has(cursor)) {
      const reading = this.#readPage(cursor).then((page) => page.data).finally(() => this.#renewals.delete(cursor));
      this.#renewals.set(cursor, reading);
    }
    return this.#renewals.get(cursor);
  }

  async #readPage(cursor) {
    const address = withQuery("/v1/images", { ...this.#filters, limit: PAGE, cursor });
    const page = await getJson(address, { signal: this.#aborter.signal });
    for (const image of page.data) this.#cursors.set(keyOf(image), cursor);
    return page;
  }

  async #readNewest() {
    try {
      this.#receive((await this.#readPage(null)).data);
    } catch {
      // The next change of a job reads again.
    }
  }

  #receive(read) {
    const known = new Set(this.images.peek().map(keyOf));
    const fresh = read.filter((image) => !known.has(keyOf(image)));
    if (!fresh.length) return;
    if (this.isHeld) this.waiting.value = merged(this.waiting.peek(), fresh);
    else this.images.value = merged(this.images.peek(), fresh);
  }

  #compareCounts(all) {
    if (!all.size) return;
    const before = this.#counts;
    this.#counts = new Map([...all].map(([id, job]) => [id, job.items.succeeded ?? 0]));
    if (!before) {
      // Images may have been finished between the first page and the first snapshot.
      if (this.#stopFollowing) this.#readNewest();
      return;
    }
    for (const [id, job] of all) {
      if (this.#counts.get(id) > (before.get(id) ?? 0)) this.#readJobSoon(job);
    }
  }

  #readJobSoon(job) {
    if (this.#timers.has(job.request_id) || this.#isOutside(job)) return;
    const wait = PAUSE_MS + PAUSE_MS_FOR_EACH_IMAGE * job.images;
    this.#timers.set(job.request_id, setTimeout(() => {
      this.#timers.delete(job.request_id);
      this.#readJob(job.request_id);
    }, wait));
  }

  // Jobs that paging has not reached yet appear with their page.
  #isOutside(job) {
    const { request_id } = this.#filters;
    if (request_id && request_id !== job.request_id) return true;
    const oldest = this.images.peek().at(-1);
    return Boolean(oldest) && this.state.peek().hasMore && job.created_at < oldest.created_at;
  }

  async #readJob(requestId) {
    try {
      for (let cursor = null, hasMore = true; hasMore;) {
        const query = { ...this.#filters, request_id: requestId, limit: PAGE, cursor };
        const page = await getJson(withQuery("/v1/images", query), { signal: this.#aborter.signal });
        this.#receive(page.data);
        hasMore = page.has_more;
        cursor = page.next_cursor;
      }
    } catch {
      // The next change of the job reads again.
    }
  }
}

// The newest job first, and its images in their order, as the API lists them.
function newestFirst(one, other) {
  if (one.created_at !== other.created_at) return one.created_at < other.created_at ? 1 : -1;
  if (one.request_id !== other.request_id) return one.request_id < other.request_id ? 1 : -1;
  return one.index - other.index;
}

// Exported for tests.
export function merged(images, read, { onlyKnown = false, isForced = false } = {}) {
  const byKey = new Map(images.map((image) => [keyOf(image), image]));
  for (const image of read) {
    const known = byKey.get(keyOf(image));
    if (!known && onlyKnown) continue;
    byKey.set(keyOf(image), isForced ? { ...known, ...image } : withFreshAddress(known, image));
  }
  return [...byKey.values()].sort(newestFirst);
}

// A view that is left and entered again finds its images and its place.
let last = { name: "", feed: null };

export function feedOf(filters) {
  const name = JSON.stringify(filters);
  if (last.name !== name) last = { name, feed: new Feed(filters) };
  return last.feed;
}

