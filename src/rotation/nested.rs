//! Encrypted values wherever a value of some type holds them: itself, or inside of arrays, domains
//! and composite types.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use pgrx::pg_sys;

use crate::errors::Error;
use crate::pg;
use crate::types::identity;

/// Where encrypted values are in the values of a type.
pub(super) enum Shape {
    /// Nowhere.
    Plain,
    /// It is one.
    Encrypted(Base),
    /// In the elements of an array.
    Array(Element),
    /// In attributes of a composite type, in their order.
    Composite(Vec<Rc<Shape>>),
}

/// Which of the two types an encrypted value has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Text,
    Bytea,
}

/// An array's element type.
pub(super) struct Element {
    type_id: pg_sys::Oid,
    len: i16,
    by_value: bool,
    align: i8,
    shape: Rc<Shape>,
}

impl Shape {
    /// The shape of a type, which is looked up once a statement: ALTER TYPE may change it.
    pub(super) fn of(type_id: pg_sys::Oid) -> Result<Rc<Self>, Error> {
        SHAPES.with_borrow_mut(|shapes| {
            let statement = pg::statement_start();
            if shapes.statement != statement {
                shapes.known.clear();
                shapes.statement = statement;
            }
            if let Some(shape) = shapes.known.get(&type_id) {
                return Ok(Rc::clone(shape));
            }
            // SAFETY: the type exists, as it is that of an expression.
            let shape = Rc::new(unsafe { Self::look_up(type_id) }?);
            shapes.known.insert(type_id, Rc::clone(&shape));
            Ok(shape)
        })
    }

    /// The shape of an array with elements of this type, which need not have an array type: there is none of
    /// arrays.
    pub(super) fn of_array_of(element: pg_sys::Oid) -> Result<Self, Error> {
        // SAFETY: the type exists, as it is that of a column.
        unsafe { Self::look_up_array(element) }
    }

    /// # Safety
    ///
    /// The type exists.
    unsafe fn look_up(type_id: pg_sys::Oid) -> Result<Self, Error> {
        // SAFETY: the caller's promise; look-ups in system caches. The types that a type is made of
        // exist as long as it does.
        unsafe {
            let base = pg_sys::getBaseType(type_id);
            if let Some(encrypted) = encrypted_type(base) {
                return Ok(Self::Encrypted(encrypted));
            }
            let element = pg_sys::get_element_type(base);
            if element != pg_sys::InvalidOid {
                return Self::look_up_array(element);
            }
            let kind = pg_sys::get_typtype(base).cast_unsigned();
            if kind == pg_sys::TYPTYPE_COMPOSITE {
                return Self::look_up_composite(base);
            }
            if matches!(kind, pg_sys::TYPTYPE_RANGE | pg_sys::TYPTYPE_MULTIRANGE)
                && encrypted_type(range_subtype(base)).is_some()
            {
                return Err(Error::RangeUnsupported);
            }
        }
        Ok(Self::Plain)
    }

    unsafe fn look_up_array(element: pg_sys::Oid) -> Result<Self, Error> {
        // SAFETY: as in `look_up`, whose caller's promise this relies on.
        let shape = unsafe { Self::look_up(element) }?;
        if matches!(shape, Self::Plain) {
            return Ok(Self::Plain);
        }
        let mut found =
            Element { type_id: element, len: 0, by_value: false, align: 0, shape: Rc::new(shape) };
        // SAFETY: a look-up in a system cache.
        unsafe {
            let Element { len, by_value, align, .. } = &mut found;
            pg_sys::get_typlenbyvalalign(
                element,
                &raw mut *len,
                &raw mut *by_value,
                (&raw mut *align).cast(),
            );
        }
        Ok(Self::Array(found))
    }

    unsafe fn look_up_composite(type_id: pg_sys::Oid) -> Result<Self, Error> {
        // SAFETY: as in `look_up`; the description is a copy, which is freed here.
        unsafe {
            let description = pg_sys::lookup_rowtype_tupdesc_copy(type_id, -1);
            let mut attributes = Vec::new();
            for attribute in attributes_of(description) {
                attributes.push(Rc::new(match attribute.attisdropped {
                    true => Self::Plain,
                    false => Self::look_up(attribute.atttypid)?,
                }));
            }
            pg_sys::FreeTupleDesc(description);
            let is_plain = |shape: &Rc<Self>| matches!(**shape, Self::Plain);
            Ok(match attributes.iter().all(is_plain) {
                true => Self::Plain,
                false => Self::Composite(attributes),
            })
        }
    }

