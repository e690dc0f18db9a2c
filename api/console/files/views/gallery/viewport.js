// The part of a long element that is on the screen.
import { useLayoutEffect, useState } from "../../core/ui.js";

// Rows this far outside the screen are there already when they scroll into it.
const MARGIN_PX = 700;
// The part changes in steps, so that most scroll events change nothing.
const STEP_PX = 300;

// Return { from, to } in pixels of the element.
export function useViewport(element) {
  const [range, setRange] = useState({ from: 0, to: innerHeight + MARGIN_PX });
  useLayoutEffect(() => {
    let frame = 0;
    const measure = () => {
      frame = 0;
      const top = -element.current.getBoundingClientRect().top;
      const from = Math.floor((top - MARGIN_PX) / STEP_PX) * STEP_PX;
      const to = Math.ceil((top + innerHeight + MARGIN_PX) / STEP_PX) * STEP_PX;
      setRange((before) => (before.from === from && before.to === to ? before : { from, to }));
    };
    const measureSoon = () => { frame ||= requestAnimationFrame(measure); };
    measure();
    addEventListener("scroll", measureSoon, { passive: true });
    addEventListener("resize", measureSoon);
    return () => {
      cancelAnimationFrame(frame);
      removeEventListener("scroll", measureSoon);
      removeEventListener("resize", measureSoon);
    };
  }, []);
  return range;
}

// Return the element's width in whole pixels, 0 before it is known.
export function useWidth(element) {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    setWidth(Math.floor(element.current.clientWidth));
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  return width;
}
