// Teams: their quotas, what they have of them, and their share of past use.

import { html, nothing, render } from "./vendor/lit-html.js";
import { hrefOfFilter } from "./address.js";
import { size } from "./format.js";
import { rows } from "./state.js";

const HEADS = ["Team", "Quota", "Used", "Borrowed", "Lent", "Leases", "Waiting", "Share"];

const part = (ratio) => `${Math.round(100 * ratio)} %`;

const some = (mb) => (mb ? size(mb) : "–");

/** A team's quota: what it uses of it, and beyond it what it borrows. */
function bar(team) {
  const all = Math.max(team.nominal_mb, team.used_mb, 1);
  const own = Math.min(team.used_mb, team.nominal_mb);
  const says = `${size(own)} of its quota of ${size(team.nominal_mb)} used, ${size(
    team.borrowed_mb,
  )} borrowed`;
  return html`<svg class="bar" role="img" aria-label=${says}>
    <title>${says}</title>
    <rect class="leased" x="0" y="0" height="100%" width="${(100 * own) / all}%"></rect>
    <rect
      class="others"
      x="${(100 * own) / all}%"
      y="0"
      height="100%"
      width="${(100 * team.borrowed_mb) / all}%"
    ></rect>
  </svg>`;
}

const row = (team) =>
  html`<tr>
    <th scope="row"><a href=${hrefOfFilter(team.team)}>${team.team}</a></th>
    <td>${size(team.nominal_mb)}</td>
    <td>${size(team.used_mb)} ${bar(team)}</td>
    <td>${some(team.borrowed_mb)}</td>
    <td>${some(team.lent_mb)}</td>
    <td>${team.leases}</td>
    <td>${team.waiters}</td>
    <td title="Its part of what all teams have used lately, and the part that its weight gives it">
      ${part(team.used_share)} of ${part(team.wanted_share)}
    </td>
  </tr>`;

/** A model of which the team has a quota of its own. */
const modelRow = ([model, quota]) =>
  html`<tr class="model">
    <th scope="row">${model}</th>
    <td>${size(quota.nominal_mb)}</td>
    <td>${size(quota.used_mb)} ${bar(quota)}</td>
    <td>${some(quota.borrowed_mb)}</td>
    <td></td>
    <td></td>
    <td></td>
    <td></td>
  </tr>`;

const rowsOf = (team) => [row(team), ...Object.entries(team.models).sort().map(modelRow)];

/** Draw the section; it is there only where teams have policies. */
export function drawTeams(section) {
  const teams = [...rows.teams.values()].sort((a, b) => a.team.localeCompare(b.team));
  section.hidden = !teams.length;
  if (!teams.length) return render(nothing, section);
  render(
    html`<div class="panel-head">
        <h2 id="teams-title">Teams <span class="count">${teams.length}</span></h2>
      </div>
      <div class="teams" tabindex="0" role="region" aria-labelledby="teams-title">
        <table>
          <thead>
            <tr>
              ${HEADS.map((head) => html`<th scope="col">${head}</th>`)}
            </tr>
          </thead>
          <tbody>
            ${teams.flatMap(rowsOf)}
          </tbody>
        </table>
      </div>`,
    section,
  );
}
