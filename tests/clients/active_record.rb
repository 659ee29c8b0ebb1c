# Active Record with the pg gem. A string goes out without a type; so does binary data, in binary.

require "active_record"
require_relative "active_record_types"

UNICODE = "ünïcödé 🔑 日本@example.com"
PHOTO = (0..255).to_a.pack("C*")
SEVEN = [7].pack("N")

CONNECTION = {
  adapter: "postgresql", host: ENV["PGHOST"], port: ENV["PGPORT"], database: ENV["PGDATABASE"],
  username: ENV["PGUSER"], password: ENV["PGPASSWORD"]
}

class Person < ActiveRecord::Base
  self.table_name = "person"
end

class Member < ActiveRecord::Base
  self.table_name = "member"
end

class CreateMember < ActiveRecord::Migration[6.1]
  def change
    create_table :member do |t|
      t.column :login, "encrypted_text('user_pii')", null: false
      t.integer :visits, null: false, default: 1
      t.column :login_digest, "bytea GENERATED ALWAYS AS (enc_digest(login, 'nfkc_casefold')) STORED"
      t.column :phone, "encrypted_text('user_pii')"
      t.index :login_digest, unique: true
      t.index :phone, using: :hash
      t.index "enc_digest(phone)", unique: true, name: "member_phone_digest"
    end
  end
end

def main
  ActiveRecord::Base.establish_connection(CONNECTION)
  insert_and_select
  lookups
  lists
  prepared
  migration
  upserts
  denied
end

def ok(behaviour)
  puts "ok #{behaviour}"
end

def same(found, expected)
  found == expected or raise "#{found.inspect} is not #{expected.inspect}"
end

def insert_and_select
  rows = [[3001, UNICODE, PHOTO], [3002, "", "".b], [3003, nil, nil]]
  rows.each { |id, email, photo| Person.create!(id: id, email: email, photo: photo) }
  found = Person.where("id > 3000").order(:id)
  same found.map { |person| [person.id, person.email, person.photo] }, rows
  same Person.columns_hash.slice("email", "photo").transform_values(&:type),
    {"email" => :encrypted_text, "photo" => :encrypted_bytea}
  person = Person.find(3001)
  same person.changed?, false
  person.update!(email: "changed@example.com")
  same Person.find_by!("email LIKE ?", "changed@%").id, 3001
  ok "insert and select"
end

def lookups
  look_up "person_email_digest", email: "person7@example.com"
  look_up "person_phone_hash", phone: "+497"
  look_up "person_photo_hash", photo: SEVEN
  ok "lookup"
  look_up "person_email_folded",
    ["enc_digest(email, 'nfkc_casefold') = enc_digest(?, 'nfkc_casefold')", "PERSON7@Example.com"]
  ok "lookup without case"
end

def lists
  look_up "person_phone_hash", phone: ["+497", "+4901"]
  look_up "person_photo_hash", photo: [SEVEN, "none".b]
  ok "IN"
end

# Finds the person 7, by the index.
def look_up(index, condition)
  query = Person.where(condition)
  plan = query.explain
  plan.include?(index) or raise "#{condition}: #{plan}"
  same query.map(&:id), [7]
end

# The server takes a generic plan from the sixth execution on.
def prepared
  (1..11).each { |n| same Person.find_by(email: "person#{n}@example.com").id, n }
  generic = Person.connection.select_value(
    "SELECT generic_plans FROM pg_prepared_statements
      WHERE statement LIKE '%\"email\" = $1%' AND generic_plans > 0")
  same generic.to_i > 0, true
  ok "prepared statement"
end

def migration
  ActiveRecord::Migration.suppress_messages { CreateMember.migrate(:up) }
  schema = StringIO.new
  ActiveRecord::SchemaDumper.dump(ActiveRecord::Base.connection, schema)
  # schema.rb can't have them, and says so instead of declaring plain columns.
  same schema.string.scan(/Could not dump table "(\w+)"/).flatten, %w[account member person]
  same schema.string.include?("create_table"), false
  ok "migration"
end

def upserts
  same Person.upsert_all([{email: "person8@example.com", note: "seen"}],
    unique_by: :person_email_digest, returning: :id).rows, [[8]]
  ok "upsert on an expression"
  %w[Alice ALICE].each { |login| Member.upsert_all([{login: login, visits: 2}], unique_by: :login_digest) }
  same Member.pluck(:visits, :login), [[2, "ALICE"]]
  ok "upsert on a column"
end

def denied
  ActiveRecord::Base.establish_connection(CONNECTION.merge(username: "stranger", password: "stranger"))
  Person.first
  raise "nothing was refused"
rescue ActiveRecord::StatementInvalid => error
  same error.cause.result.error_field(PG::Result::PG_DIAG_SQLSTATE), "KE020"
  ok "KE020"
end

main