    /// Calls `visit` with every encrypted value inside of `datum`.
    ///
    /// # Safety
    ///
    /// `datum` is a non-null value of the type whose shape this is.
    ///
    /// # Errors
    ///
    /// What `visit` returns.
    pub(super) unsafe fn visit(
        &self,
        datum: pg_sys::Datum,
        visit: &mut dyn FnMut(Base, pg_sys::Datum) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self {
            Self::Plain => Ok(()),
            Self::Encrypted(base) => visit(*base, datum),
            Self::Array(element) => {
                // SAFETY: the caller's promise, and the elements are of the element's type.
                unsafe {
                    let array = Array::take_apart(element, datum);
                    array.present().try_for_each(|value| element.shape.visit(value, visit))
                }
            }
            Self::Composite(shapes) => {
                // SAFETY: the caller's promise, and the attributes are of the types whose shapes
                // were looked up.
                unsafe {
                    let row = Row::take_apart(datum);
                    for (n, shape) in shapes.iter().enumerate() {
                        if row.nulls.get(n) == Some(&false) {
                            shape.visit(row.values[n], visit)?;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// The value with every encrypted value inside of it replaced by what `replace` returns.
    ///
    /// # Safety
    ///
    /// `datum` is a non-null value of the type whose shape this is, and `replace` returns values of
    /// the type that it is given.
    ///
    /// # Errors
    ///
    /// What `replace` returns.
    pub(super) unsafe fn map(
        &self,
        datum: pg_sys::Datum,
        replace: &mut dyn FnMut(Base, pg_sys::Datum) -> Result<pg_sys::Datum, Error>,
    ) -> Result<pg_sys::Datum, Error> {
        match self {
            Self::Plain => Ok(datum),
            Self::Encrypted(base) => replace(*base, datum),
            Self::Array(element) => {
                // SAFETY: as in `visit`.
                unsafe {
                    let mut array = Array::take_apart(element, datum);
                    for n in 0..array.values.len() {
                        if !array.nulls[n] {
                            array.values[n] = element.shape.map(array.values[n], replace)?;
                        }
                    }
                    Ok(array.put_together(element))
                }
            }
            Self::Composite(shapes) => {
                // SAFETY: as in `visit`.
                unsafe {
                    let mut row = Row::take_apart(datum);
                    for (n, shape) in shapes.iter().enumerate() {
                        if row.nulls.get(n) == Some(&false) {
                            row.values[n] = shape.map(row.values[n], replace)?;
                        }
                    }
                    Ok(row.put_together())
                }
            }
        }
    }
}

/// The shapes of types, for one statement.
struct Shapes {
    statement: pg_sys::TimestampTz,
    known: HashMap<pg_sys::Oid, Rc<Shape>>,
}

thread_local! {
    static SHAPES: RefCell<Shapes> =
        RefCell::new(Shapes { statement: 0, known: HashMap::new() });
}

/// An array taken apart.
struct Array {
    array: *mut pg_sys::ArrayType,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Array {
    /// # Safety
    ///
    /// `datum` is an array with such elements.
    unsafe fn take_apart(element: &Element, datum: pg_sys::Datum) -> Self {
        let mut values = std::ptr::null_mut();
        let mut nulls = std::ptr::null_mut();
        let mut count = 0;
        // SAFETY: the caller's promise; PostgreSQL returns `count` values and nulls.
        unsafe {
            let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
            pg_sys::deconstruct_array(
                array,
                element.type_id,
                element.len.into(),
                element.by_value,
                element.align as std::ffi::c_char,
                &raw mut values,
                &raw mut nulls,
                &raw mut count,
            );
            let count = usize::try_from(count).unwrap_or(0);
            // An empty array has no list of values.
            if count == 0 {
                return Self { array, values: Vec::new(), nulls: Vec::new() };
            }
            Self {
                array,
                values: std::slice::from_raw_parts(values, count).to_vec(),
                nulls: std::slice::from_raw_parts(nulls, count).to_vec(),
            }
        }
    }

    fn present(&self) -> impl Iterator<Item = pg_sys::Datum> {
        self.values.iter().zip(&self.nulls).filter(|(_, null)| !**null).map(|(value, _)| *value)
    }

    /// The array with the dimensions that it had.
    ///
    /// # Safety
    ///
    /// The values are of the element's type.
    unsafe fn put_together(mut self, element: &Element) -> pg_sys::Datum {
        if self.values.is_empty() {
            return pg_sys::Datum::from(self.array);
        }
        // SAFETY: the caller's promise; ARR_DIMS and ARR_LBOUND of src/include/utils/array.h: the
        // dimensions follow the array's header, and the lower bounds follow them.
        unsafe {
            let dimensions = (*self.array).ndim;
            let sizes = self.array.add(1).cast::<i32>();
            let lower_bounds = sizes.add(usize::try_from(dimensions).unwrap_or(0));
            pg_sys::Datum::from(pg_sys::construct_md_array(
                self.values.as_mut_ptr(),
                self.nulls.as_mut_ptr(),
                dimensions,
                sizes,
                lower_bounds,
                element.type_id,
                element.len.into(),
                element.by_value,
                element.align as std::ffi::c_char,
            ))
        }
    }
}

/// A value of a composite type taken apart.
struct Row {
    description: pg_sys::TupleDesc,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Row {
    /// # Safety
    ///
    /// `datum` is of a composite type.
    unsafe fn take_apart(datum: pg_sys::Datum) -> Self {
        // SAFETY: the caller's promise; the header says of which type the row is. The copy of the
        // description is freed with the current memory context.
        unsafe {
            let header = pg_sys::pg_detoast_datum(datum.cast_mut_ptr())
                .cast::<pg_sys::HeapTupleHeaderData>();
            let field = (*header).t_choice.t_datum;
            let description =
                pg_sys::lookup_rowtype_tupdesc_copy(field.datum_typeid, field.datum_typmod);
            let columns = usize::try_from((*description).natts).unwrap_or(0);
            let mut values = vec![pg_sys::Datum::from(0usize); columns];
            let mut nulls = vec![true; columns];
            let mut tuple = pg_sys::HeapTupleData {
                // HeapTupleHeaderGetDatumLength: the length word of a varlena.
                t_len: pgrx::varlena::varsize(header.cast()) as u32,
                t_data: header,
                ..Default::default()
            };
            pg_sys::heap_deform_tuple(
                &raw mut tuple,
                description,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            Self { description, values, nulls }
        }
    }

    /// # Safety
    ///
    /// The values are of the attributes' types.
    unsafe fn put_together(mut self) -> pg_sys::Datum {
        // SAFETY: the caller's promise; there are as many values as attributes.
        unsafe {
            let tuple = pg_sys::heap_form_tuple(
                self.description,
                self.values.as_mut_ptr(),
                self.nulls.as_mut_ptr(),
            );
            pg_sys::heap_copy_tuple_as_datum(tuple, self.description)
        }
    }
}

/// # Safety
///
/// `description` is valid as long as what is returned.
unsafe fn attributes_of<'a>(description: pg_sys::TupleDesc) -> &'a [pg_sys::FormData_pg_attribute] {
    // SAFETY: the caller's promise; there are natts attributes, which follow their compact form from
    // PostgreSQL 18 on (TupleDescAttr of src/include/access/tupdesc.h).
    unsafe {
        let count = usize::try_from((*description).natts).unwrap_or(0);
        #[cfg(feature = "pg18")]
        let first = (*description).compact_attrs.as_ptr().add(count).cast();
        #[cfg(not(feature = "pg18"))]
        let first = (*description).attrs.as_ptr();
        std::slice::from_raw_parts(first, count)
    }
}

/// # Safety
///
/// The type exists and is a range or a multirange.
unsafe fn range_subtype(type_id: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: the caller's promise; look-ups in system caches.
    unsafe {
        let range = match pg_sys::get_multirange_range(type_id) {
            pg_sys::InvalidOid => type_id,
            range => range,
        };
        pg_sys::get_range_subtype(range)
    }
}

/// Which of our types it is, if any. Of the two, `encrypted_text` alone has a collation.
///
/// # Safety
///
/// The type exists.
unsafe fn encrypted_type(type_id: pg_sys::Oid) -> Option<Base> {
    if !identity::is_encrypted(type_id) {
        return None;
    }
    // SAFETY: the caller's promise; a look-up in a system cache.
    match unsafe { pg_sys::get_typcollation(type_id) } {
        pg_sys::InvalidOid => Some(Base::Bytea),
        _ => Some(Base::Text),
    }
}
