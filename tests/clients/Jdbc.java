// pgjdbc. setString sends varchar, setBytes bytea, setArray the array type that createArrayOf names, and
// setObject(…, Types.OTHER) no type.

import java.nio.charset.StandardCharsets;
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Types;
import java.util.Arrays;
import java.util.List;
import org.postgresql.PGConnection;
import org.postgresql.util.PSQLException;

public class Jdbc {
    static final String UNICODE = "ünïcödé 🔑 日本@example.com";
    static final byte[] PHOTO = new byte[256];
    static final byte[] SEVEN = {0, 0, 0, 7};

    static {
        for (int n = 0; n < 256; n++) {
            PHOTO[n] = (byte) n;
        }
    }

    public static void main(String[] arguments) throws Exception {
        try (Connection connection = connect("app", "")) {
            unregistered(connection);
            insertAndSelect(connection);
            lookups(connection);
            ok("lookup");
            ok("lookup without case");
            lists(connection);
            ok("= ANY");
            ok("IN");
            upserts(connection);
            prepared(connection);
            copy(connection);
        }
        untyped();
        denied();
    }

    static Connection connect(String user, String options) throws SQLException {
        String url = String.format("jdbc:postgresql://%s:%s/%s?%s",
            System.getenv("PGHOST"), System.getenv("PGPORT"), System.getenv("PGDATABASE"), options);
        return DriverManager.getConnection(url, user, user);
    }

    static void ok(String behaviour) {
        System.out.println("ok " + behaviour);
    }

    static void same(Object found, Object expected) {
        if (!expected.equals(found)) {
            throw new AssertionError(found + " is not " + expected);
        }
    }

    // getString reads encrypted_text; getBytes must not read encrypted_bytea: it gives the bytes of \x….
    static void unregistered(Connection connection) throws SQLException {
        ResultSet row = only(connection.prepareStatement(
            "SELECT email, photo, photo::bytea FROM person WHERE id = 1"));
        same(row.getMetaData().getColumnTypeName(1), "encrypted_text");
        same(row.getMetaData().getColumnType(1), Types.OTHER);
        same(row.getString(1), "person1@example.com");
        same(row.getString(2), "\\x00000001");
        same(new String(row.getBytes(2), StandardCharsets.US_ASCII), "\\x00000001");
        same(Arrays.equals(row.getBytes(3), new byte[] {0, 0, 0, 1}), true);
        ok("unregistered types");
    }

    static void insertAndSelect(Connection connection) throws SQLException {
        PreparedStatement insert = connection.prepareStatement(
            "INSERT INTO person (id, email, photo) VALUES (?, ?, ?)");
        insert.setLong(1, 3001);
        insert.setString(2, UNICODE);
        insert.setBytes(3, PHOTO);
        insert.addBatch();
        insert.setLong(1, 3002);
        insert.setString(2, "");
        insert.setBytes(3, new byte[0]);
        insert.addBatch();
        insert.setLong(1, 3003);
        insert.setNull(2, Types.VARCHAR);
        insert.setNull(3, Types.BINARY);
        insert.addBatch();
        insert.executeBatch();

        ResultSet rows = connection.prepareStatement(
            "SELECT email, photo::bytea FROM person WHERE id > 3000 ORDER BY id").executeQuery();
        rows.next();
        same(rows.getString(1), UNICODE);
        same(Arrays.equals(rows.getBytes(2), PHOTO), true);
        rows.next();
        same(rows.getString(1), "");
        same(rows.getBytes(2).length, 0);
        rows.next();
        same(rows.getString(1) == null && rows.getBytes(2) == null, true);
        rows = only(connection.prepareStatement(
            "SELECT ARRAY[email], ARRAY[email]::text[] FROM person WHERE id = 3001"));
        same(Arrays.asList((Object[]) rows.getArray(2).getArray()), List.of(UNICODE));
        ok("insert and select");
    }

    static void lookups(Connection connection) throws SQLException {
        for (String placeholder : List.of("?", "?::text", "?::varchar")) {
            lookUp(connection, "person_email_digest", "email = " + placeholder, "person7@example.com");
            lookUp(connection, "person_phone_hash", "phone = " + placeholder, "+497");
        }
        lookUp(connection, "person_photo_hash", "photo = ?", SEVEN);
        lookUp(connection, "person_email_folded",
            "enc_digest(email, 'nfkc_casefold') = enc_digest(?, 'nfkc_casefold')", "PERSON7@Example.com");
    }

    static void lists(Connection connection) throws SQLException {
        for (String element : List.of("text", "varchar", "encrypted_text")) {
            lookUp(connection, "person_phone_hash", "phone = ANY(?)",
                connection.createArrayOf(element, new String[] {"+497", "+4901"}));
        }
        lookUp(connection, "person_photo_hash", "photo = ANY(?)",
            connection.createArrayOf("bytea", new byte[][] {SEVEN, {1}}));
        lookUp(connection, "person_phone_hash", "phone IN (?, ?)", "+497", "+4901");
    }

