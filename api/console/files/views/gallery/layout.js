// Where each image goes: days, sections of one job or of several small ones, and justified rows.
import { keyOf } from "../../core/image.js";

const GAP = 4;
const DAY_HEIGHT = 40;
const SECTION_HEIGHT = 32;
const SECTION_SPACE = 12;
// Jobs with fewer images share a section with their neighbours, so that single images fill rows too.
const SMALL_JOB = 4;

// Return { height, days, rows }. A day has { name, date, top, height, entries }, with tops relative to the day; an entry
// is a section's heading or a row of images: { kind, top, height, row, ... }. `rows` has all rows, and `placeOf` maps the
// key of an image to its row and column.
export function layOut(images, { width, rowHeight }) {
  const days = [];
  const rows = [];
  const placeOf = new Map();
  let top = 0;
  for (const { date, sections } of daysOf(images)) {
    const day = { date, name: date, top, height: DAY_HEIGHT, entries: [] };
    for (const section of sections) addSection(day, section, { width, rowHeight, rows, placeOf });
    top += day.height;
    days.push(day);
  }
  return { height: top, days, rows, placeOf };
}

function addSection(day, section, { width, rowHeight, rows, placeOf }) {
  const name = keyOf(section.images[0]);
  day.entries.push({ kind: "section", name: `section ${name}`, top: day.height, height: SECTION_HEIGHT, ...section });
  day.height += SECTION_HEIGHT;
  for (const { images, height, scale } of justify(section.images, width, rowHeight)) {
    const row = {
      kind: "row", name: keyOf(images[0]), top: day.height, height, number: rows.length, absoluteTop: day.top + day.height,
      cells: images.map((image) => ({ image, width: Math.max(1, Math.floor(scale * image.width / image.height)) })),
    };
    images.forEach((image, column) => placeOf.set(keyOf(image), { row: rows.length, column }));
    rows.push(row);
    day.entries.push(row);
    day.height += height + GAP;
  }
  day.height += SECTION_SPACE;
}

function dayOf(text) {
  const moment = new Date(text);
  return new Date(moment.getFullYear(), moment.getMonth(), moment.getDate()).getTime();
}

function daysOf(images) {
  const days = [];
  for (const job of jobsOf(images)) {
    if (days.at(-1)?.date !== job.date) days.push({ date: job.date, sections: [] });
    const { sections } = days.at(-1);
    const open = sections.at(-1);
    if (job.images.length < SMALL_JOB && open?.isShared) {
      open.images.push(...job.images);
      open.jobs.push(job.requestId);
    } else {
      sections.push({ isShared: job.images.length < SMALL_JOB, images: [...job.images], jobs: [job.requestId] });
    }
  }
  return days;
}

function jobsOf(images) {
  const jobs = [];
  for (const image of images) {
    if (jobs.at(-1)?.requestId !== image.request_id) {
      jobs.push({ requestId: image.request_id, date: dayOf(image.created_at), images: [] });
    }
    jobs.at(-1).images.push(image);
  }
  return jobs;
}

// Yield rows that fill the width at about the wished height; the last one keeps that height.
function* justify(images, width, rowHeight) {
  let row = [];
  let aspects = 0;
  for (const image of images) {
    const aspect = image.width / image.height;
    const tooMany = heightOf(aspects + aspect, row.length + 1, width);
    // Of the heights without and with this image, take the one nearer to the wished height.
    if (row.length && tooMany < rowHeight && rowHeight - tooMany > heightOf(aspects, row.length, width) - rowHeight) {
      yield full(row, aspects, width);
      row = [];
      aspects = 0;
    }
    row.push(image);
    aspects += aspect;
    if (heightOf(aspects, row.length, width) <= rowHeight) {
      yield full(row, aspects, width);
      row = [];
      aspects = 0;
    }
  }
  if (row.length) {
    const height = Math.min(rowHeight, heightOf(aspects, row.length, width));
    yield { images: row, height: Math.round(height), scale: height };
  }
}

const heightOf = (aspects, count, width) => (width - GAP * (count - 1)) / aspects;

function full(images, aspects, width) {
  const height = heightOf(aspects, images.length, width);
  return { images, height: Math.round(height), scale: height };
}
