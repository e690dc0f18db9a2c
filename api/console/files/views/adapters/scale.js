// The scale of an adapter and where it was found, in the words of `flux2 inspect`.
const SOURCES = {
  tensor: "alpha tensors",
  lora_adapter_metadata: "lora_adapter_metadata in the header",
  lora_alpha: "lora_alpha in the header",
  "adapter_config.json": "adapter_config.json next to the file",
  none: "no alpha stored",
  unused: "the stored alpha has no effect without a rank",
};

const short = (number) => String(Number(number.toPrecision(6)));

export function scaleText({ scale_range: range, scale_sources: sources }) {
  const from = sources.length ? ` (${sources.map((source) => SOURCES[source] ?? source).join(", ")})` : "";
  if (!range) return from && `unknown${from}`;
  const [low, high] = range.map(short);
  return low === high ? low + from : `${low} to ${high}${from}`;
}
