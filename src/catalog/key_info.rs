//! What is said about a key beside its versions: what it is for, which rules it is under, how often it
//! is to be rotated, and who owns it.

use std::fmt::Write;

use envelope::KeyName;
use pgrx::datum::{Array, DatumWithOid};
use pgrx::{FromDatum, pg_sys};

use super::write::{Writer, id};
use crate::access;
use crate::errors::Error;
use crate::fmgr::Call;

/// What is to be said of a key. What is absent stays as it is.
#[derive(Default)]
pub(crate) struct KeyInfo {
    /// Empty to have none.
    purpose: Option<String>,
    /// In order, each once.
    labels: Option<Vec<String>>,
    /// Without any part to have none.
    rotation_period: Option<Period>,
    owner: Option<pg_sys::Oid>,
}

/// An interval that is not negative, in PostgreSQL's parts.
#[derive(Clone, Copy)]
struct Period {
    months: i32,
    days: i32,
    microseconds: i64,
}

impl KeyInfo {
    /// The arguments of a function that are, from number `first` on, `purpose text, labels text[],
    /// rotation_period interval, owner name`.
    ///
    /// # Errors
    ///
    /// If one of them is invalid. PostgreSQL raises those about the role: that there is none, or that
    /// the current user may not give a key to it.
    pub(crate) fn of_arguments(call: &Call, first: usize) -> Result<Self, Error> {
        Ok(Self {
            purpose: call.optional_text(first)?.map(purpose).transpose()?,
            labels: call.nullable(first + 1).map(labels).transpose()?,
            rotation_period: call.nullable(first + 2).map(Period::of).transpose()?,
            owner: call
                .nullable(first + 3)
                .map(|_| access::role_to_give_to(call.cstring(first + 3))),
        })
    }

    /// A rotation period, if there is one.
    ///
    /// # Errors
    ///
    /// If it is invalid, or none.
    pub(crate) fn of_rotation_period(interval: Option<pg_sys::Datum>) -> Result<Self, Error> {
        let rotation_period = interval.map(Period::of).transpose()?;
        if rotation_period.is_some_and(|period| period.describe().is_empty()) {
            return Err(Error::KeyInfoInvalid {
                why: "rotation period is less than a second",
                expected: "Give a period such as '90 days' or '1 year'.",
            });
        }
        Ok(Self { rotation_period, ..Self::default() })
    }

    /// What is said, for the log; nothing if nothing is.
    pub(crate) fn describe(&self) -> String {
        let mut parts = Vec::new();
        if let Some(purpose) = &self.purpose {
            parts.push(format!("purpose {purpose:?}"));
        }
        if let Some(labels) = &self.labels {
            parts.push(format!("labels {}", or_none(labels.join(", "))));
        }
        if let Some(period) = &self.rotation_period {
            parts.push(format!("rotation period {}", or_none(period.describe())));
        }
        if let Some(owner) = self.owner {
            parts.push(format!("owner {:?}", access::role_name(owner)));
        }
        parts.join("; ")
    }
}

impl Writer<'_, '_> {
    /// Notes what is said of a key.
    pub(crate) fn set_key_info(&mut self, name: &KeyName, info: &KeyInfo) -> Result<(), Error> {
        let KeyInfo { purpose, labels, rotation_period, owner } = info;
        let interval = rotation_period.map(Period::into_interval);
        let interval = match &interval {
            // SAFETY: the datum points to an interval that lives as long as the statement.
            Some(interval) => unsafe {
                DatumWithOid::new(
                    pg_sys::Datum::from(std::ptr::from_ref(interval)),
                    pg_sys::INTERVALOID,
                )
            },
            None => DatumWithOid::null_oid(pg_sys::INTERVALOID),
        };
        self.run(
            "UPDATE encryption.key
                SET purpose = CASE WHEN $2 IS NULL THEN purpose
                                   ELSE nullif(pg_catalog.convert_from($2, 'UTF8'), '') END,
                    labels = coalesce($3, labels),
                    rotation_period = CASE WHEN $4 IS NULL THEN rotation_period
                                           ELSE nullif($4, '0') END,
                    owner = coalesce($5::pg_catalog.oid, owner)
              WHERE key_id = $1",
            &[
                id(name),
                purpose.as_ref().map(|purpose| purpose.as_bytes().to_vec()).into(),
                labels.clone().into(),
                interval,
                owner.map(|owner| i64::from(owner.to_u32())).into(),
            ],
        )?;
        Ok(())
    }
}

