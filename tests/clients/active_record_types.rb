# The types for Active Record, to be copied into an application (docs/clients.md): what is encrypted is read
# and written as text and bytea are. Without it a warning says that OIDs are unknown, and bytes arrive as the
# string \x….
#
# Their names are their own, and not :text and :binary: with those schema.rb would declare plain columns.

require "active_record/connection_adapters/postgresql_adapter"

module EncryptedTypes
  class Text < ActiveRecord::Type::Text
    def type = :encrypted_text
  end

  class Bytea < ActiveRecord::ConnectionAdapters::PostgreSQL::OID::Bytea
    def type = :encrypted_bytea
  end

  private

  def initialize_type_map(map = type_map)
    super
    map.register_type "encrypted_text", Text.new
    map.register_type "encrypted_bytea", Bytea.new
  end
end

ActiveRecord::ConnectionAdapters::PostgreSQLAdapter.prepend EncryptedTypes
