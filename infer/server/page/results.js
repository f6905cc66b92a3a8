// What a result says at a glance: a line for each thing in it, and where on the picture it is.

const BACKGROUND = /^(_*background_*|none|0)$/i;

const colour = (index) => `hsl(${(index * 137.5) % 360} 75% 45%)`;

// The parts of a result that have a name: { name, figure, share, colour }, share from 0 to 1.
export function lines(result) {
  const list = (key) => (Array.isArray(result?.[key]) ? result[key] : []);
  const scored = (each, name, more = {}) => ({
    name: String(name),
    figure: Number(each.score).toFixed(4),
    share: Number(each.score),
    ...more,
  });
  const best = Math.max(...list("items").map((each) => Number(each.score)));
  return [
    ...list("labels").filter((each) => each?.label !== undefined).map((each) => scored(each, each.label)),
    ...list("detections").map((each) => scored(each, each.label, { colour: colour(each.index) })),
    ...list("entities").map((each) => scored(each, `${each.text}: ${each.label}`)),
    ...list("items").map((each) => scored(each, each.title, { share: Number(each.score) / best })),
    ...list("areas").filter((each) => each.pixels > 0).map((each) => ({
      name: String(each.label),
      figure: `${(100 * each.share).toFixed(2)} %`,
      share: each.share,
      colour: transparent(each, result.areas) ? undefined : colour(each.index),
    })),
  ];
}

// Draws the picture and what was found on it; whether there was something to draw.
export function draw(canvas, picture, result) {
  const boxes = Array.isArray(result?.detections) ? result.detections : [];
  const sheet = result?.mask ? painted(result.mask, result.areas) : null;
  if (!picture.naturalWidth || !(boxes.length || sheet)) return false;
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const paper = canvas.getContext("2d");
  paper.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (sheet) {
    paper.imageSmoothingEnabled = false;
    paper.drawImage(sheet, 0, 0, canvas.width, canvas.height);
  }
  const line = Math.max(2, canvas.width / 300);
  paper.lineWidth = line;
  paper.font = `${Math.max(12, canvas.width / 45)}px system-ui, sans-serif`;
  paper.textBaseline = "top";
  for (const { box: [left, top, right, bottom], label, index } of boxes) {
    paper.strokeStyle = paper.fillStyle = colour(index);
    paper.strokeRect(left, top, right - left, bottom - top);
    const { width, fontBoundingBoxDescent: height } = paper.measureText(label);
    paper.fillRect(left, top, width + 2 * line, height + line);
    paper.fillStyle = "#fff";
    paper.fillText(label, left + line, top + line / 2);
  }
  return true;
}

// The mask as a picture of its own; null for what is no plane.
function painted(mask, areas) {
  const several = mask.shape.length === 3 && mask.shape[0] === areas.length; // a plane for each class
  const one = areas.length === 1; // its pixels are 1
  const [height, width] = mask.shape.slice(-2);
  if (mask.shape.length !== 2 && !several) return null;
  const sheet = new OffscreenCanvas(width, height);
  const paper = sheet.getContext("2d");
  const shades = areas.map(({ index }) => {
    paper.fillStyle = colour(index); // and read as #rrggbb
    return [1, 3, 5].map((from) => parseInt(paper.fillStyle.slice(from, from + 2), 16)).concat(128);
  });
  const pixels = paper.createImageData(width, height);
  let at = 0;
  mask.values.forEach((value, place) => {
    for (const end = at + mask.lengths[place]; at < end; at++) {
      const plane = Math.floor(at / (width * height));
      const index = several ? plane : one ? 0 : value;
      const there = several || one ? value : !transparent(areas[index], areas);
      if (there) pixels.data.set(shades[index], 4 * (at % (width * height)));
    }
  });
  paper.putImageData(pixels, 0, 0);
  return sheet;
}

function transparent(area, areas) {
  return area.index === 0 && areas.length > 1 && BACKGROUND.test(area.label);
}
