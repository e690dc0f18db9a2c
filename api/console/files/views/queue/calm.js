// A list that holds still under the pointer.
import { lastSent } from "../../core/sent.js";
import { useEffect, useRef, useState, useValue } from "../../core/ui.js";

// Return { shown, waiting, showAll, ref }. `shown` has the entries in the order of `entries`, but while the pointer is
// over the element of `ref`, new ones stay out, and those that left `entries` stay in: nothing moves, unless
// this tab sends a job, which whoever sent it expects to see.
export function useCalmList(entries, idOf) {
  // A state, because listeners have to wait for the element, which may come after the first rendering.
  const [list, ref] = useState(null);
  const [isHeld, setHeld] = useState(false);
  const last = useRef([]);
  useEffect(() => {
    // It may have come under a pointer that rests.
    setHeld(Boolean(list?.matches(":hover")) && matchMedia("(hover: hover)").matches);
    // A finger leaves no pointer behind, and scrolls the list itself.
    const onlyMouse = (act) => (event) => { if (event.pointerType === "mouse") act(); };
    const [onEnter, onLeave] = [onlyMouse(() => setHeld(true)), onlyMouse(() => setHeld(false))];
    list?.addEventListener("pointerenter", onEnter);
    list?.addEventListener("pointerleave", onLeave);
    return () => {
      list?.removeEventListener("pointerenter", onEnter);
      list?.removeEventListener("pointerleave", onLeave);
    };
  }, [list]);
  const sent = useValue(lastSent);
  useEffect(() => setHeld(false), [sent]);
  const byId = new Map(entries.map((entry) => [idOf(entry), entry]));
  // In an empty list nothing can move.
  if (!isHeld || !last.current.length) last.current = entries;
  else last.current = last.current.map((entry) => byId.get(idOf(entry)) ?? entry);
  const shownIds = new Set(last.current.map(idOf));
  const waiting = entries.filter((entry) => !shownIds.has(idOf(entry))).length;
  const showAll = () => { last.current = entries; setHeld(false); };
  return { shown: last.current, waiting, showAll, ref };
}