    // Finds the person 7, by the index.
    static void lookUp(Connection connection, String index, String condition, Object... parameters)
            throws SQLException {
        String query = "SELECT id FROM person WHERE " + condition;
        ResultSet lines = bound(connection, "EXPLAIN (COSTS OFF) " + query, parameters).executeQuery();
        StringBuilder plan = new StringBuilder();
        while (lines.next()) {
            plan.append(lines.getString(1)).append('\n');
        }
        if (plan.indexOf(index) < 0) {
            throw new AssertionError(condition + ":\n" + plan);
        }
        same(only(bound(connection, query, parameters)).getLong(1), 7L);
    }

    static PreparedStatement bound(Connection connection, String sql, Object... parameters)
            throws SQLException {
        PreparedStatement statement = connection.prepareStatement(sql);
        for (int n = 0; n < parameters.length; n++) {
            if (parameters[n] instanceof byte[]) {
                statement.setBytes(n + 1, (byte[]) parameters[n]);
            } else if (parameters[n] instanceof java.sql.Array) {
                statement.setArray(n + 1, (java.sql.Array) parameters[n]);
            } else {
                statement.setString(n + 1, (String) parameters[n]);
            }
        }
        return statement;
    }

    static ResultSet only(PreparedStatement statement) throws SQLException {
        ResultSet rows = statement.executeQuery();
        same(rows.next(), true);
        return rows;
    }

    static void upserts(Connection connection) throws SQLException {
        ResultSet row = only(bound(connection,
            "INSERT INTO person (email, note) VALUES (?, ?)"
            + " ON CONFLICT (enc_digest(email)) DO UPDATE SET note = excluded.note RETURNING id",
            "person8@example.com", "seen"));
        same(row.getLong(1), 8L);
        ok("upsert on an expression");
        for (String login : List.of("Alice", "ALICE")) {
            row = only(bound(connection,
                "INSERT INTO account (login) VALUES (?) ON CONFLICT (login_digest)"
                + " DO UPDATE SET visits = account.visits + 1 RETURNING login, visits", login));
        }
        same(row.getString(1), "Alice");
        same(row.getInt(2), 2);
        ok("upsert on a column");
    }

    // The driver prepares at the fifth execution, and the server takes a generic plan at its sixth.
    static void prepared(Connection connection) throws SQLException {
        PreparedStatement statement =
            connection.prepareStatement("SELECT id FROM person WHERE email = ?");
        for (long n = 1; n < 20; n++) {
            statement.setString(1, "person" + n + "@example.com");
            same(only(statement).getLong(1), n);
        }
        ResultSet row = only(connection.prepareStatement(
            "SELECT generic_plans, parameter_types FROM pg_prepared_statements"
            + " WHERE statement LIKE 'SELECT id FROM person WHERE email = $1'"));
        same(row.getInt(1) > 0, true);
        same(row.getString(2), "{\"character varying\"}");
        ok("prepared statement");
    }

    static void copy(Connection connection) throws Exception {
        var copy = connection.unwrap(PGConnection.class).getCopyAPI();
        String rows = "3010\tcopied\t\\\\x00ff\n3011\t\\N\t\\N\n";
        same(copy.copyIn("COPY person (id, email, photo) FROM STDIN", new StringReader(rows)), 2L);
        StringWriter found = new StringWriter();
        copy.copyOut("COPY (SELECT id, email, photo FROM person WHERE id >= 3010 ORDER BY id) TO STDOUT",
            found);
        same(found.toString(), rows);
        ok("COPY");
    }

    // A parameter without a type becomes one of the encrypted type.
    static void untyped() throws SQLException {
        try (Connection connection = connect("app", "")) {
            PreparedStatement statement =
                connection.prepareStatement("SELECT id FROM person WHERE email = ?");
            statement.setObject(1, "person7@example.com", Types.OTHER);
            same(only(statement).getLong(1), 7L);
        }
        try (Connection connection = connect("app", "stringtype=unspecified")) {
            lookups(connection);
            lists(connection);
        }
        ok("parameters without a type");
    }

    static void denied() throws SQLException {
        try (Connection connection = connect("stranger", "")) {
            connection.prepareStatement("SELECT email FROM person").executeQuery().next();
            throw new AssertionError("nothing was refused");
        } catch (PSQLException error) {
            same(error.getSQLState(), "KE020");
            same(error.getServerErrorMessage().getMessage().contains("user_pii"), true);
            same(error.getServerErrorMessage().getHint() != null, true);
        }
        ok("KE020");
    }
}
