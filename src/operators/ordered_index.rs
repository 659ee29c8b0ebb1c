//! The refusal of ordered indexes.

use crate::errors::Error;
use crate::fmgr::sql_function;

sql_function! {
    /// `encrypted_text_btree_options(internal) RETURNS void`: procedure 5 of the btree operator
    /// class. PostgreSQL calls it for every index that is built with the class
    /// (`index_opclass_options`), and for no sort.
    fn encrypted_text_btree_options(_call) {
        Err(Error::OrderedIndexRefused { operator_class: "encrypted_text_btree_ops" })
    }
}

sql_function! {
    /// `encrypted_bytea_btree_options(internal) RETURNS void`: as above.
    fn encrypted_bytea_btree_options(_call) {
        Err(Error::OrderedIndexRefused { operator_class: "encrypted_bytea_btree_ops" })
    }
}
