// Zoom and pan that several pictures share: the numbers are custom properties of a common ancestor, so no component is
// rendered while they change.
import { useLayoutEffect, useRef } from "../core/ui.js";

const MAX_SCALE = 32;
const STEP = 1.3;

// Zoom the `target` elements inside `root`; each is the frame of a picture that has the class "zoomed". The returned
// object has zoomBy(factor) and reset(). `wheelTarget(event)` says whether a wheel zooms rather than scrolls.
export function useZoom(root, { target, wheelTarget = () => true, onChange = () => {} }) {
  const zoom = useRef(null);
  zoom.current ??= new Zoom();
  zoom.current.onChange = onChange;
  useLayoutEffect(() => zoom.current.attach(root.current, target, wheelTarget), []);
  return zoom.current;
}

// A point p of the frame, from 0 to 1, is shown at p * scale + (x, y).
class Zoom {
  scale = 1;
  x = 0;
  y = 0;
  #root = null;
  #pointers = new Map();
  #hasMoved = false;

  attach(root, target, wheelTarget) {
    this.#root = root;
    this.#apply();
    const frameOf = (event) => event.target.closest?.(target);
    const listeners = {
      wheel: (event) => {
        const frame = frameOf(event);
        if (!frame || !(event.ctrlKey || wheelTarget(event, frame))) return;
        event.preventDefault();
        // A trackpad's pinch arrives as many small steps with ctrl.
        const speed = event.ctrlKey ? 0.01 : 0.002;
        this.#zoomAt(Math.exp(-event.deltaY * speed), pointIn(frame, event));
      },
      pointerdown: (event) => {
        const frame = frameOf(event);
        if (!frame || event.button) return;
        if (!this.#pointers.size) this.#hasMoved = false;
        this.#pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, frame });
      },
      pointermove: (event) => this.#move(event),
      click: (event) => {
        // The end of a drag is no click.
        if (this.#hasMoved && frameOf(event)) { event.preventDefault(); event.stopPropagation(); }
        this.#hasMoved = false;
      },
      dragstart: (event) => { if (frameOf(event)) event.preventDefault(); },
    };
    const release = (event) => this.#pointers.delete(event.pointerId);
    const options = { passive: false, capture: true };
    for (const [name, listen] of Object.entries(listeners)) root.addEventListener(name, listen, options);
    addEventListener("pointerup", release);
    addEventListener("pointercancel", release);
    return () => {
      for (const [name, listen] of Object.entries(listeners)) root.removeEventListener(name, listen, options);
      removeEventListener("pointerup", release);
      removeEventListener("pointercancel", release);
    };
  }

  zoomIn() { this.#zoomAt(STEP, CENTER); }

  zoomOut() { this.#zoomAt(1 / STEP, CENTER); }

  reset() {
    Object.assign(this, { scale: 1, x: 0, y: 0 });
    this.#apply();
  }

  #move(event) {
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    const { frame } = before;
    const box = frame.getBoundingClientRect();
    const others = [...this.#pointers.values()].filter((each) => each !== before);
    const after = { x: event.clientX, y: event.clientY, frame };
    if (Math.hypot(after.x - before.x, after.y - before.y) < 4 && !this.#hasMoved) return;
    this.#pointers.set(event.pointerId, after);
    if (others.length) {
      const [other] = others;
      const middle = pointIn(frame, { clientX: (after.x + other.x) / 2, clientY: (after.y + other.y) / 2 });
      this.#zoomAt(distance(after, other) / Math.max(1, distance(before, other)), middle);
    } else if (this.scale > 1) {
      this.x += (after.x - before.x) / box.width;
      this.y += (after.y - before.y) / box.height;
      this.#apply();
    } else {
      return;
    }
    this.#hasMoved = true;
  }

  #zoomAt(factor, point) {
    const scale = Math.min(MAX_SCALE, Math.max(1, this.scale * factor));
    const ratio = scale / this.scale;
    this.x = point.x - (point.x - this.x) * ratio;
    this.y = point.y - (point.y - this.y) * ratio;
    this.scale = scale;
    this.#apply();
  }

  #apply() {
    // The picture never leaves its frame.
    this.x = Math.min(0, Math.max(1 - this.scale, this.x));
    this.y = Math.min(0, Math.max(1 - this.scale, this.y));
    const { style, classList } = this.#root;
    style.setProperty("--zoom", this.scale);
    style.setProperty("--zoom-x", `${this.x * 100}%`);
    style.setProperty("--zoom-y", `${this.y * 100}%`);
    classList.toggle("is-zoomed", this.scale > 1);
    this.onChange(this.scale);
  }
}

const CENTER = { x: 0.5, y: 0.5 };

function pointIn(frame, { clientX, clientY }) {
  const box = frame.getBoundingClientRect();
  return { x: (clientX - box.left) / box.width, y: (clientY - box.top) / box.height };
}

const distance = (one, other) => Math.hypot(one.x - other.x, one.y - other.y);
