/**
 * Numbers as people read them; the same words as dashboard/formatting.py, and a test holds the two equal.
 * Pure.
 */

export const NOTHING = "–";
const SI_PREFIXES = ["", "k", "M", "G", "T", "P", "E", "Z"];
const BINARY_PREFIXES = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
const MINUTE_S = 60;
const HOUR_S = 3_600;
const DAY_S = 86_400;

/** Whether there is a number to show. @param {?number} value */
const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Decimals that leave three digits. @param {number} value */
const decimalsFor = (value) => (Math.abs(value) >= 99.95 ? 0 : Math.abs(value) >= 9.995 ? 1 : 2);

/** `toFixed` with thousands separated by commas. @param {number} value @param {number} decimals */
export function fixed(value, decimals) {
  // toFixed turns to exponents from 1e21 on; BigInt writes such a number out.
  const text =
    Math.abs(value) >= 1e21
      ? String(BigInt(Math.round(value))) + (decimals ? "." + "0".repeat(decimals) : "")
      : value.toFixed(decimals);
  const [whole, rest] = text.replace(/^-(?=[0.]*$)/, "").split(".");
  const grouped = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  return rest === undefined ? grouped : `${grouped}.${rest}`;
}

/** 12,480 @param {?number} value */
export const count = (value) => (known(value) ? fixed(value, 0) : NOTHING);

/** 12,480 · 96.4 · 0.25 @param {?number} value */
export const rate = (value) => (!known(value) ? NOTHING : value === 0 ? "0" : fixed(value, decimalsFor(value)));

/** 118 · 4.2 · 0.45 @param {?number} value */
export function milliseconds(value) {
  if (!known(value)) return NOTHING;
  return fixed(value, Math.abs(value) >= 9.95 ? 0 : Math.abs(value) >= 0.995 ? 1 : 2);
}

/** 97 · 4.2 · 0.31 @param {?number} value */
export const percent = (value) => (value === 0 ? "0" : milliseconds(value));

/** A gauge without decimals. @param {?number} value */
export const whole = count;

/** ["3.42", "TFLOP/s"] @param {?number} value @param {string} unit */
export const scaled = (value, unit) => withPrefix(value, unit, 1_000, SI_PREFIXES);

/** 3.42 TFLOP @param {?number} value */
export const flop = (value) => scaled(value, "FLOP").join(" ");

/** 215 W @param {?number} value */
export const watts = (value) => (known(value) ? `${count(value)} W` : NOTHING);

/** 64 °C @param {?number} value */
export const celsius = (value) => (known(value) ? `${count(value)} °C` : NOTHING);

/** 11.2 GiB @param {?number} value */
export function size(value) {
  const [number, unit] = withPrefix(value, "B", 1_024, BINARY_PREFIXES);
  return number === NOTHING ? NOTHING : `${number} ${unit}`;
}

/** 0.0421 @param {?number} value */
export function loss(value) {
  if (!known(value)) return NOTHING;
  const magnitude = Math.abs(value);
  return fixed(value, magnitude >= 1_000 ? 0 : magnitude >= 10 ? 2 : magnitude >= 1 ? 3 : 4);
}

/** 12 s · 3 min · 5 h · 2 d @param {?number} seconds */
export function duration(seconds) {
  if (!known(seconds)) return NOTHING;
  const rounded = Math.max(0, Math.floor(seconds));
  if (rounded < MINUTE_S) return `${rounded} s`;
  if (rounded < HOUR_S) return `${Math.floor(rounded / MINUTE_S)} min`;
  if (rounded < 2 * DAY_S) return `${Math.floor(rounded / HOUR_S)} h`;
  return `${Math.floor(rounded / DAY_S)} d`;
}

/** 0.4 s below ten seconds, then as duration: the age of the page's data. @param {number} seconds */
export const shortAge = (seconds) => (seconds < 9.95 ? `${Math.max(0, seconds).toFixed(1)} s` : duration(seconds));

/** 12:04:31 in the reader's time zone. @param {number} atS */
export function clock(atS) {
  const at = new Date(atS * 1_000);
  return [at.getHours(), at.getMinutes(), at.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
}

/** 1 node, 2 nodes @param {number} number @param {string} singular */
export const plural = (number, singular) => `${count(number)} ${singular}${number === 1 ? "" : "s"}`;

function withPrefix(value, unit, base, prefixes) {
  if (!known(value)) return [NOTHING, unit];
  if (value === 0) return ["0", unit];
  let power = 0;
  let rest = value;
  while (power < prefixes.length - 1 && Math.abs(rest) >= base - 0.5) {
    rest /= base;
    power += 1;
  }
  const decimals = power === 0 && Number.isInteger(rest) ? 0 : decimalsFor(rest);
  return [fixed(rest, decimals), prefixes[power] + unit];
}
