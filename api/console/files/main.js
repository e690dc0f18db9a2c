// The frame of the page: navigation, the state of the service, and the view that the address names.
import { apiKey, caller, identify, isLocked, may, setKey } from "./core/api.js";
import { countOf } from "./core/format.js";
import { Notes, Problem, useKeys } from "./core/parts.js";
import { go, hrefOf, route } from "./core/router.js";
import { connection, fleet, startFollowing } from "./core/store.js";
import { html, render, useEffect, useRef, useState, useValue } from "./core/ui.js";

// Views are loaded when they are first shown. `key` goes to a view after `g`, as in `g q`.
const VIEWS = {
  create: { title: "Create", key: "c", load: () => import("./views/create.js"), role: "submit" },
  queue: { title: "Queue", key: "q", load: () => import("./views/queue.js"), role: "read" },
  gallery: { title: "Gallery", key: "g", load: () => import("./views/gallery.js"), role: "read" },
  compare: { title: "Compare", key: "m", load: () => import("./views/compare.js"), role: "read" },
  adapters: { title: "Adapters", key: "a", load: () => import("./views/adapters.js"), role: "read" },
  keys: { title: "Keys and usage", key: "k", load: () => import("./views/keys.js"), role: "admin" },
};

function Nav({ current }) {
  useValue(caller);
  const shown = Object.entries(VIEWS).filter(([, view]) => may(view.role));
  const nav = useRef(null);
  // On a phone, the views have no room next to each other. `scrollIntoView` would make Tab go on from this link.
  useEffect(() => {
    const link = nav.current.querySelector("[aria-current]")?.getBoundingClientRect();
    const box = nav.current.getBoundingClientRect();
    if (link) nav.current.scrollLeft += Math.max(0, link.right - box.right) - Math.max(0, box.left - link.left);
  }, [current]);
  return html`
    <nav aria-label="Views" ref=${nav}>
      ${shown.map(([name, view]) => html`
        <a key=${name} href=${hrefOf(name)} aria-current=${name === current ? "page" : null} title="${view.title} (g ${view.key})">
          ${view.title}
        </a>`)}
    </nav>`;
}

function ServiceState() {
  const state = useValue(connection);
  const now = useValue(fleet);
  if (state === "reconnecting") return html`<p class="service warning" role="status">Reconnecting. Nothing is lost.</p>`;
  if (!now) return html`<p class="service"></p>`;
  if (!now.slots) return html`<p class="service warning">No worker is connected; jobs wait.</p>`;
  const pace = now.seconds_per_image ? ` · ${now.seconds_per_image.toFixed(1)} s an image` : "";
  return html`
    <p class="service"><a href=${hrefOf("queue")}>${countOf(now.slots, "slot")} · ${now.queued} queued${pace}</a></p>`;
}

function Session() {
  const who = useValue(caller);
  const key = useValue(apiKey);
  if (!who || !key) return null;
  // A new page: this one has images, selections and perhaps a key that was just made in its memory.
  const leave = () => { setKey(""); location.reload(); };
  return html`<p class="session">${who.tenant} <button type="button" class="quiet" onClick=${leave}>Log out</button></p>`;
}

function LogIn() {
  const [error, setError] = useState(null);
  // The key before may be of another tenant.
  const hasServed = useRef(Boolean(caller.value));
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    setKey(form.get("key").trim(), { remember: form.get("remember") === "on" });
    try {
      await identify();
      if (isLocked.value) setError(new Error("The API does not know this key. Check that all of it was copied."));
      else if (hasServed.current) location.reload();
      else startFollowing();
    } catch (failure) {
      setError(failure);
    }
  };
  return html`
    <main id="main" class="log-in">
      <h1>This service needs an API key</h1>
      <p>The operator makes one with <code>flux2 keys create</code>. It stays in this browser, and is sent in a header only.</p>
      <form onSubmit=${submit}>
        <label>API key <input name="key" type="password" autocomplete="current-password" required autofocus /></label>
        <label class="check"><input name="remember" type="checkbox" /> Remember it in this browser</label>
        <${Problem} error=${error} />
        <button class="primary">Log in</button>
      </form>
    </main>`;
}

function View({ name }) {
  const [found, setFound] = useState({ name: "", component: null, error: null });
  useEffect(() => {
    let isShown = true;
    VIEWS[name].load().then(
      (module) => isShown && setFound({ name, component: module.default, error: null }),
      (error) => isShown && setFound({ name, component: null, error }),
    );
    return () => { isShown = false; };
  }, [name]);
  if (found.name !== name) return html`<main id="main" tabindex="-1" aria-busy="true"></main>`;
  if (found.error) {
    const error = new Error("This part of the page cannot be loaded. The API may be starting again.");
    return html`<main id="main"><${Problem} error=${error} onRetry=${loadPageAgain} /></main>`;
  }
  return html`<main id="main" tabindex="-1" class="view-${name}"><${found.component} /></main>`;
}

// Browsers remember for as long as a page lives that a module did not load. Without the API, a new page would be none.
const loadPageAgain = () => identify().then(() => location.reload(), () => {});

// For so long, a key after `g` goes to a view.
const KEY_PAUSE_MS = 1000;
// The timer of it; 0 while none runs.
let keyTimer = 0;

function waitForKey(ms) {
  clearTimeout(keyTimer);
  keyTimer = ms && setTimeout(waitForKey, ms, 0);
}

function Console() {
  const { view } = useValue(route);
  const locked = useValue(isLocked);
  const who = useValue(caller);
  const name = VIEWS[view] ? view : "create";
  useEffect(() => { document.title = `${VIEWS[name].title} · flux2`; }, [name]);
  const goTo = Object.fromEntries(Object.entries(VIEWS).map(([each, { key }]) => [key, () => {
    if (!keyTimer) return false;
    waitForKey(0);
    return go(each);
  }]));
  useKeys({
    ...goTo,
    g: () => {
      if (keyTimer) return goTo.g();
      return waitForKey(KEY_PAUSE_MS);
    },
  });
  const header = useRef(null);
  // What sticks below the header needs its height, which depends on the width.
  useEffect(() => {
    const observer = new ResizeObserver(() =>
      document.documentElement.style.setProperty("--top-height", `${header.current.offsetHeight}px`));
    observer.observe(header.current);
    return () => observer.disconnect();
  }, []);
  return html`
    <header class="top" ref=${header}>
      <a class="brand" href=${hrefOf("create")}>flux2</a>
      <${Nav} current=${name} />
      <${ServiceState} />
      <${Session} />
    </header>
    ${locked ? html`<${LogIn} />` : who && html`<${View} name=${name} />`}
    <${Notes} />`;
}

async function start() {
  const root = document.getElementById("console");
  try {
    await identify();
    startFollowing();
    render(html`<${Console} />`, root);
  } catch (error) {
    render(html`<main id="main"><${Problem} error=${error} onRetry=${start} /></main>`, root);
  }
}

start();
