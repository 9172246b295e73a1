// Columns of numbers sort descending first; missing values stay last either way.
const numberOf = text => text.trim() === "" ? NaN : Number(text.replaceAll(",", ""));
function compare(a, b, sign) {
  const [x, y] = [numberOf(a), numberOf(b)];
  if (Number.isNaN(x) && Number.isNaN(y)) return sign * a.localeCompare(b);
  if (Number.isNaN(x)) return 1;
  if (Number.isNaN(y)) return -1;
  return sign * (x - y);
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows], text = row => row.cells[column].textContent;
      const first = rows.some(row => !Number.isNaN(numberOf(text(row)))) ? -1 : 1;
      const now = {ascending: 1, descending: -1}[head.getAttribute("aria-sort")];
      const sign = now ? -now : first;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      body.append(...rows.sort((a, b) => compare(text(a), text(b), sign)));
    });
  });
}
