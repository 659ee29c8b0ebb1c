//! Rows of the extension's tables as SQL returns them to a [`Writer`](super::write::Writer).

use pgrx::spi::SpiHeapTupleData;
use pgrx::{FromDatum, IntoDatum};

use crate::errors::Error;

/// A row of a result.
pub(crate) struct SqlRow<'a>(pub(super) SpiHeapTupleData<'a>);

impl SqlRow<'_> {
    /// The value of column `number`, counted from 1.
    ///
    /// # Errors
    ///
    /// If the column has another type.
    pub(crate) fn nullable<T: FromDatum + IntoDatum>(
        &self,
        number: usize,
    ) -> Result<Option<T>, Error> {
        self.0
            .get(number)
            .map_err(|_| Error::Internal { what: "a column of the catalog has another type" })
    }

    /// The same, of a column that is never null.
    ///
    /// # Errors
    ///
    /// If it is, or has another type.
    pub(crate) fn required<T: FromDatum + IntoDatum>(&self, number: usize) -> Result<T, Error> {
        self.nullable(number)?.ok_or(Error::Internal { what: "a column of the catalog is null" })
    }
}
