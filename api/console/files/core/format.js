// Numbers and times as people read them.

export function formatSeconds(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// "about 35 s", "20 to 50 s".
export function formatEta(eta, range) {
  if (eta === null || eta === undefined) return "";
  if (!range || formatSeconds(range[0]) === formatSeconds(range[1])) return `about ${formatSeconds(eta)}`;
  return `about ${formatSeconds(eta)} (${formatSeconds(range[0])} to ${formatSeconds(range[1])})`;
}

export function formatBytes(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let value = bytes / 1000;
  while (value >= 1000 && units.length > 1) { value /= 1000; units.shift(); }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[0]}`;
}

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short" });

export function formatTime(text) {
  const moment = new Date(text);
  const isToday = moment.toDateString() === new Date().toDateString();
  return isToday ? TIME.format(moment) : `${DAY.format(moment)}, ${TIME.format(moment)}`;
}

export const countOf = (number, one, many = `${one}s`) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

// "my_lora" for "job/my_lora.safetensors", the part that people chose.
export const adapterName = (path) =>
  path.replace(/^upload:/, "").replace(/@[0-9a-f]{64}$/, "").split("/").pop().replace(/\.safetensors$/, "");
