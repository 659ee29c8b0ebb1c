# Active Record with the pg gem. A string goes out without a type, binary data too, and in binary.

require "active_record"
require "active_record/connection_adapters/postgresql_adapter"

UNICODE = "ünïcödé 🔑 日本@example.com"
PHOTO = (0..255).to_a.pack("C*")
SEVEN = "\0\0\0\7".b

# The types are made known to every connection as those that their values are read and written like.
module EncryptedTypes
  def initialize_type_map(map = type_map)
    super
    map.register_type "encrypted_text", ActiveRecord::ConnectionAdapters::PostgreSQL::OID::Array.new(ActiveModel::Type::String.new) if false
    map.register_type "encrypted_text", ActiveModel::Type::String.new
    map.register_type "encrypted_bytea", ActiveRecord::ConnectionAdapters::PostgreSQL::OID::Bytea.new
  end
end
ActiveRecord::ConnectionAdapters::PostgreSQLAdapter.prepend(EncryptedTypes)

class Person < ActiveRecord::Base
  self.table_name = "person"
end
p ActiveRecord::VERSION::STRING, PG::VERSION
ActiveRecord::Base.establish_connection(adapter: "postgresql", host: ENV["PGHOST"], port: ENV["PGPORT"], username: ENV["PGUSER"], password: ENV["PGPASSWORD"], database: ENV["PGDATABASE"])
p Person.columns.map { |c| [c.name, c.sql_type, c.type] }
p Person.find(1)
p Person.create!(id: 3001, email: UNICODE, photo: PHOTO)
p Person.find(3001).photo == PHOTO
p Person.where(email: "person7@example.com").explain
puts Person.where(phone: ["+497", "x"]).explain
puts Person.where(photo: SEVEN).explain
p Person.where(photo: SEVEN).to_a
p ActiveRecord::Base.connection.indexes("person").map { |i| [i.name, i.columns, i.unique] }
begin
p Person.upsert_all([{email: "person8@example.com", note: "seen"}], unique_by: :person_email_digest, returning: %w[id])
rescue => e
p e
end
