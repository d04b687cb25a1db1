//! The build without TLS: everything is refused with the same sentence, and a session cannot exist.

use std::convert::Infallible;
use std::io::{self, Read, Write};

use super::{TlsError, TlsOptions};

/// Cannot exist in this build.
#[derive(Debug)]
pub struct Session(Infallible);

impl Session {
    /// Refuses.
    ///
    /// # Errors
    /// Always [`TlsError::NotBuiltIn`].
    pub fn new(_: &TlsOptions, _: &str) -> Result<Session, TlsError> {
        Err(TlsError::NotBuiltIn)
    }

    /// See the build with TLS.
    pub fn is_handshaking(&self) -> bool {
        match self.0 {}
    }

    /// See the build with TLS.
    pub fn wants_write(&self) -> bool {
        match self.0 {}
    }

    /// See the build with TLS.
    ///
    /// # Errors
    /// None.
    pub fn read_records(&mut self, _: &mut dyn Read) -> io::Result<usize> {
        match self.0 {}
    }

    /// See the build with TLS.
    ///
    /// # Errors
    /// None.
    pub fn process(&mut self) -> Result<(), TlsError> {
        match self.0 {}
    }

    /// See the build with TLS.
    ///
    /// # Errors
    /// None.
    pub fn write_records(&mut self, _: &mut dyn Write) -> io::Result<usize> {
        match self.0 {}
    }

    /// See the build with TLS.
    ///
    /// # Errors
    /// None.
    pub fn read_plain(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.0 {}
    }

    /// See the build with TLS.
    ///
    /// # Errors
    /// None.
    pub fn write_plain(&mut self, _: &[u8]) -> io::Result<usize> {
        match self.0 {}
    }

    /// See the build with TLS.
    pub fn close_notify(&mut self) {
        match self.0 {}
    }

    /// See the build with TLS.
    pub fn closed_early(&self) -> TlsError {
        match self.0 {}
    }

    /// See the build with TLS.
    pub fn not_answered(&self) -> TlsError {
        match self.0 {}
    }
}

/// There is no error of TLS.
pub fn explain_foreign(_: &TlsOptions, _: &str, _: &(dyn std::error::Error + 'static)) -> Option<TlsError> {
    None
}
