//! Tests of the installed extension; see the files beside this one.
