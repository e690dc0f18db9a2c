// Reference images that are uploaded from this page.
import { request } from "./api.js";
import { fileNameOf } from "./image.js";

const THUMBNAIL_PX = 160;
// A zip's local header; the file's bytes follow its name and its extra field.
const ZIP_HEADER_BYTES = 30;

// A small picture that the draft can keep; empty for a file that this browser cannot read.
async function thumbnailOf(file) {
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, THUMBNAIL_PX / Math.max(picture.width, picture.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, picture.width * scale);
    canvas.height = Math.max(1, picture.height * scale);
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/webp", 0.8);
  } catch {
    return "";
  }
}

// Return the reference of a file as the draft keeps it.
export async function uploadReference(file) {
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  const answer = await request("/v1/uploads", { method: "POST", body: file, headers });
  const { path, width, height, warnings } = await answer.json();
  return { path, name: file.name, thumbnail: await thumbnailOf(file), width, height, warnings };
}

// Upload an image of the service as a reference. Its bytes come in a zip of the API, for the store lets no page read them.
export async function referenceFrom(image) {
  const answer = await request(`/v1/requests/${image.request_id}/archive?index=${image.index}`);
  const zip = await answer.arrayBuffer();
  const header = new DataView(zip);
  const start = ZIP_HEADER_BYTES + header.getUint16(26, true) + header.getUint16(28, true);
  const bytes = zip.slice(start, start + image.size_bytes);
  return uploadReference(new File([bytes], fileNameOf(image), { type: `image/${image.format}` }));
}
