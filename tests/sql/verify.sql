-- Values that can't be opened, and what could be safer.
\set SHOW_CONTEXT never
CREATE TABLE checked (id integer, v encrypted_text('medical'), list encrypted_text('medical')[], b encrypted_bytea('medical'));
INSERT INTO checked SELECT n, 'v' || n, ARRAY['a' || n], '\x01' FROM generate_series(1, 3) n;
SELECT * FROM enc_verify('checked');
UPDATE checked SET v = set_byte(v::bytea, 40, get_byte(v::bytea, 40) # 1)::encrypted_text WHERE id = 2;
UPDATE checked SET b = v::bytea::encrypted_text::encrypted_bytea WHERE id = 3;
SELECT * FROM enc_verify('checked');
SELECT * FROM enc_verify('checked', 'list');
SELECT * FROM enc_verify('checked', 'id');
SELECT id, enc_try_decrypt(v), enc_try_decrypt(b) FROM checked ORDER BY id;
DELETE FROM checked USING enc_verify('checked') AS bad WHERE checked.ctid = bad.ctid;
SELECT id, v FROM checked;
DROP TABLE checked;
SELECT check_name, object FROM enc_security_check() WHERE check_name = 'file_provider';
SET encryption_ext.audit = 'everything';
SET encryption_ext.audit = 'access';
RESET encryption_ext.audit;
