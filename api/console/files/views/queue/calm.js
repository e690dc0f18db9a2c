// A list that holds still under the pointer.
import { useCallback, useEffect, useRef, useState } from "../../core/ui.js";

// Return { shown, waiting, showAll, ref }. `shown` has the entries in the order of `entries`, but while the pointer is
// over the element of `ref`, new ones stay out, and those that left `entries` stay in: nothing moves.
export function useCalmList(entries, idOf) {
  const element = useRef(null);
  const [isHeld, setHeld] = useState(false);
  const last = useRef([]);
  const ref = useCallback((found) => { element.current = found; }, []);
  useEffect(() => {
    const enter = () => setHeld(true);
    const leave = () => setHeld(false);
    const list = element.current;
    // A finger leaves no pointer behind, and scrolls the list itself.
    const onlyMouse = (act) => (event) => { if (event.pointerType === "mouse") act(); };
    const [onEnter, onLeave] = [onlyMouse(enter), onlyMouse(leave)];
    list?.addEventListener("pointerenter", onEnter);
    list?.addEventListener("pointerleave", onLeave);
    return () => {
      list?.removeEventListener("pointerenter", onEnter);
      list?.removeEventListener("pointerleave", onLeave);
    };
  }, [element.current]);
  const byId = new Map(entries.map((entry) => [idOf(entry), entry]));
  // In an empty list nothing can move.
  if (!isHeld || !last.current.length) last.current = entries;
  else last.current = last.current.map((entry) => byId.get(idOf(entry)) ?? entry);
  const shownIds = new Set(last.current.map(idOf));
  const waiting = entries.filter((entry) => !shownIds.has(idOf(entry))).length;
  const showAll = () => { last.current = entries; setHeld(false); };
  return { shown: last.current, waiting, showAll, ref };
}
