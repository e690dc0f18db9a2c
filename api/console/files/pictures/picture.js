// The picture of an image: its signed address is renewed once when it no longer works.
import { isExpired, keyOf, pictureOf } from "../core/image.js";
import { useEffect, useState } from "../core/ui.js";

// Pictures that did not load, with the time: tiles that come and go while one scrolls do not ask again at once.
const missing = new Map();
const FORGET_MS = 60_000;

const isMissing = (image) => Date.now() - (missing.get(keyOf(image)) ?? 0) < FORGET_MS;

// Return { address, attempt, isGone, onError, retry } for an <img> with `key` attempt. `renew(image)` reads new
// addresses, after which the caller passes the image with them. A component that uses it has the image's key.
export function usePicture(image, renew, { isWhole = false } = {}) {
  const [attempt, setAttempt] = useState(0);
  const [isRenewing, setRenewing] = useState(() => isExpired(image));
  const [isGone, setGone] = useState(() => isMissing(image));
  const addresses = isWhole ? [image.url] : [...new Set([pictureOf(image), image.url])];
  const renewThen = (next) => {
    setRenewing(true);
    renew(image).finally(() => { setAttempt(next); setRenewing(false); });
  };
  useEffect(() => { if (isRenewing && !isGone) renewThen(0); }, []);
  const onError = () => {
    if (attempt === 0) {
      renewThen(1);
    } else if (attempt < addresses.length) {
      // The thumbnail alone may be missing.
      setAttempt(attempt + 1);
    } else {
      missing.set(keyOf(image), Date.now());
      setGone(true);
    }
  };
  const retry = () => {
    missing.delete(keyOf(image));
    setGone(false);
    renewThen(0);
  };
  const address = isRenewing || isGone ? null : addresses[Math.max(0, attempt - 1)];
  return { address, attempt, isGone, onError, retry };
}
