// What every view builds with: Preact's functions with tagged templates instead of JSX, and hooks for signals.
import { h, render } from "../vendor/preact.js";
import {
  useCallback, useEffect, useId, useLayoutEffect, useMemo, useReducer, useRef, useState,
} from "../vendor/preact-hooks.js";
import { batch, effect, signal } from "../vendor/signals.js";
import htm from "../vendor/htm.js";

export const html = htm.bind(h);

export {
  batch, effect, render, signal, useCallback, useEffect, useId, useLayoutEffect, useMemo, useReducer, useRef, useState,
};

// Return a signal's value, and render the component again whenever it changes.
export function useValue(source) {
  const [, redraw] = useReducer((count) => count + 1, 0);
  const shown = useRef();
  shown.current = source.value;
  useLayoutEffect(() => effect(() => { if (source.value !== shown.current) redraw(); }), [source]);
  return source.value;
}

// Call `load({ signal })` when `inputs` change, and return { data, error, isLoading, reload }. A newer call aborts the
// older one, so answers cannot arrive in the wrong order.
export function useLoaded(load, inputs) {
  const [round, reload] = useReducer((count) => count + 1, 0);
  const [state, setState] = useState({ data: null, error: null, isLoading: true });
  useEffect(() => {
    const aborter = new AbortController();
    setState((before) => ({ ...before, isLoading: true }));
    load({ signal: aborter.signal }).then(
      (data) => aborter.signal.aborted || setState({ data, error: null, isLoading: false }),
      (error) => aborter.signal.aborted || setState({ data: null, error, isLoading: false }),
    );
    return () => aborter.abort();
  }, [...inputs, round]);
  return { ...state, reload };
}
