// node-postgres. Strings, numbers and arrays go out as text and a Buffer in binary, all without a type.

"use strict";

const assert = require("node:assert/strict");
const { Client, types } = require("pg");

const UNICODE = "ünïcödé 🔑 日本@example.com";
const PHOTO = Buffer.from(Array.from({ length: 256 }, (_, n) => n));
const SEVEN = Buffer.from([0, 0, 0, 7]);

async function main() {
  const client = new Client();
  await client.connect();
  await unregistered(client);
  await register(client);
  await insertAndSelect(client);
  await lookups(client);
  await lists(client);
  await upserts(client);
  await prepared(client);
  await client.end();
  await denied();
}

function ok(behaviour) {
  console.log("ok", behaviour);
}

async function unregistered(client) {
  const row = await only(client, "SELECT email, photo, ARRAY[email] AS emails FROM person WHERE id = 1");
  const expected = { email: "person1@example.com", photo: "\\x00000001", emails: "{person1@example.com}" };
  assert.deepEqual(row, expected);
  ok("unregistered types");
}

// encrypted_bytea and the arrays are read as bytea and text[] are.
async function register(client) {
  const likeness = { encrypted_bytea: "bytea", _encrypted_text: "_text", _encrypted_bytea: "_bytea" };
  for (const [name, base] of Object.entries(likeness)) {
    const row = await only(client, "SELECT $1::regtype::oid AS oid, $2::regtype::oid AS base", [name, base]);
    types.setTypeParser(row.oid, types.getTypeParser(row.base));
  }
}

async function insertAndSelect(client) {
  const rows = [["3001", UNICODE, PHOTO], ["3002", "", Buffer.alloc(0)], ["3003", null, null]];
  for (const row of rows) {
    await client.query("INSERT INTO person (id, email, photo) VALUES ($1, $2, $3)", row);
  }
  const found = await client.query({
    text: "SELECT id, email, photo FROM person WHERE id > 3000 ORDER BY id",
    rowMode: "array",
  });
  assert.deepEqual(found.rows, rows);
  const arrays = await only(
    client, "SELECT ARRAY[email] AS emails, ARRAY[photo] AS photos FROM person WHERE id = 3001");
  assert.deepEqual(arrays, { emails: [UNICODE], photos: [PHOTO] });
  ok("insert and select");
  await client.query("INSERT INTO person (id, email, photo) VALUES (3004, $1::text, $2::bytea)",
    ["typed@example.com", PHOTO]);
  const row = await only(client, "SELECT email::text, photo::bytea FROM person WHERE id = 3004");
  assert.deepEqual(row, { email: "typed@example.com", photo: PHOTO });
  ok("types of the base types");
}

async function lookups(client) {
  for (const placeholder of ["$1", "$1::text", "$1::varchar"]) {
    await lookUp(client, "person_email_digest", `email = ${placeholder}`, ["person7@example.com"]);
    await lookUp(client, "person_phone_hash", `phone = ${placeholder}`, ["+497"]);
  }
  for (const placeholder of ["$1", "$1::bytea"]) {
    await lookUp(client, "person_photo_hash", `photo = ${placeholder}`, [SEVEN]);
  }
  ok("lookup");
  await lookUp(client, "person_email_folded",
    "enc_digest(email, 'nfkc_casefold') = enc_digest($1, 'nfkc_casefold')", ["PERSON7@Example.com"]);
  ok("lookup without case");
}

async function lists(client) {
  for (const placeholder of ["$1", "$1::text[]", "$1::varchar[]"]) {
    await lookUp(client, "person_phone_hash", `phone = ANY(${placeholder})`, [["+497", "+4901"]]);
  }
  await lookUp(client, "person_photo_hash", "photo = ANY($1)", [[SEVEN, Buffer.from("none")]]);
  ok("= ANY");
  await lookUp(client, "person_phone_hash", "phone IN ($1, $2)", ["+497", "+4901"]);
  ok("IN");
}

// Finds the person 7, by the index.
async function lookUp(client, index, condition, parameters) {
  const query = `SELECT id FROM person WHERE ${condition}`;
  const plan = await client.query("EXPLAIN (COSTS OFF) " + query, parameters);
  assert.ok(JSON.stringify(plan.rows).includes(index), `${condition}: ${JSON.stringify(plan.rows)}`);
  assert.deepEqual((await client.query(query, parameters)).rows, [{ id: "7" }]);
}

async function upserts(client) {
  const seen = await only(client, `
    INSERT INTO person (email, note) VALUES ($1, $2)
    ON CONFLICT (enc_digest(email)) DO UPDATE SET note = excluded.note RETURNING id`,
    ["person8@example.com", "seen"]);
  assert.deepEqual(seen, { id: "8" });
  ok("upsert on an expression");
  const upsert = `
    INSERT INTO account (login) VALUES ($1)
    ON CONFLICT (login_digest) DO UPDATE SET visits = account.visits + 1 RETURNING login, visits`;
  await only(client, upsert, ["Alice"]);
  assert.deepEqual(await only(client, upsert, ["ALICE"]), { login: "Alice", visits: 2 });
  ok("upsert on a column");
}

// The server takes a generic plan from the sixth execution on.
async function prepared(client) {
  for (let n = 1; n < 12; n++) {
    const found = await client.query({
      name: "by-email",
      text: "SELECT id FROM person WHERE email = $1",
      values: [`person${n}@example.com`],
    });
    assert.deepEqual(found.rows, [{ id: String(n) }]);
  }
  const statement = await only(
    client, "SELECT generic_plans FROM pg_prepared_statements WHERE name = 'by-email'");
  assert.ok(Number(statement.generic_plans) > 0);
  ok("prepared statement");
}

async function denied() {
  const client = new Client({ user: "stranger", password: "stranger" });
  await client.connect();
  await assert.rejects(client.query("SELECT email FROM person"), (error) => {
    assert.equal(error.code, "KE020");
    assert.ok(error.message.includes("user_pii") && error.hint);
    return true;
  });
  await client.end();
  ok("KE020");
}

async function only(client, text, values) {
  const { rows } = await client.query(text, values);
  assert.equal(rows.length, 1);
  return rows[0];
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