impl Period {
    fn of(interval: pg_sys::Datum) -> Result<Self, Error> {
        const INVALID: Error = Error::KeyInfoInvalid {
            why: "rotation period is less than a second, or longer than 100 years",
            expected: "Give a period such as '90 days' or '1 year', or '0' to have none.",
        };
        // SAFETY: SQL declares the argument interval, which is passed by reference.
        let pg_sys::Interval { time, day, month } =
            unsafe { interval.cast_mut_ptr::<pg_sys::Interval>().read() };
        // As PostgreSQL compares intervals (interval_cmp_value of src/backend/utils/adt/timestamp.c). An
        // infinite one has the greatest or the least value in every part.
        let days = i128::from(month) * 30 + i128::from(day);
        let total = days * i128::from(24 * HOUR) + i128::from(time);
        let is_positive = month >= 0 && day >= 0 && time >= 0 && (total == 0 || total >= 1_000_000);
        match is_positive && total <= i128::from(LONGEST) {
            true => Ok(Self { months: month, days: day, microseconds: time }),
            false => Err(INVALID),
        }
    }

    fn into_interval(self) -> pg_sys::Interval {
        pg_sys::Interval { time: self.microseconds, day: self.days, month: self.months }
    }

    /// In English, whatever IntervalStyle is.
    fn describe(self) -> String {
        let mut text = String::new();
        let years = i64::from(self.months / 12);
        let months = i64::from(self.months % 12);
        let seconds = self.microseconds / 1_000_000;
        let days = i64::from(self.days);
        for (count, unit) in
            [(years, "year"), (months, "month"), (days, "day"), (seconds, "second")]
        {
            if count != 0 {
                let separator = if text.is_empty() { "" } else { " " };
                let plural = if count == 1 { "" } else { "s" };
                // To a string, which never fails.
                let _ = write!(text, "{separator}{count} {unit}{plural}");
            }
        }
        text
    }
}

/// In microseconds.
const HOUR: i64 = 3_600_000_000;

/// A hundred years, in microseconds, of months of 30 days.
const LONGEST: i64 = 100 * 12 * 30 * 24 * HOUR;

fn purpose(text: String) -> Result<String, Error> {
    if text.len() > 1000 || text.chars().any(char::is_control) {
        return Err(Error::KeyInfoInvalid {
            why: "a key's purpose is longer than 1000 bytes, or has control characters",
            expected: "Give a line of text, or '' to have none.",
        });
    }
    Ok(text)
}

fn labels(array: pg_sys::Datum) -> Result<Vec<String>, Error> {
    const INVALID: Error = Error::KeyInfoInvalid {
        why: "invalid labels of a key",
        expected: "Give up to 32, as in '{gdpr,pci}', each of 1 to 63 characters of a-z, 0-9, \"_\", \".\", \":\" \
                   and \"-\", the first a letter or a digit; or '{}' to have none.",
    };
    // SAFETY: SQL declares the argument text[].
    let array = unsafe { Array::<&[u8]>::from_datum(array, false) }.ok_or(INVALID)?;
    let mut labels = Vec::new();
    for label in array.iter() {
        let label = label.filter(|label| is_label(label)).ok_or(INVALID)?;
        labels.push(String::from_utf8_lossy(label).into_owned());
    }
    labels.sort_unstable();
    labels.dedup();
    if labels.len() > 32 { Err(INVALID) } else { Ok(labels) }
}

fn is_label(label: &[u8]) -> bool {
    let is_inner =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.:-".contains(byte);
    (1..=63).contains(&label.len())
        && label.iter().all(is_inner)
        && (label[0].is_ascii_lowercase() || label[0].is_ascii_digit())
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}
